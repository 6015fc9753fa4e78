internal import Glibc

/// Why a disk request failed.
package struct DiskFault: Error, Sendable, Hashable, CustomStringConvertible {
    /// What kind of fault it is.
    package struct Code: Sendable, Hashable, CustomStringConvertible {
        /// One word for it.
        package let description: String
        /// The kernel's error number; 0 where there is none.
        package let number: Int32

        /// The device, the quota or the disk's limit is full.
        package static let noSpace = Code(description: "no-space", number: ENOSPC)
        /// The device failed.
        package static let inputOutput = Code(description: "input-output", number: EIO)
        /// The file system takes no writes.
        package static let readOnly = Code(description: "read-only", number: EROFS)
        /// No such file, directory or file number.
        package static let notFound = Code(description: "not-found", number: ENOENT)
        /// The file, or the file number, is there already.
        package static let exists = Code(description: "exists", number: EEXIST)
        /// The system forbids it.
        package static let permission = Code(description: "permission", number: EACCES)
        /// The range reaches past the end of the file.
        package static let endOfFile = Code(description: "end-of-file", number: 0)
        /// Too many requests wait, or another process uses the directory.
        package static let busy = Code(description: "busy", number: EBUSY)
        /// The file is longer than the file system or the process's limit allows.
        package static let tooLarge = Code(description: "too-large", number: EFBIG)
        /// This kernel, or what it allows here, lacks something.
        package static let unsupported = Code(description: "unsupported", number: ENOSYS)
        /// Any other error number.
        package static func other(_ number: Int32) -> Code {
            Code(description: "errno-\(number)", number: number)
        }

        /// The code for an error number.
        init(errno number: Int32) {
            self =
                switch number {
                case ENOSPC, EDQUOT: .noSpace
                case EIO, EREMOTEIO, ENXIO, ENODEV: .inputOutput
                case EROFS: .readOnly
                case ENOENT: .notFound
                case EEXIST: .exists
                case EACCES, EPERM: .permission
                case EBUSY: .busy
                case EFBIG: .tooLarge
                case ENOSYS, EOPNOTSUPP: .unsupported
                default: .other(number)
                }
        }

        private init(description: String, number: Int32) {
            self.description = description
            self.number = number
        }

        /// How to mend it.
        var advice: String {
            switch self {
            case .noSpace: "free some space there, or give the disk tier a smaller limit"
            case .inputOutput: "the kernel's log (dmesg) says more; the device may be failing"
            case .readOnly: "mount the file system for writing, or choose another directory"
            case .notFound: "check the name; somebody may have moved or removed it"
            case .exists: "remove it, or choose another name"
            case .permission: "give this user the rights to the directory and its files"
            case .endOfFile: "the file is shorter than it should be; it may have been cut"
            case .busy: "try again when others are done"
            case .tooLarge: "raise the limit of file sizes (ulimit -f), or use smaller files"
            case .unsupported: "use another back end or file system"
            default: "see errno \(number) in the system's manual"
            }
        }
    }

    /// What kind of fault it is.
    package let code: Code
    /// What went wrong, where, and how to mend it.
    package let message: String

    /// Makes a fault of an action ("write 4096 bytes at 0 of segment-1").
    package init(_ code: Code, _ action: String, because reason: String? = nil) {
        self.code = code
        let number = code.number
        let why = reason ?? (number == 0 ? code.description : String(cString: strerror(number)))
        message = "can't \(action): \(why); \(code.advice)"
    }

    /// Makes a fault of an error number.
    init(errno number: Int32, _ action: String) {
        let code = Code(errno: number)
        self.init(code, action, because: String(cString: strerror(number)))
    }

    package var description: String { "\(code): \(message)" }
}
