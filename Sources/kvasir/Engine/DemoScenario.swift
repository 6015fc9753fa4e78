import Foundation
import KvasirEngine
import ReferenceLM

/// What the demo asks: questions on long documents and a chat of several turns, the users taking turns.
struct DemoScenario {
    /// One request: what to call it, and how its prompt is made.
    struct Request {
        let label: String
        let isChat: Bool
        /// The prompt's tokens, of which those of a chat follow the answer of the turn before.
        fileprivate let part: [UInt32]
        /// The request that this one's prompt continues, with its answer.
        fileprivate let previous: Int?
    }

    static let answerTokens = 32

    private static let documents = [
        (
            "Esther", "Est",
            ["Who was Mordecai?", "What did Haman build?", "Why do the Jews keep Purim?"]
        ),
        (
            "Ecclesiastes", "Eccl",
            ["What is vanity?", "Is there a time for all?", "What is the end of it?"]
        ),
        (
            "2 Corinthians", "2Cor",
            ["Who wrote this letter?", "What is the thorn?", "Whom does God love?"]
        ),
    ]
    private static let chat = (
        "Ruth", ["Who is Naomi?", "Where did she go?", "Who is Boaz?", "And who was Obed's son?"]
    )

    let requests: [Request]

    /// The names of the documents.
    static var documentNames: String { documents.map(\.0).joined(separator: ", ") }
    static var chatName: String { chat.0 }
    static var chatTurns: Int { chat.1.count }

    init(corpus path: String, tokenizer: Tokenizer) throws {
        let books = try Self.books(path)
        func encode(_ text: String) -> [UInt32] {
            tokenizer.encode(text, addSpecialTokens: false)
        }
        let begin = tokenizer.encode("")
        var made: [Request] = []
        var lastTurn: Int?
        for round in 0..<max(Self.chat.1.count, 3) {
            if round < Self.chat.1.count {
                let beginning =
                    round == 0
                    ? begin
                        + encode(
                            "system: We talk about this text.\n\(try Self.book(Self.chat.0, books))\n"
                        )
                    : encode("\n")
                let question = Self.chat.1[round]
                made.append(
                    Request(
                        label: "Chat on \(Self.chat.0) \(round + 1): \(question)", isChat: true,
                        part: beginning + encode("user: \(question)\nassistant:"),
                        previous: lastTurn))
                lastTurn = made.count - 1
            }
            for (title, name, questions) in Self.documents where round < questions.count {
                let text = "The book of \(title):\n\(try Self.book(name, books))"
                made.append(
                    Request(
                        label: "\(title): \(questions[round])", isChat: false,
                        part: begin + encode("\(text)\n\nQuestion: \(questions[round])\nAnswer:"),
                        previous: nil))
            }
        }
        requests = made
    }

    /// The prompt of a request, given what was answered to those before it.
    func prompt(_ number: Int, answers: [[UInt32]]) -> [UInt32] {
        let request = requests[number]
        guard let previous = request.previous else { return request.part }
        return prompt(previous, answers: answers) + answers[previous] + request.part
    }

    /// A line a verse, which begins with the book's short name.
    private static func books(_ path: String) throws -> [Substring: [Substring]] {
        var books: [Substring: [Substring]] = [:]
        for line in try TextFile.read(path).split(separator: "\n") {
            books[line.prefix { $0 != " " }, default: []].append(line)
        }
        return books
    }

    private static func book(
        _ name: String, _ books: [Substring: [Substring]]
    ) throws -> String {
        guard let lines = books[Substring(name)] else {
            throw CommandFailure(
                "the corpus has no book '\(name)'; give the folder models/tiny-kjv of the repository with --model"
            )
        }
        return lines.joined(separator: "\n")
    }
}
