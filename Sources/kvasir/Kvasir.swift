import ArgumentParser
import KVService

@main
struct Kvasir: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "kvasir",
        abstract: "The memory of large language models, kept outside the GPU.",
        discussion: """
            'kvasir demo' shows what it does, in a minute. Start a server with 'kvasir serve'; the README shows how to \
            point vLLM at it. 'kvasir doctor' says what is amiss on this machine.

            Options can also be given as environment variables, named in brackets in each command's help. An \
            option on the command line wins over its variable, and the variable over the default.
            """,
        version: KvasirVersion.current,
        subcommands: [
            Demo.self, Serve.self, Ping.self, Stats.self, Chunks.self, Doctor.self, Disk.self,
            Simulate.self, Plan.self, Generate.self, Chat.self, Evaluate.self, Bench.self,
            RawPeer.self, IndexChild.self,
            DemoEngine.self,
        ])
}
