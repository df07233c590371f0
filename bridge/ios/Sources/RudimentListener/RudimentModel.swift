#if canImport(CoreML)
import CoreML
import RudimentWindows

/// What a network answers to one window.
public struct Answer: Sendable {
    /// By slug.
    public let probabilities: [String: Double]
    /// Of a network with a stroke head: onset, velocity, grace and density of every frame, one stream after another.
    public let strokes: [Float]?

    /// In the order of `Rudiment.all`.
    public var inOrder: [Double] { Rudiment.all.map { probabilities[$0.slug] ?? 0 } }
}

/// The converted network, asked directly: raw samples in, probabilities out. The mel spectrogram is part of the model.
///
/// One caller at a time.
public final class RudimentModel: @unchecked Sendable {
    public static let input = "audioSamples"
    public static let strokesOutput = "strokes"

    public enum Problem: Error, LocalizedError {
        case unexpectedModel(String)
        case samples(expected: Int, found: Int)
        case noAnswer

        public var errorDescription: String? {
            switch self {
            case .unexpectedModel(let what): return "This is no model of python -m bridge.to_coreml: \(what)."
            case .samples(let expected, let found): return "The model hears \(expected) samples, not \(found)."
            case .noAnswer: return "The model gave no probabilities."
            }
        }
    }

    public let model: MLModel
    /// Hz.
    public let sampleRate: Int
    /// Length of the input.
    public let samples: Int
    private let probabilitiesOutput: String

    /// - Parameter url: of a compiled model, `.mlmodelc`: Xcode makes one of the package in an app, `compile` of any.
    public init(compiledAt url: URL, computeUnits: MLComputeUnits = .all) throws {
        let configuration = MLModelConfiguration()
        configuration.computeUnits = computeUnits
        model = try MLModel(contentsOf: url, configuration: configuration)
        let description = model.modelDescription
        guard let shape = description.inputDescriptionsByName[Self.input]?.multiArrayConstraint?.shape, shape.count == 1
        else { throw Problem.unexpectedModel("it has no input \(Self.input) of one dimension") }
        let metadata = description.metadata[.creatorDefinedKey] as? [String: String]
        guard let rate = metadata?["sampleRate"].flatMap({ Double($0) }), rate > 0 else {
            throw Problem.unexpectedModel("its metadata have no sampleRate")
        }
        guard let output = description.predictedProbabilitiesName else {
            throw Problem.unexpectedModel("it is no classifier")
        }
        let labels = description.classLabels as? [String] ?? []
        guard Set(labels) == Set(Rudiment.all.map(\.slug)) else {
            throw Problem.unexpectedModel("its classes are not the 40 rudiments")
        }
        samples = shape[0].intValue
        sampleRate = Int(rate)
        probabilitiesOutput = output
    }

    /// Compiles a `.mlpackage` on the device, into a temporary folder.
    public static func compile(_ package: URL) async throws -> URL {
        try await MLModel.compileModel(at: package)
    }

    /// - Parameter window: as many samples as the model hears, at its rate.
    public func answer(to window: [Float]) throws -> Answer {
        guard window.count == samples else { throw Problem.samples(expected: samples, found: window.count) }
        let array = try MLMultiArray(shape: [NSNumber(value: samples)], dataType: .float32)
        array.withUnsafeMutableBufferPointer(ofType: Float.self) { pointer, _ in
            _ = pointer.initialize(from: window)
        }
        let features = try MLDictionaryFeatureProvider(dictionary: [Self.input: MLFeatureValue(multiArray: array)])
        let output = try model.prediction(from: features)
        guard let named = output.featureValue(for: probabilitiesOutput)?.dictionaryValue else { throw Problem.noAnswer }
        var probabilities: [String: Double] = [:]
        for (label, probability) in named {
            if let slug = label as? String { probabilities[slug] = probability.doubleValue }
        }
        let heard = output.featureValue(for: Self.strokesOutput)?.multiArrayValue
        let strokes = heard.map { MLShapedArray<Float>(converting: $0).scalars }
        return Answer(probabilities: probabilities, strokes: strokes)
    }
}

extension RudimentModel {
    /// How far the model's answer to the golden clip is from what the network in Flax answered; the second number is
    /// of its strokes, nil if the golden clip has none.
    public func check(_ golden: GoldenClip) throws -> (GoldenClip.Difference, strokes: Double?) {
        guard golden.sampleRate == sampleRate else {
            throw Problem.unexpectedModel("it hears \(sampleRate) Hz, the golden clip has \(golden.sampleRate)")
        }
        let answer = try answer(to: golden.samples)
        let strokes = golden.strokes.map { _ in golden.strokeDifference(from: answer.strokes ?? []) }
        return (golden.difference(from: answer.probabilities), strokes)
    }

    /// Times of many windows of soft noise, which takes as long as any sound.
    public func measureInference(runs: Int = 100) throws -> InferenceTimes {
        let window = (0..<samples).map { _ in Float.random(in: -0.1...0.1) }
        return try InferenceTimes.measure(runs: runs) { _ = try answer(to: window) }
    }
}
#endif
