/// Why bytes of a disk directory are not what they should be.
///
/// The message names the structure, its place in the file and the field; whoever knows the file
/// puts its name before it.
package struct DiskFormatError: Error, Hashable, Sendable {
    /// What kind of trouble it is. New codes may be added.
    package struct Code: Hashable, Sendable, CustomStringConvertible {
        /// The code as text, for logs and tests.
        package let description: String

        /// Ours, but a checksum, a length or a value is wrong, or bytes are missing.
        package static let damaged = Code(description: "damaged")
        /// Not ours: the magic number is another one, or it belongs to another disk.
        package static let foreign = Code(description: "foreign")
        /// A newer version of Kvasir wrote it.
        package static let newerVersion = Code(description: "newer-version")
        /// Ours, from an earlier use of the file.
        package static let staleLife = Code(description: "stale-life")
        /// Nothing but zeros: never written.
        package static let blank = Code(description: "blank")

        fileprivate var advice: String {
            switch self {
            case .damaged:
                "it is left out, and what it held is computed again; "
                    + "if this happens again, check the device"
            case .foreign:
                "Kvasir leaves it alone; move it away, or give Kvasir a directory of its own"
            case .newerVersion:
                "run that version, or give this one an empty directory"
            case .staleLife:
                "an earlier use of the file left it; nothing needs to be done"
            case .blank:
                "it was never written; nothing needs to be done"
            default:
                "it is left out"
            }
        }
    }

    /// What kind of trouble it is.
    package let code: Code
    /// Where in the file the structure starts.
    package let fileOffset: Int
    /// What is wrong, where, and what to do: one sentence for a person.
    package let message: String

    init(
        _ code: Code, _ structure: StaticString, at fileOffset: Int, _ problem: String,
        advice: String? = nil
    ) {
        self.code = code
        self.fileOffset = fileOffset
        message = "\(structure) at byte \(fileOffset): \(problem); \(advice ?? code.advice)"
    }
}

extension DiskFormatError: CustomStringConvertible {
    /// Code and message on one line.
    package var description: String { "\(code): \(message)" }
}
