import Foundation

/// A clip and what the network in Flax answers to it, as `python -m bridge.golden` writes them.
public struct GoldenClip: Decodable, Sendable {
    public static let format = "sousa-golden-1"

    /// What a package with a half-precision body may differ by, in probability.
    public static let allowedDifference = 0.02

    public enum Problem: Error, Equatable, CustomStringConvertible {
        case format(String)
        case samples(expected: Int, found: Int)
        case classes

        public var description: String {
            switch self {
            case .format(let found):
                return "golden.json has format \(found), expected \(GoldenClip.format): write it again"
            case .samples(let expected, let found):
                return "golden.json holds \(found) samples or stroke values, expected \(expected): write it again"
            case .classes:
                return "golden.json does not name the 40 rudiments of this package: write it again"
            }
        }
    }

    /// What a network with a stroke head hears: `rows` streams of `frames` probabilities, one after another.
    public struct Strokes: Decodable, Sendable {
        public let framesPerSecond: Int
        public let rows: [String]
        public let frames: Int
        public let values: [Float]

        enum CodingKeys: String, CodingKey {
            case framesPerSecond = "frames_per_second"
            case rows, frames, values
        }

        public init(from decoder: Decoder) throws {
            let container = try decoder.container(keyedBy: CodingKeys.self)
            framesPerSecond = try container.decode(Int.self, forKey: .framesPerSecond)
            rows = try container.decode([String].self, forKey: .rows)
            frames = try container.decode(Int.self, forKey: .frames)
            values = GoldenClip.floats(try container.decode(Data.self, forKey: .values))
            guard values.count == rows.count * frames else {
                throw Problem.samples(expected: rows.count * frames, found: values.count)
            }
        }
    }

    public let model: String
    public let clip: String
    public let sampleRate: Int
    public let samples: [Float]
    public let label: String
    public let probabilities: [String: Double]
    public let strokes: Strokes?

    enum CodingKeys: String, CodingKey {
        case format, model, clip
        case sampleRate = "sample_rate"
        case sampleCount = "n_samples"
        case samples, label, probabilities, strokes
    }

    public init(from decoder: Decoder) throws {
        let container = try decoder.container(keyedBy: CodingKeys.self)
        let format = try container.decode(String.self, forKey: .format)
        guard format == Self.format else { throw Problem.format(format) }
        model = try container.decode(String.self, forKey: .model)
        clip = try container.decode(String.self, forKey: .clip)
        sampleRate = try container.decode(Int.self, forKey: .sampleRate)
        samples = Self.floats(try container.decode(Data.self, forKey: .samples))
        label = try container.decode(String.self, forKey: .label)
        probabilities = try container.decode([String: Double].self, forKey: .probabilities)
        strokes = try container.decodeIfPresent(Strokes.self, forKey: .strokes)
        let expected = try container.decode(Int.self, forKey: .sampleCount)
        guard samples.count == expected else { throw Problem.samples(expected: expected, found: samples.count) }
        guard Set(probabilities.keys) == Set(Rudiment.all.map(\.slug)) else { throw Problem.classes }
    }

    public init(contentsOf url: URL) throws {
        self = try JSONDecoder().decode(GoldenClip.self, from: Data(contentsOf: url))
    }

    /// How far an answer is from the expected one.
    public struct Difference: Equatable, Sendable {
        /// The largest difference of a probability, and whose it is. A class that was not answered counts as 0.
        public let probability: Double
        public let slug: String
        public let sameLabel: Bool

        public func isWithin(_ allowed: Double = GoldenClip.allowedDifference) -> Bool {
            sameLabel && probability <= allowed
        }
    }

    /// Compares an answer, probabilities by slug, with the expected one. One that is not a number is infinitely far.
    public func difference(from answer: [String: Double]) -> Difference {
        let apart = probabilities.map { slug, expected -> (slug: String, by: Double) in
            let found = abs((answer[slug] ?? 0) - expected)
            return (slug, found.isNaN ? .infinity : found)
        }
        let most = apart.max { ($0.by, $1.slug) < ($1.by, $0.slug) }
        let named = answer.max { ($0.value, $1.key) < ($1.value, $0.key) }?.key
        return Difference(probability: most?.by ?? .infinity, slug: most?.slug ?? "", sameLabel: named == label)
    }

    /// The largest difference of a stroke's probability; infinite if the shapes differ or one is not a number.
    public func strokeDifference(from values: [Float]) -> Double {
        guard let strokes, strokes.values.count == values.count else { return .infinity }
        return zip(strokes.values, values).reduce(0.0) { largest, pair in
            let apart = Double(abs(pair.0 - pair.1))
            return max(largest, apart.isNaN ? .infinity : apart)
        }
    }

    /// The numbers of little-endian float32.
    static func floats(_ data: Data) -> [Float] {
        data.withUnsafeBytes { bytes in
            (0..<bytes.count / 4).map { i -> Float in
                let bits = bytes.loadUnaligned(fromByteOffset: 4 * i, as: UInt32.self)
                return Float(bitPattern: UInt32(littleEndian: bits))
            }
        }
    }
}
