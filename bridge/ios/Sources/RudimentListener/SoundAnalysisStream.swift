#if canImport(SoundAnalysis) && canImport(CoreML)
import AVFoundation
import CoreML
import RudimentWindows
import SoundAnalysis

/// The converted network, asked through Apple's SoundAnalysis, which resamples and cuts windows itself.
///
/// Its windows are the model's own, 5 s, with nothing cut off and nothing filled. Give it one stream without gaps.
final class SoundAnalysisStream: NSObject, SNResultsObserving {
    private let analyzer: SNAudioStreamAnalyzer
    private let format: AVAudioFormat
    private var position: AVAudioFramePosition = 0
    private let lock = NSLock()
    private var answers: [Answer] = []
    private var problem: Error?

    init(model: MLModel, sampleRate: Double, overlap: Double) throws {
        guard let format = AVAudioFormat(standardFormatWithSampleRate: sampleRate, channels: 1) else {
            throw Microphone.Problem.noInput
        }
        self.format = format
        analyzer = SNAudioStreamAnalyzer(format: format)
        super.init()
        let request = try SNClassifySoundRequest(mlModel: model)
        request.overlapFactor = overlap
        try analyzer.add(request, withObserver: self)
    }

    var sampleRate: Double { format.sampleRate }

    /// The next samples of the stream.
    func analyze(_ samples: [Float]) {
        guard !samples.isEmpty, let buffer = AVAudioPCMBuffer.mono(samples, format: format) else { return }
        analyzer.analyze(buffer, atAudioFramePosition: position)
        position += AVAudioFramePosition(samples.count)
    }

    /// What was answered since the last call, the oldest first.
    func takeAnswers() throws -> [Answer] {
        lock.lock()
        defer {
            answers = []
            lock.unlock()
        }
        if let problem { throw problem }
        return answers
    }

    // MARK: - SNResultsObserving; on whatever thread

    func request(_ request: SNRequest, didProduce result: SNResult) {
        guard let result = result as? SNClassificationResult else { return }
        var probabilities: [String: Double] = [:]
        for classification in result.classifications {
            probabilities[classification.identifier] = classification.confidence
        }
        lock.lock()
        defer { lock.unlock() }
        answers.append(Answer(probabilities: probabilities, strokes: nil))
    }

    func request(_ request: SNRequest, didFailWithError error: Error) {
        lock.lock()
        defer { lock.unlock() }
        problem = error
    }
}
#endif
