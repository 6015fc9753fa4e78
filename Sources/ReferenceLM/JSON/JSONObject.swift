/// The members of a JSON object in the order of the file, no two of which have the same name.
struct JSONObject: Sendable {
    /// A name and its value.
    struct Member: Sendable {
        let name: ByteString
        let value: JSON
    }

    /// The error that two members have this name.
    struct RepeatedName: Error {
        let name: ByteString
    }

    let members: [Member]
    /// The place of each member; empty where there are so few that looking through them is faster.
    private let places: [ByteString: Int]

    /// Up to so many members are looked through.
    private static let fewMembers = 8

    /// Makes an object; takes time in proportion to the members.
    init(_ members: [Member]) throws(RepeatedName) {
        var places: [ByteString: Int] = [:]
        if members.count > Self.fewMembers {
            places.reserveCapacity(members.count)
            for (place, member) in members.enumerated() {
                if places.updateValue(place, forKey: member.name) != nil {
                    throw RepeatedName(name: member.name)
                }
            }
        } else {
            for (place, member) in members.enumerated() {
                for earlier in members[..<place] where earlier.name == member.name {
                    throw RepeatedName(name: member.name)
                }
            }
        }
        self.members = members
        self.places = places
    }

    /// The value of a name; nil if there is no such member. Takes the same time in any object.
    subscript(_ name: ByteString) -> JSON? {
        if places.isEmpty { return members.first { $0.name == name }?.value }
        return places[name].map { members[$0].value }
    }

    subscript(_ name: String) -> JSON? { self[ByteString(name)] }
}

extension JSONObject: Equatable {
    /// Whether both have the same members, in whatever order.
    static func == (left: JSONObject, right: JSONObject) -> Bool {
        left.members.count == right.members.count
            && left.members.allSatisfy { right[$0.name] == $0.value }
    }
}

extension JSONObject {
    /// Reads the object that fills a file.
    ///
    /// - Parameter failure: makes the error from what is wrong, which is to be read after the name
    ///   of the file.
    init(parsing text: [UInt8], failure: (String) -> ModelError) throws(ModelError) {
        let value: JSON
        do {
            value = try JSON(parsing: text)
        } catch {
            throw failure("is not valid JSON: \(error.message)")
        }
        guard let object = value.object else {
            throw failure("holds \(value.shown), expected an object")
        }
        self = object
    }
}
