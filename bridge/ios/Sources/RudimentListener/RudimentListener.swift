#if canImport(AVFoundation) && canImport(CoreML) && canImport(SoundAnalysis)
import AVFoundation
import CoreML
import RudimentWindows

/// What is known after a window.
public struct Reading: Sendable {
    /// All rudiments, the likeliest first, of the last windows together.
    public let ranked: [Candidate]
    /// Of the newest window alone.
    public let answer: Answer
    /// From its last sample to this reading; nil through SoundAnalysis, which does not tell its own time.
    public let latency: Latency?
}

/// Names the rudiment that is played before the microphone.
///
///     for try await reading in RudimentListener(model: model).readings() { … }
public final class RudimentListener: Sendable {
    public enum Way: Sendable, CaseIterable {
        /// The model is asked directly, with the length policy of training.
        case model
        /// Through SoundAnalysis, with windows of the model's length as they come.
        case soundAnalysis
    }

    /// Seconds from one look at the microphone to the next.
    public static let period = 0.010
    /// Seconds that the resampling filter looks ahead: an allowance, not measured.
    public static let resamplerAllowance = 0.005

    private let model: RudimentModel
    private let settings: ListeningSettings
    private let way: Way

    public init(model: RudimentModel, settings: ListeningSettings = ListeningSettings(), way: Way = .model) {
        self.model = model
        self.settings = settings
        self.way = way
    }

    /// Listens until nobody waits for a reading any more. Ends with an error if the microphone or the model fails.
    public func readings() -> AsyncThrowingStream<Reading, Error> {
        AsyncThrowingStream(Reading.self, bufferingPolicy: .bufferingNewest(1)) { continuation in
            let task = Task.detached(priority: .userInitiated) {
                let microphone = Microphone()
                do {
                    try await microphone.start()
                    switch self.way {
                    case .model: try await self.askDirectly(microphone) { continuation.yield($0) }
                    case .soundAnalysis: try await self.askSoundAnalysis(microphone) { continuation.yield($0) }
                    }
                    continuation.finish()
                } catch {
                    continuation.finish(throwing: error is CancellationError ? nil : error)
                }
                await microphone.stop()
            }
            continuation.onTermination = { _ in task.cancel() }
        }
    }

    private func askDirectly(_ microphone: Microphone, _ report: (Reading) -> Void) async throws {
        var session = ListeningSession(settings: settings, sampleRate: model.sampleRate, modelSamples: model.samples)
        var resampler: Resampler?
        while true {
            let piece = try await microphone.drain()
            if piece.isAfterGap { (resampler, _) = (nil, session.reset()) }
            let stream = try resampler ?? Resampler(from: piece.sampleRate, to: Double(model.sampleRate))
            resampler = stream
            if let input = session.hear(try stream.convert(piece.samples)) {
                let start = ContinuousClock.now
                let answer = try model.answer(to: input)
                let latency = Latency(
                    hardwareBuffer: await microphone.bufferLatency, polling: Self.period,
                    resampler: Self.resamplerAllowance, inference: start.duration(to: .now).inSeconds)
                report(
                    Reading(ranked: Candidate.ranked(session.answer(answer.inOrder)), answer: answer, latency: latency))
            }
            try await Task.sleep(for: .seconds(Self.period))
        }
    }

    private func askSoundAnalysis(_ microphone: Microphone, _ report: (Reading) -> Void) async throws {
        var smoother = Smoother(windows: settings.smoothedWindows)
        var analysis: SoundAnalysisStream?
        while true {
            let piece = try await microphone.drain()
            if piece.isAfterGap { (analysis, _) = (nil, smoother.reset()) }
            let stream =
                try analysis
                ?? SoundAnalysisStream(model: model.model, sampleRate: piece.sampleRate, overlap: settings.overlap)
            analysis = stream
            stream.analyze(piece.samples)
            for answer in try stream.takeAnswers() {
                report(Reading(ranked: Candidate.ranked(smoother.add(answer.inOrder)), answer: answer, latency: nil))
            }
            try await Task.sleep(for: .seconds(Self.period))
        }
    }
}
#endif
