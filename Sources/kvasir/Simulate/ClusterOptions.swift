import ArgumentParser
import KVSimulator

/// Several servers.
struct ClusterOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp("Servers, each with memory and disk of that size.", valueName: "n"))
    var nodes = 1

    @Option(
        help: ArgumentHelp(
            "Which of them gets a request: that of its session, each in turn, or any.",
            valueName: "rule"))
    var routing = Routing.session

    @Option(
        help: ArgumentHelp(
            "What they share: nothing; one disk of all their sizes, before which each has a memory "
                + "of its own; or all, as one cache.", valueName: "what"))
    var share = Simulation.Sharing.none

    func validate() throws {
        if !(1...1000).contains(nodes) {
            throw ValidationError("--nodes takes 1 to 1000, not \(nodes)")
        }
        if share != .none, nodes == 1 {
            throw ValidationError("--share needs several servers: --nodes 4, say")
        }
    }

    var cluster: Simulation.Cluster {
        var cluster = Simulation.Cluster()
        cluster.servers = nodes
        cluster.routing = routing
        cluster.sharing = share
        return cluster
    }
}

extension Routing: ExpressibleByArgument {}
extension Simulation.Sharing: ExpressibleByArgument {}
