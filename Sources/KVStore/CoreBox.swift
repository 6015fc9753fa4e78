package import KVPolicy

/// A core on the heap, for who drives one from another module, where a value with a `deinit` of its own
/// inside can't be destroyed.
package final class CoreBox {
    private var core: StoreCore

    package init(_ configuration: StoreCore.Configuration, policy: any EvictionPolicy) {
        core = StoreCore(configuration, policy: policy)
    }

    /// Lets `body` change the core.
    package func withCore<Result>(_ body: (inout StoreCore) throws -> Result) rethrows -> Result {
        try body(&core)
    }
}
