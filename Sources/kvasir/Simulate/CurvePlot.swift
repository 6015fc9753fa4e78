import Foundation
import KVSimulator

/// A drawing of the share found over the size of the memory, as SVG.
struct CurvePlot {
    /// Sizes of each curve.
    static let pointCount = 32

    let title: String
    let chunkTokens: Int
    let tokenBytes: Double?
    let points: [Simulation.Point]
    let unboundedShare: Double
    var cluster = Simulation.Cluster()

    private static let width = 880.0
    private static let height = 500.0
    private static let left = 64.0
    private static let right = 190.0
    private static let top = 76.0
    private static let bottom = 84.0

    /// Colours that people who see few colours can tell apart (Okabe and Ito).
    private static let colours = [
        "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#7F7F7F", "#8C6D31",
    ]
    private static let optimumColour = "#111111"
    private static let ink = "#222222"
    private static let faint = "#E3E3E3"
    private static let grey = "#6B6B6B"

    private struct Curve {
        var name: String
        var colour: String
        var isDashed: Bool
        var points: [(capacity: Double, share: Double)]

        var mean: Double { points.reduce(0) { $0 + $1.share } / Double(max(1, points.count)) }
    }

    var svg: String {
        let curves = self.curves()
        let scale = Scale(curves, unboundedShare: unboundedShare)
        var parts = [
            """
            <svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 \(Int(Self.width)) \(Int(Self.height))" \
            width="\(Int(Self.width))" height="\(Int(Self.height))" \
            font-family="system-ui, 'DejaVu Sans', 'Segoe UI', Helvetica, Arial, sans-serif">
            """,
            "<title>\(Self.escaped(title)): share of tokens found by size of the memory</title>",
            "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>",
            text(Self.left, 30, title, size: 17, weight: 600),
            text(
                Self.left, 52, "Tokens found, in % of those of all prompts, by size of the \(what)",
                size: 13, colour: Self.grey),
        ]
        parts += grid(scale)
        parts += unbounded(scale)
        parts += curves.map { path($0, scale) }
        parts += legend(curves.sorted { ($0.mean, $1.name) > ($1.mean, $0.name) })
        parts.append("</svg>")
        return parts.joined(separator: "\n") + "\n"
    }

    /// What has the size.
    private var what: String {
        if cluster.servers == 1 { return "memory" }
        return cluster.sharing == .all
            ? "memory that each of \(cluster.servers) servers brings to one cache"
            : "memory of each of \(cluster.servers) servers"
    }

    private func curves() -> [Curve] {
        var curves: [Curve] = []
        var coloured = 0
        // Names for one and the same thing share a curve.
        var names: [String: [String]] = [:]
        for contender in points.map(\.contender)
        where names[contender.runs]?.contains(contender.name) != true {
            names[contender.runs, default: []].append(contender.name)
        }
        for point in points {
            let shared = names[point.contender.runs] ?? []
            if point.contender.name != shared.first { continue }
            let name = shared.joined(separator: ", ")
            if curves.last?.name != name {
                let isOptimum = point.contender.decider == .optimum
                curves.append(
                    Curve(
                        name: name,
                        colour: isOptimum
                            ? Self.optimumColour : Self.colours[coloured % Self.colours.count],
                        isDashed: isOptimum, points: []))
                if !isOptimum { coloured += 1 }
            }
            curves[curves.count - 1].points.append(
                (Double(point.capacity), point.result.tokenShare))
        }
        return curves
    }

    // MARK: Axes

    private struct Scale {
        var low: Double
        var high: Double
        /// Of the vertical axis, in percent.
        var top: Double
        var step: Double

        init(_ curves: [Curve], unboundedShare: Double) {
            let capacities = curves.flatMap { $0.points.map(\.capacity) }
            low = max(1, capacities.min() ?? 1)
            high = max(low * 2, capacities.max() ?? 2)
            let most =
                100 * max(unboundedShare, curves.flatMap { $0.points.map(\.share) }.max() ?? 0)
            step = [1.0, 2, 5, 10, 20].first { most / $0 <= 7 } ?? 20
            top = max(step, ((most * 1.04) / step).rounded(.up) * step)
        }

        func x(_ capacity: Double) -> Double {
            let share = log(capacity / low) / log(high / low)
            return CurvePlot.left + share * (CurvePlot.width - CurvePlot.left - CurvePlot.right)
        }

        func y(_ percent: Double) -> Double {
            CurvePlot.height - CurvePlot.bottom
                - percent / top * (CurvePlot.height - CurvePlot.top - CurvePlot.bottom)
        }
    }

