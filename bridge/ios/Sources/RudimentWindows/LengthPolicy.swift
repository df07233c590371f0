import Foundation

/// How a clip becomes windows of one length, as in training and evaluation: `sousa_jax/data/clips.py` in Swift.
///
/// The silent tail is cut off, and what is shorter than the window goes round in a circle until the window is full.
/// No sample of a window is padding. The tests of both languages share their numbers.
public enum LengthPolicy {
    /// A frame counts as the tail if it is softer than this, relative to the loudest one.
    public static let tailFloorDecibels = -40.0
    /// Frames in a second, of those whose loudness is measured.
    public static let framesPerSecond = 100

    /// How many samples are left when the silent tail is cut off: up to the last sample that is not zero of the last
    /// frame louder than the floor. A silent clip is left whole.
    public static func lengthWithoutTail(
        _ wave: [Float], sampleRate: Int, floorDecibels: Double = tailFloorDecibels
    ) -> Int {
        let frame = frameLength(sampleRate: sampleRate)
        let energies = frameEnergies(wave, frame: frame)
        guard let loudest = energies.max(), loudest > 0 else { return wave.count }
        let floor = loudest * pow(10, floorDecibels / 10)
        guard let last = energies.lastIndex(where: { $0 >= floor }) else { return wave.count }
        let end = min(wave.count, (last + 1) * frame)
        return (wave[(last * frame)..<end].lastIndex { $0 != 0 } ?? end - 1) + 1
    }

    /// Exactly `count` samples from `start` on, going round in a circle if the clip is shorter.
    public static func loopFill(_ wave: [Float], count: Int, start: Int = 0) -> [Float] {
        let lastStart = wave.count < count ? wave.count - 1 : wave.count - count
        precondition(
            0 <= start && start <= lastStart,
            "a window of \(count) samples cannot start at \(start) in a clip of \(wave.count)")
        return (0..<count).map { wave[(start + $0) % wave.count] }
    }

    /// Where the windows of a whole clip start: one at 0 if the clip fits, else evenly spaced ones at most `hop` apart,
    /// the first at the clip's start and the last at its end.
    public static func windowStarts(clip: Int, window: Int, hop: Int) -> [Int] {
        precondition(0 < hop && hop <= window, "windows of \(window) samples need a hop between 1 and \(window)")
        let rest = clip - window
        if rest <= 0 { return [0] }
        let gaps = (rest + hop - 1) / hop
        return (0...gaps).map { gap -> Int in
            let start = Double(gap * rest) / Double(gaps)
            return Int(start.rounded(.toNearestOrEven))  // as Python rounds halves
        }
    }

    /// Samples in a frame whose loudness is measured.
    static func frameLength(sampleRate: Int) -> Int { max(1, sampleRate / framesPerSecond) }

    /// Sums of squares of the frames of a clip; the last one may be shorter.
    static func frameEnergies(_ wave: [Float], frame: Int) -> [Double] {
        stride(from: 0, to: wave.count, by: frame).map { begin in
            wave[begin..<min(wave.count, begin + frame)].reduce(0.0) { $0 + Double($1) * Double($1) }
        }
    }
}
