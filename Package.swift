// swift-tools-version: 6.2
import PackageDescription

// The rooms of the house. A target imports only what stands below it; docs/architecture.md has the
// picture.
let settings: [SwiftSetting] = [
    .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("MemberImportVisibility"),
    .enableUpcomingFeature("InternalImportsByDefault"),
]

/// The fuzzers are declared only when asked for (`make fuzz`): they need another run-time library.
let isFuzzing = Context.environment["KV_FUZZ"] != nil
let instrumented: [SwiftSetting] = isFuzzing ? [.unsafeFlags(["-sanitize=fuzzer,address"])] : []

let memorySafe: [SwiftSetting] = settings + [.strictMemorySafety()]
let parserSettings: [SwiftSetting] = memorySafe + instrumented

let package = Package(
    name: "kvasir",
    products: [
        .library(name: "KVStore", targets: ["KVStore"]),
        .library(name: "KVPolicy", targets: ["KVPolicy"]),
        .library(name: "KVIdentity", targets: ["KVIdentity"]),
        .library(name: "KVClient", targets: ["KVClient"]),
        .library(name: "ReferenceLM", targets: ["ReferenceLM"]),
        .library(name: "KvasirEngine", targets: ["KvasirEngine"]),
        .executable(name: "kvasir", targets: ["kvasir"]),
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
        .package(url: "https://github.com/apple/swift-crypto", from: "4.5.2"),
        .package(url: "https://github.com/apple/swift-log", from: "1.16.2"),
        .package(url: "https://github.com/apple/swift-system", from: "1.8.1"),
    ],
    targets: [
        .target(name: "CKvasir"),
        .target(name: "CXXHash", exclude: ["LICENSE"]),
        .target(
            name: "KVIdentity", dependencies: [.product(name: "Crypto", package: "swift-crypto")],
            swiftSettings: memorySafe),
        .target(name: "KVPolicy", swiftSettings: settings),
        .target(name: "KVThreads", dependencies: ["CKvasir"], swiftSettings: settings),
        .target(name: "KVArena", dependencies: ["CKvasir"], swiftSettings: settings),
        .target(
            name: "KVDiskFormat", dependencies: ["KVIdentity", "CXXHash"],
            swiftSettings: memorySafe),
        .target(name: "KVTier", dependencies: ["KVIdentity"], swiftSettings: memorySafe),
        .target(
            name: "KVDisk",
            dependencies: [
                "CKvasir", "KVDiskFormat", "KVIdentity", "KVThreads", "KVTier",
                .product(name: "SystemPackage", package: "swift-system"),
            ],
            swiftSettings: settings),
        .target(name: "RESP", swiftSettings: parserSettings),
        .target(
            name: "KVStore",
            dependencies: [
                "KVIdentity", "KVPolicy", "KVArena", "KVDisk", "KVThreads", "KVTier", "CXXHash",
                .product(name: "Logging", package: "swift-log"),
            ],
            swiftSettings: settings),
        .target(
            name: "KVSimulator",
            dependencies: ["KVDisk", "KVDiskFormat", "KVIdentity", "KVPolicy", "KVStore"],
            swiftSettings: settings),
        .target(name: "KVSocket", dependencies: ["CKvasir"], swiftSettings: settings),
        .target(
            name: "KVRequestLog",
            dependencies: [
                "KVIdentity", "KVPolicy", "KVThreads",
                .product(name: "Crypto", package: "swift-crypto"),
                .product(name: "Logging", package: "swift-log"),
            ],
            swiftSettings: settings),
        .target(
            name: "KVService",
            dependencies: [
                "KVPolicy", "KVStore", "KVIdentity", "KVArena", "KVRequestLog", "KVSocket",
                "KVThreads", "RESP", "CKvasir",
                .product(name: "Logging", package: "swift-log"),
            ],
            swiftSettings: settings),
        .target(
            name: "KVClient",
            dependencies: ["KVIdentity", "KVPolicy", "KVSocket", "KVThreads", "RESP", "CKvasir"],
            swiftSettings: settings),
        // A small transformer that knows nothing of Kvasir, and the glue between the two.
        .target(name: "CKernels"),
        .target(name: "ReferenceLM", dependencies: ["CKernels"], swiftSettings: settings),
        .target(
            name: "KvasirEngine",
            dependencies: [
                "ReferenceLM", "KVClient", "KVStore", "KVIdentity", "KVPolicy", "KVThreads",
                .product(name: "Logging", package: "swift-log"),
            ],
            swiftSettings: settings),
        .executableTarget(
            name: "kvasir",
            dependencies: [
                "KVService", "KVStore", "KVSimulator", "KVPolicy", "KVArena", "KVRequestLog",
                "KVSocket", "KVThreads", "RESP", "KVClient", "KVIdentity", "KVDisk", "KVDiskFormat",
                "KVTier",
                "KvasirEngine", "ReferenceLM", "CKernels", "CKvasir",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
                .product(name: "Logging", package: "swift-log"),
            ],
            swiftSettings: settings),
        .testTarget(
            name: "KVIdentityTests", dependencies: ["TestRandom", "KVIdentity"],
            exclude: ["Resources"],
            swiftSettings: settings),
        .testTarget(
            name: "RESPTests", dependencies: ["TestRandom", "RESP"], swiftSettings: settings),
        .testTarget(
            name: "KVPolicyTests", dependencies: ["TestRandom", "KVPolicy"], swiftSettings: settings
        ),
        .testTarget(name: "KVArenaTests", dependencies: ["KVArena"], swiftSettings: settings),
        .testTarget(
            name: "KVDiskFormatTests", dependencies: ["TestRandom", "KVDiskFormat", "KVIdentity"],
            exclude: ["Resources"], swiftSettings: settings),
        .testTarget(
            name: "KVDiskTests",
            dependencies: [
                "TestRandom", "TestDisk", "KVDisk", "KVDiskFormat", "KVIdentity", "KVThreads",
                "KVTier", "CKvasir",
            ],
            swiftSettings: settings),
        .testTarget(
            name: "KVStoreTests",
            dependencies: [
                "TestRandom", "KVStore", "KVIdentity", "KVArena", "KVPolicy", "KVDisk",
                "KVDiskFormat",
                "KVThreads", "KVTier",
                .product(name: "Logging", package: "swift-log"),
            ],
            swiftSettings: settings),
        .testTarget(
            name: "KVSimulatorTests",
            dependencies: [
                "kvasir", "TestRandom", "KVSimulator", "KVDisk", "KVIdentity", "KVPolicy",
                "KVStore",
            ],
            swiftSettings: settings),
        .testTarget(
            name: "KVRequestLogTests",
            dependencies: [
                "KVRequestLog", "KVSimulator", "KVIdentity", "KVPolicy",
                .product(name: "Logging", package: "swift-log"),
            ],
            swiftSettings: settings),
        .target(name: "TestRandom", path: "Tests/TestRandom", swiftSettings: settings),
        .target(
            name: "TestDisk", dependencies: ["TestRandom", "KVDiskFormat", "KVIdentity"],
            path: "Tests/TestDisk", swiftSettings: settings),
        .target(
            name: "TestSupport",
            dependencies: [
                "KVClient", "KVRequestLog", "KVService", "KVStore",
                .product(name: "Logging", package: "swift-log"),
            ],
            path: "Tests/TestSupport", swiftSettings: settings),
        .testTarget(
            name: "KVClientTests",
            dependencies: [
                "TestSupport", "KVClient", "KVPolicy", "KVService", "KVStore", "KVIdentity",
                "KVSocket", "RESP",
                .product(name: "Logging", package: "swift-log"),
            ],
            swiftSettings: settings),
        .testTarget(
            name: "kvasirTests",
            dependencies: [
                "kvasir", "TestDisk", "KVDisk", "KVDiskFormat", "KVIdentity", "ReferenceLM",
            ],
            swiftSettings: settings),
        .testTarget(
            name: "CKernelsTests", dependencies: ["TestRandom", "CKernels"], swiftSettings: settings
        ),
        .testTarget(
            name: "ReferenceLMTests", dependencies: ["ReferenceLM"], exclude: ["Resources"],
            swiftSettings: settings),
        .testTarget(
            name: "KvasirEngineTests",
            dependencies: [
                "TestSupport", "KvasirEngine", "ReferenceLM", "KVClient", "KVStore", "KVIdentity",
                "KVPolicy",
                .product(name: "Logging", package: "swift-log"),
            ],
            swiftSettings: settings),
    ]
)

if isFuzzing {
    let fuzzerSettings: [SwiftSetting] =
        settings + [.unsafeFlags(["-sanitize=fuzzer,address", "-parse-as-library"])]
    let fuzzerLinking: [LinkerSetting] = [
        .unsafeFlags(["-sanitize=fuzzer,address", "-use-ld=lld"])
    ]
    package.targets.append(.target(name: "CFuzz", path: "Fuzz/CFuzz"))
    package.targets.append(
        .executableTarget(
            name: "FuzzRESP", dependencies: ["RESP", "CFuzz"], path: "Fuzz/FuzzRESP",
            swiftSettings: fuzzerSettings, linkerSettings: fuzzerLinking))
}
