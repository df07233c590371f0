import Foundation

/// How a stream is cut into windows and their answers are joined.
public struct ListeningSettings: Equatable, Sendable {
    /// Seconds of playing that one answer is about. Shorter than the model's window, they go round in a circle.
    public var window = 5.0
    /// Part of a window that is also in the next.
    public var overlap = 0.5
    /// Seconds from window to window, instead of `overlap`.
    public var hop: Double?
    /// Windows that are heard together.
    public var smoothedWindows = 3
    /// A window whose loudest 10 ms are softer is silence: decibels of full scale. A guess, to be set on a device.
    public var silenceDecibels = -50.0

    public static let windowRange = 1.5...5.0

    public init() {}
}

/// Everything between the microphone and the model, and between the model and the screen, without either.
///
///     if let input = session.hear(samples) { show(session.answer(model(input))) }
public struct ListeningSession {
    public let settings: ListeningSettings
    public let sampleRate: Int
    public let modelSamples: Int
    private var sliding: SlidingWindow
    private var smoother: Smoother

    /// - Parameters:
    ///   - sampleRate: the model's, Hz.
    ///   - modelSamples: length of its input.
    public init(settings: ListeningSettings, sampleRate: Int, modelSamples: Int) {
        precondition(
            ListeningSettings.windowRange.contains(settings.window),
            "a window lasts \(ListeningSettings.windowRange) s, not \(settings.window)")
        self.settings = settings
        self.sampleRate = sampleRate
        self.modelSamples = modelSamples
        let length = min(modelSamples, Int((settings.window * Double(sampleRate)).rounded()))
        let hop = settings.hop.map { Int(($0 * Double(sampleRate)).rounded()) }
        sliding = SlidingWindow(
            length: length, hop: hop ?? SlidingWindow.hop(length: length, overlap: settings.overlap))
        smoother = Smoother(windows: settings.smoothedWindows)
    }

    /// Takes in samples at the model's rate and returns the model's input for the newest window that they complete;
    /// nil if none is complete, or if it is silent. Silence also ends what was smoothed: what follows is another take.
    ///
    /// Older windows that are complete as well are left out: a phone that is too slow skips, it does not fall behind.
    public mutating func hear(_ samples: [Float]) -> [Float]? {
        guard let window = sliding.push(samples).last else { return nil }
        if Loudness.peakDecibels(window, sampleRate: sampleRate) < settings.silenceDecibels {
            smoother.reset()
            return nil
        }
        let length = LengthPolicy.lengthWithoutTail(window, sampleRate: sampleRate)
        return LengthPolicy.loopFill(Array(window.prefix(length)), count: modelSamples)
    }

    /// Takes in the model's probabilities of the window and returns those of the last ones together.
    public mutating func answer(_ probabilities: [Double]) -> [Double] { smoother.add(probabilities) }

    /// After a gap in the stream: nothing before it is remembered.
    public mutating func reset() {
        sliding.reset()
        smoother.reset()
    }
}
