/// From the last sample of a window to its answer, in seconds: what a phone adds to the length of the window itself.
public struct Latency: Equatable, Sendable {
    /// What a drummer may be kept waiting.
    public static let allowed = 0.100
    /// What the model may take of it, on an A15 or later.
    public static let allowedInference = 0.030

    /// Samples wait until the hardware's buffer is full.
    public var hardwareBuffer: Double
    /// Then for the reader to look, at most its period.
    public var polling: Double
    /// The resampling filter looks ahead.
    public var resampler: Double
    /// The model's own time.
    public var inference: Double

    public init(hardwareBuffer: Double, polling: Double, resampler: Double, inference: Double) {
        self.hardwareBuffer = hardwareBuffer
        self.polling = polling
        self.resampler = resampler
        self.inference = inference
    }

    /// The longest that the last sample of a window waits for its answer.
    public var total: Double { hardwareBuffer + polling + resampler + inference }

    public var isAllowed: Bool { total < Self.allowed }

    /// About how long after a drummer changes the rudiment the new one fills most of the windows that are heard
    /// together: half of what they span, up to a hop until the next window, and the phone's own time.
    public func untilChangeIsHeard(window: Double, hop: Double, smoothedWindows: Int) -> Double {
        (window + Double(smoothedWindows - 1) * hop) / 2 + hop + total
    }
}
