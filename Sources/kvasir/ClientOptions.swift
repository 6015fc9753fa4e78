import ArgumentParser
import KVClient

/// What every command that talks to a server takes.
struct ClientOptions: ParsableArguments {
    @Option(help: ArgumentHelp("The server's socket. [KVASIR_SOCKET]", valueName: "path"))
    var socket: String?

    @Option(help: ArgumentHelp("How long a request may take.", valueName: "ms"))
    var timeout = 2_000

    func validate() throws {
        if timeout < 1 || timeout > Client.timeoutMsMax {
            throw ValidationError(
                "--timeout takes 1 to \(Client.timeoutMsMax) milliseconds, not \(timeout)")
        }
    }

    func connect() throws -> Client {
        do throws(ClientError) {
            return try Client(.init(socket: socket, timeoutMs: timeout))
        } catch {
            throw CommandFailure(error)
        }
    }
}

/// Runs requests; what they throw is told in one sentence.
func asking<Result>(_ body: () throws(ClientError) -> Result) throws -> Result {
    do throws(ClientError) {
        return try body()
    } catch {
        throw CommandFailure(error)
    }
}
