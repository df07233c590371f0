#if canImport(AVFoundation)
import AVFoundation

/// One stream of samples from one rate to another, piece by piece, with Apple's band-limited filter.
final class Resampler {
    struct Failed: Error {}

    let inputRate: Double
    private let input: AVAudioFormat
    private let output: AVAudioFormat
    private let converter: AVAudioConverter
    /// The piece that the converter has not taken yet.
    private var waiting: AVAudioPCMBuffer?

    /// - Parameters:
    ///   - inputRate: Hz.
    ///   - outputRate: Hz.
    init(from inputRate: Double, to outputRate: Double) throws {
        guard let input = AVAudioFormat(standardFormatWithSampleRate: inputRate, channels: 1),
            let output = AVAudioFormat(standardFormatWithSampleRate: outputRate, channels: 1),
            let converter = AVAudioConverter(from: input, to: output)
        else { throw Failed() }
        converter.sampleRateConverterQuality = AVAudioQuality.high.rawValue
        (self.inputRate, self.input, self.output, self.converter) = (inputRate, input, output, converter)
    }

    /// The next samples of the stream. What the filter still needs to see comes with a later piece.
    func convert(_ samples: [Float]) throws -> [Float] {
        if samples.isEmpty { return [] }
        let longest = (Double(samples.count) * output.sampleRate / inputRate).rounded(.up) + 4096
        guard let piece = AVAudioPCMBuffer.mono(samples, format: input),
            let converted = AVAudioPCMBuffer(pcmFormat: output, frameCapacity: AVAudioFrameCount(longest))
        else { throw Failed() }
        waiting = piece
        var problem: NSError?
        let status = converter.convert(to: converted, error: &problem) { [unowned self] _, inputStatus in
            defer { waiting = nil }
            inputStatus.pointee = waiting == nil ? .noDataNow : .haveData
            return waiting
        }
        guard status != .error, let channel = converted.floatChannelData else { throw problem ?? Failed() }
        return Array(UnsafeBufferPointer(start: channel[0], count: Int(converted.frameLength)))
    }
}

extension AVAudioPCMBuffer {
    /// Samples as a buffer of one channel of floats; nil if the memory is refused.
    static func mono(_ samples: [Float], format: AVAudioFormat) -> AVAudioPCMBuffer? {
        guard let buffer = AVAudioPCMBuffer(pcmFormat: format, frameCapacity: AVAudioFrameCount(samples.count)),
            let channel = buffer.floatChannelData
        else { return nil }
        buffer.frameLength = AVAudioFrameCount(samples.count)
        for (i, sample) in samples.enumerated() { channel[0][i] = sample }
        return buffer
    }
}
#endif
