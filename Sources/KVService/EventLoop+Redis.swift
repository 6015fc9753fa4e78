internal import Glibc
internal import KVStore
internal import RESP

/// What a version of Kvasir calls itself.
public enum KvasirVersion {
    /// The version of the server and of this package.
    public static let current = "0.1.0"
    /// The version of the commands in `docs/protocol.md`.
    public static let protocolVersion = 1
}

// Dispatch, and the commands that every Redis client knows.

extension EventLoop {
    typealias Handler =
        @Sendable (EventLoop) -> (Arguments, Connection) throws(CommandError) -> Void

    /// A command: its handler, and how many arguments it takes, its name included.
    struct Command: Sendable {
        var count: ClosedRange<Int>
        /// Where the last argument stands if it is there, which then is `HEX`; nil where a command looks itself.
        var hexAt: Int?
        var handler: Handler

        init(count: ClosedRange<Int>, hexAt: Int? = nil, handler: @escaping Handler) {
            self.count = count
            self.hexAt = hexAt
            self.handler = handler
        }
    }

    static let commands: [String: Command] = {
        let many = ServerLimits.commands.arguments
        var table: [String: Command] = [
            "PING": Command(count: 1...2) { $0.ping },
            "ECHO": Command(count: 2...2) { $0.echo },
            "HELLO": Command(count: 1...7) { $0.hello },
            "AUTH": Command(count: 2...3) { $0.authenticate },
            "SELECT": Command(count: 2...2) { $0.select },
            "CLIENT": Command(count: 2...many) { $0.client },
            "COMMAND": Command(count: 1...many) { $0.command },
            "CONFIG": Command(count: 3...many) { $0.config },
            "INFO": Command(count: 1...many) { $0.info },
            "RESET": Command(count: 1...1) { $0.reset },
            "QUIT": Command(count: 1...1) { $0.quit },
        ]
        table.merge(storeCommands) { first, _ in first }
        return table
    }()

    func execute(_ arguments: Arguments, on connection: Connection) throws(CommandError) {
        let name = arguments.word(0)
        guard let command = Self.commands[name] else {
            throw CommandError(
                "ERR",
                "unknown command '\(arguments.text(0).prefix(64))'; docs/protocol.md lists the commands"
            )
        }
        guard command.count.contains(arguments.count) else {
            throw CommandError(
                "ERR", "wrong number of arguments for '\(name)'; docs/protocol.md shows its form")
        }
        if let place = command.hexAt, arguments.count > place, !arguments.matches(place, "HEX") {
            throw CommandError(
                "ERR",
                "syntax error near '\(arguments.text(place).prefix(32))'; only HEX may follow the arguments "
                    + "of \(name)")
        }
        try command.handler(self)(arguments, connection)
    }

    private func ping(_ arguments: Arguments, _ connection: Connection) {
        if arguments.count == 2 {
            connection.writer.bulk(arguments[1])
        } else {
            connection.writer.simpleString("PONG")
        }
    }

    private func echo(_ arguments: Arguments, _ connection: Connection) {
        connection.writer.bulk(arguments[1])
    }

    private func hello(_ arguments: Arguments, _ connection: Connection) throws(CommandError) {
        var version = connection.writer.version
        if arguments.count > 1 {
            guard let number = Argument.integer(arguments[1]),
                let asked = ProtocolVersion(rawValue: number)
            else {
                throw CommandError(
                    "NOPROTO", "unsupported protocol version; this server speaks 2 and 3")
            }
            version = asked
        }
        var index = 2
        while index < arguments.count {
            if arguments.matches(index, "AUTH"), index + 2 < arguments.count {
                try refuseUnlessDefault(user: arguments.text(index + 1))
                index += 3
            } else if arguments.matches(index, "SETNAME"), index + 1 < arguments.count {
                connection.clientName = try clientName(arguments, index + 1)
                index += 2
            } else {
                throw CommandError(
                    "ERR", "syntax error in HELLO near '\(arguments.text(index).prefix(32))'")
            }
        }
        connection.writer.version = version
        connection.writer.map(7)
        connection.writer.bulk("server")
        connection.writer.bulk("kvasir")
        connection.writer.bulk("version")
        connection.writer.bulk(KvasirVersion.current)
        connection.writer.bulk("proto")
        connection.writer.integer(version.rawValue)
        connection.writer.bulk("id")
        connection.writer.integer(connection.id)
        connection.writer.bulk("mode")
        connection.writer.bulk("standalone")
        connection.writer.bulk("role")
        connection.writer.bulk("master")
        connection.writer.bulk("modules")
        connection.writer.array(0)
    }

    /// There are no passwords: who may open the socket is trusted. The default user needs none.
    private func refuseUnlessDefault(user: String) throws(CommandError) {
        if user == "default" { return }
        throw CommandError(
            "WRONGPASS",
            "there are no users but 'default': access is by the socket's file permissions")
    }

    private func authenticate(_ arguments: Arguments, _ connection: Connection) throws(CommandError)
    {
        if arguments.count == 2 {
            throw CommandError(
                "ERR",
                "AUTH <password> called without any password configured; access is by the socket's file permissions"
            )
        }
        try refuseUnlessDefault(user: arguments.text(1))
        connection.writer.ok()
    }