    private func grid(_ scale: Scale) -> [String] {
        var parts: [String] = []
        let rightEnd = Self.width - Self.right
        var percent = 0.0
        while percent <= scale.top + 0.001 {
            let y = scale.y(percent)
            parts.append(line(Self.left, y, rightEnd, y, percent == 0 ? Self.ink : Self.faint))
            parts.append(
                text(
                    Self.left - 8, y + 4, "\(Format.fixed(percent, 0)) %", size: 12,
                    colour: Self.grey, anchor: "end"))
            percent += scale.step
        }
        let base = scale.y(0)
        for tick in Self.ticks(scale.low, scale.high) {
            let x = scale.x(tick)
            parts.append(line(x, base, x, base + 5, Self.ink))
            parts.append(text(x, base + 20, Self.short(tick), size: 12, anchor: "middle"))
            let tokens = tick * Double(chunkTokens)
            let second =
                tokenBytes.map { Format.quantity(tokens * $0) + "B" } ?? Format.quantity(tokens)
            parts.append(
                text(x, base + 37, second, size: 11, colour: Self.grey, anchor: "middle"))
        }
        let unit = tokenBytes == nil ? "tokens" : "bytes"
        parts.append(
            text(
                (Self.left + rightEnd) / 2, base + 62,
                "size of the memory, in chunks of \(chunkTokens) tokens; below in \(unit)",
                size: 12,
                colour: Self.grey, anchor: "middle"))
        return parts
    }

    /// `300`, `1 k`, `30 k`.
    private static func short(_ value: Double) -> String {
        Format.quantity(value).replacingOccurrences(
            of: "\\.0+ ", with: " ", options: .regularExpression)
    }

    /// 1, 2 and 5 of each power of ten; fewer where they would stand too close.
    private static func ticks(_ low: Double, _ high: Double) -> [Double] {
        let decades = log10(high / low)
        let steps: [Double] = decades > 4.5 ? [1] : decades > 2.2 ? [1, 3] : [1, 2, 5]
        var ticks: [Double] = []
        var power = pow(10, log10(low).rounded(.down))
        while power <= high {
            ticks += steps.map { $0 * power }.filter { $0 >= low * 0.999 && $0 <= high * 1.001 }
            power *= 10
        }
        return ticks
    }

    private func unbounded(_ scale: Scale) -> [String] {
        let y = scale.y(unboundedShare * 100)
        return [
            "<line x1=\"\(Self.left)\" y1=\"\(coordinate(y))\" x2=\"\(Self.width - Self.right)\" "
                + "y2=\"\(coordinate(y))\" stroke=\"\(Self.grey)\" stroke-width=\"1\" "
                + "stroke-dasharray=\"2 4\"/>",
            text(
                Self.left + 8, y - 6,
                "a cache without bound: \(Format.fixed(unboundedShare * 100, 1)) %", size: 11,
                colour: Self.grey),
        ]
    }

    // MARK: Curves

    private func path(_ curve: Curve, _ scale: Scale) -> String {
        let steps = curve.points.map {
            "\(coordinate(scale.x($0.capacity))) \(coordinate(scale.y($0.share * 100)))"
        }
        let dash = curve.isDashed ? " stroke-dasharray=\"7 4\"" : ""
        return "<path d=\"M \(steps.joined(separator: " L "))\" fill=\"none\" "
            + "stroke=\"\(curve.colour)\" stroke-width=\"2.2\" stroke-linejoin=\"round\"\(dash)/>"
    }

    /// In the order of the curves, the highest first.
    private func legend(_ curves: [Curve]) -> [String] {
        let x = Self.width - Self.right + 22
        return curves.enumerated().flatMap { place, curve in
            let y = Self.top + 8 + Double(place) * 24
            let dash = curve.isDashed ? " stroke-dasharray=\"7 4\"" : ""
            return [
                "<line x1=\"\(x)\" y1=\"\(y)\" x2=\"\(x + 28)\" y2=\"\(y)\" "
                    + "stroke=\"\(curve.colour)\" stroke-width=\"2.6\"\(dash)/>",
                text(x + 36, y + 4, curve.name, size: 13),
            ]
        }
    }

    // MARK: Elements

    private func line(
        _ x1: Double, _ y1: Double, _ x2: Double, _ y2: Double, _ colour: String
    ) -> String {
        "<line x1=\"\(coordinate(x1))\" y1=\"\(coordinate(y1))\" x2=\"\(coordinate(x2))\" "
            + "y2=\"\(coordinate(y2))\" stroke=\"\(colour)\" stroke-width=\"1\"/>"
    }

    private func text(
        _ x: Double, _ y: Double, _ content: String, size: Int, colour: String = ink,
        weight: Int = 400, anchor: String = "start"
    ) -> String {
        "<text x=\"\(coordinate(x))\" y=\"\(coordinate(y))\" font-size=\"\(size)\" "
            + "font-weight=\"\(weight)\" fill=\"\(colour)\" text-anchor=\"\(anchor)\">"
            + "\(Self.escaped(content))</text>"
    }

    private func coordinate(_ value: Double) -> String { Format.fixed(value, 1) }

    private static func escaped(_ text: String) -> String {
        text.replacingOccurrences(of: "&", with: "&amp;").replacingOccurrences(
            of: "<", with: "&lt;"
        ).replacingOccurrences(of: ">", with: "&gt;")
    }
}
