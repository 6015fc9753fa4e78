/// How long chunks are kept from eviction.
public enum PinDuration: Sendable, Hashable {
    /// For so long from the request on: 1 to a year.
    case milliseconds(Int)
    /// Until it is taken back or they are dropped: they are static. Where the store has disks that
    /// outlives restarts.
    case forever
}