    private func select(_ arguments: Arguments, _ connection: Connection) throws(CommandError) {
        guard Argument.integer(arguments[1]) == 0 else {
            throw CommandError("ERR", "DB index is out of range; there is only database 0")
        }
        connection.writer.ok()
    }

    private func clientName(_ arguments: Arguments, _ index: Int) throws(CommandError) -> String {
        let name = arguments[index]
        if name.count > ServerLimits.clientNameBytes
            || name.contains(where: { $0 <= 32 || $0 > 126 })
        {
            throw CommandError(
                "ERR",
                "client names are up to \(ServerLimits.clientNameBytes) printable ASCII characters without spaces"
            )
        }
        return arguments.text(index)
    }

    private func client(_ arguments: Arguments, _ connection: Connection) throws(CommandError) {
        switch (arguments.word(1), arguments.count) {
        case ("ID", 2): connection.writer.integer(connection.id)
        case ("GETNAME", 2):
            if connection.clientName.isEmpty {
                connection.writer.null()
            } else {
                connection.writer.bulk(connection.clientName)
            }
        case ("SETNAME", 3):
            connection.clientName = try clientName(arguments, 2)
            connection.writer.ok()
        case ("SETINFO", 4):
            let value = try clientName(arguments, 3)
            if arguments.matches(2, "LIB-NAME") {
                connection.libraryName = value
            } else if arguments.matches(2, "LIB-VER") {
                connection.libraryVersion = value
            } else {
                throw CommandError("ERR", "CLIENT SETINFO knows LIB-NAME and LIB-VER")
            }
            connection.writer.ok()
        case ("INFO", 2): connection.writer.verbatim(describe(connection) + "\n")
        case ("LIST", _):
            let all = connections.values.sorted { $0.id < $1.id }
            connection.writer.verbatim(all.map { describe($0) + "\n" }.joined())
        case ("NO-EVICT", 3), ("NO-TOUCH", 3), ("MAINT_NOTIFICATIONS", _): connection.writer.ok()
        default:
            throw CommandError(
                "ERR",
                "unknown subcommand or wrong number of arguments for 'CLIENT \(arguments.text(1).prefix(32))'"
            )
        }
    }

    private func describe(_ connection: Connection) -> String {
        let age = (Store.now() - connection.openedAt) / 1_000_000_000
        return
            "id=\(connection.id) name=\(connection.clientName) age=\(age) session=\(connection.session.name) "
            + "resp=\(connection.writer.version.rawValue) lib-name=\(connection.libraryName) "
            + "lib-ver=\(connection.libraryVersion) tot-cmds=\(connection.commandCount)"
    }

    private func command(_ arguments: Arguments, _ connection: Connection) {
        if arguments.count > 1, arguments.matches(1, "COUNT") {
            connection.writer.integer(Self.commands.count)
        } else if arguments.count > 1, arguments.matches(1, "DOCS") {
            connection.writer.map(0)
        } else {
            let names =
                arguments.count > 2
                ? (2..<arguments.count).map { arguments.word($0) } : Self.commands.keys.sorted()
            connection.writer.array(names.count)
            for name in names {
                guard let known = Self.commands[name] else {
                    connection.writer.null()
                    continue
                }
                let isFixed = known.count.lowerBound == known.count.upperBound
                connection.writer.array(10)
                connection.writer.bulk(name.lowercased())
                connection.writer.integer(
                    isFixed ? known.count.lowerBound : -known.count.lowerBound)
                connection.writer.array(0)
                connection.writer.integer(0)
                connection.writer.integer(0)
                connection.writer.integer(0)
                // Categories, tips, key specifications, subcommands.
                for _ in 0..<4 { connection.writer.array(0) }
            }
        }
    }

    /// Tools ask for settings on connecting; there are none that they could change.
    private func config(_ arguments: Arguments, _ connection: Connection) throws(CommandError) {
        guard arguments.matches(1, "GET") else {
            throw CommandError(
                "ERR", "settings are given to 'kvasir serve'; only CONFIG GET is answered")
        }
        connection.writer.map(0)
    }

    private func info(_ arguments: Arguments, _ connection: Connection) {
        var text = "# Server\r\nredis_version:7.0.0\r\nkvasir_version:\(KvasirVersion.current)\r\n"
        text +=
            "process_id:\(getpid())\r\nuptime_in_seconds:\((Store.now() - startedAt) / 1_000_000_000)\r\n"
        text += "\r\n# Clients\r\nconnected_clients:\(connections.count)\r\n"
        text += "\r\n# Kvasir\r\n"
        for (name, value) in statistics { text += "\(name):\(value)\r\n" }
        connection.writer.verbatim(text)
    }

    private func reset(_ arguments: Arguments, _ connection: Connection) {
        connection.writer.version = .resp2
        connection.clientName = ""
        connection.writer.simpleString("RESET")
    }

    private func quit(_ arguments: Arguments, _ connection: Connection) {
        connection.writer.ok()
        connection.isClosing = true
    }
}
