/// How long a model takes for a window, over many runs.
public struct InferenceTimes: Sendable {
    /// Seconds of each run, the shortest first.
    public let seconds: [Double]

    /// - Parameter seconds: of each run, at least one.
    public init(seconds: [Double]) {
        precondition(!seconds.isEmpty, "there must be a run")
        self.seconds = seconds.sorted()
    }

    /// Runs `body` and measures it; the first runs, which load and compile, are not counted.
    public static func measure(warmUps: Int = 5, runs: Int = 100, _ body: () throws -> Void) rethrows -> Self {
        for _ in 0..<warmUps { try body() }
        var seconds: [Double] = []
        for _ in 0..<runs {
            let start = ContinuousClock.now
            try body()
            seconds.append(start.duration(to: .now).inSeconds)
        }
        return InferenceTimes(seconds: seconds)
    }

    public var median: Double { seconds[seconds.count / 2] }

    /// Nineteen of twenty runs are not longer.
    public var percentile95: Double { seconds[(seconds.count * 95 + 99) / 100 - 1] }

    public var isAllowed: Bool { percentile95 < Latency.allowedInference }
}

extension Duration {
    public var inSeconds: Double { Double(components.seconds) + Double(components.attoseconds) * 1e-18 }
}
