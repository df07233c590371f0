import Foundation

/// What the last windows say together: the mean of their log-probabilities, as the evaluation in Python reads the
/// windows of one clip, made to sum to one again.
public struct Smoother {
    /// Half precision may answer zero, whose logarithm would outvote every other window.
    public static let smallestProbability = 1e-7

    public let windows: Int
    private var logs: [[Double]] = []

    /// - Parameter windows: how many are heard together at most; 1 smooths nothing.
    public init(windows: Int) {
        precondition(windows > 0, "at least one window is needed")
        self.windows = windows
    }

    /// Takes in the probabilities of the newest window and returns those of all that are remembered.
    public mutating func add(_ probabilities: [Double]) -> [Double] {
        precondition(logs.allSatisfy { $0.count == probabilities.count }, "every window has the same classes")
        logs.append(probabilities.map { log(max($0, Self.smallestProbability)) })
        logs.removeFirst(max(0, logs.count - windows))
        let means = probabilities.indices.map { i in
            logs.reduce(0.0) { $0 + $1[i] } / Double(logs.count)
        }
        let highest = means.max() ?? 0
        let weights = means.map { exp($0 - highest) }
        let sum = weights.reduce(0, +)
        return weights.map { $0 / sum }
    }

    /// Forgets all windows.
    public mutating func reset() { logs = [] }
}
