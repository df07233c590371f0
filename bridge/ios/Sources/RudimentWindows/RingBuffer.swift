import Foundation

/// Hands samples from the audio thread, which writes, to one other thread, which reads.
///
/// The memory is taken once. A reader that comes too late loses the oldest samples and is told so. The reader holds
/// the lock to exchange two buffers, not while it copies, so that the audio thread hardly ever waits.
public final class RingBuffer: @unchecked Sendable {
    private struct Ring {
        var samples: [Float]
        var start = 0
        var count = 0
        var isAfterGap = false
    }

    private let lock = NSLock()
    private var written: Ring
    private var read: Ring

    /// - Parameter capacity: samples that are kept at most, 1 or more.
    public init(capacity: Int) {
        precondition(capacity > 0, "a ring buffer needs room for a sample")
        written = Ring(samples: [Float](repeating: 0, count: capacity))
        read = Ring(samples: [Float](repeating: 0, count: capacity))
    }

    /// Appends samples; of more than fit the newest are kept.
    public func write(_ samples: UnsafeBufferPointer<Float>) {
        lock.lock()
        defer { lock.unlock() }
        let capacity = written.samples.count
        let kept = min(samples.count, capacity)
        let lost = max(0, written.count + kept - capacity)
        written.isAfterGap = written.isAfterGap || lost > 0 || kept < samples.count
        written.start = (written.start + lost) % capacity
        written.count -= lost
        for i in 0..<kept {
            let place = (written.start + written.count + i) % capacity
            written.samples[place] = samples[samples.count - kept + i]
        }
        written.count += kept
    }

    /// Everything that came since the last call, in order, and whether some samples before it were lost.
    public func drain() -> (samples: [Float], isAfterGap: Bool) {
        (read.start, read.count, read.isAfterGap) = (0, 0, false)
        lock.lock()
        swap(&written, &read)
        lock.unlock()
        let samples = (0..<read.count).map { read.samples[(read.start + $0) % read.samples.count] }
        return (samples, read.isAfterGap)
    }

    /// Forgets what was written; what comes next counts as after a gap.
    public func breakOff() {
        lock.lock()
        defer { lock.unlock() }
        (written.start, written.count, written.isAfterGap) = (0, 0, true)
    }
}
