import ArgumentParser
import Foundation
import KVClient

struct ChunksDrop: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "drop",
        abstract: "Drop chunks, with all that follow them, from memory and disk.",
        discussion: """
            Nobody can match them from now on, and no restart brings them back (where there is a disk, from about a second \
            later on). What an engine reads at this moment it may read to the end. Without the first chunks of a prompt \
            the later ones are of no use, so they go with them.
            """)

    @OptionGroup var options: ClientOptions
    @OptionGroup(title: "Which chunks") var filter: ChunkFilterOptions

    @Flag(help: "Drop everything.")
    var all = false

    @Flag(help: "Only say what would go.")
    var dryRun = false

    @Flag(help: "Don't ask.")
    var yes = false

    func validate() throws {
        if all != filter.isEmpty {
            throw ValidationError(
                all
                    ? "--all takes no filter; give one or the other"
                    : "say which chunks (--space, --root, --key, --idle, --tier), or --all")
        }
        if filter.tier == .writing {
            throw ValidationError(
                "what is being written can't be dropped; drop it once it is sealed")
        }
    }

    func run() throws {
        let client = try options.connect()
        defer { client.close() }
        let plan = try DropPlan(ChunkCatalogue(client, filter))
        print(plan.text(isDryRun: dryRun))
        if dryRun || plan.isEmpty { return }
        if !yes, try !confirm() {
            print("nothing was dropped")
            throw ExitCode(1)
        }
        print("dropped \(Format.count(try plan.carryOut(), "chunk"))")
    }

    private func confirm() throws -> Bool {
        if isatty(0) != 1 || isatty(2) != 1 {
            throw CommandFailure("there is nobody to ask here; --yes drops without asking")
        }
        fflush(nil)
        Output.tell("Drop them? [y/N] ")
        let answer = readLine()?.trimmingCharacters(in: .whitespaces).lowercased()
        return answer == "y" || answer == "yes"
    }
}
