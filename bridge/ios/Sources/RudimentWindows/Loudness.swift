import Foundation

/// How loud a window is, to tell playing from silence.
public enum Loudness {
    /// RMS of the loudest 10 ms of a window, decibels of full scale; `-infinity` for digital silence.
    public static func peakDecibels(_ window: [Float], sampleRate: Int) -> Double {
        let frame = LengthPolicy.frameLength(sampleRate: sampleRate)
        let loudest = LengthPolicy.frameEnergies(window, frame: frame).max() ?? 0
        return 10 * log10(loudest / Double(frame))
    }
}
