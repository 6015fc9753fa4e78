import ArgumentParser

struct Chunks: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Look at what a server has stored, chunk by chunk, check it, or drop some of it.",
        discussion: """
            A chunk is the KV of some consecutive tokens of a prompt. Its key stands for these tokens and all before \
            them; chunks of one prompt follow each other under a root, in a space (a model, with all that has to be equal \
            for its KV to be used again).

              kvasir chunks list --tier disk --idle 2d     what only takes room
              kvasir chunks pin --root 3fa9 --forever      keep a system prompt for good
              kvasir chunks drop --space llama --dry-run   what dropping a model would mean

            All of this asks a server that runs. 'kvasir disk' looks into a directory without one.
            """,
        subcommands: [
            ChunksList.self, ChunksLocate.self, ChunksVerify.self, ChunksPin.self, ChunksUnpin.self,
            ChunksDrop.self,
        ])
}
