/// A stream of samples as overlapping windows, however the stream is cut into pieces: window k holds the samples
/// `k · hop ..< k · hop + length` since the last reset.
public struct SlidingWindow {
    public let length: Int
    public let hop: Int
    private var waiting: [Float] = []

    /// - Parameters:
    ///   - length: samples of a window.
    ///   - hop: from the start of one window to the start of the next, 1 … length.
    public init(length: Int, hop: Int) {
        precondition(0 < hop && hop <= length, "windows of \(length) samples need a hop between 1 and \(length)")
        self.length = length
        self.hop = hop
    }

    /// The hop of windows that overlap by this part of their length, 0 ..< 1; in whole samples, at least 1.
    public static func hop(length: Int, overlap: Double) -> Int {
        precondition(0 <= overlap && overlap < 1, "windows overlap by 0 ..< 1 of their length, not \(overlap)")
        return max(1, Int(Double(length) * (1 - overlap)))
    }

    /// Takes in samples and returns the windows that they complete, the oldest first.
    public mutating func push(_ samples: [Float]) -> [[Float]] {
        waiting += samples
        var windows: [[Float]] = []
        var begin = 0
        while begin + length <= waiting.count {
            windows.append(Array(waiting[begin..<(begin + length)]))
            begin += hop
        }
        waiting.removeFirst(begin)
        return windows
    }

    /// Begins anew with the next sample.
    public mutating func reset() { waiting = [] }
}
