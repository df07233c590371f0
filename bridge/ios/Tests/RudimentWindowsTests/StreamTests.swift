import XCTest

@testable import RudimentWindows

/// From the audio thread to windows: nothing twice, nothing lost unseen.
final class StreamTests: XCTestCase {
    private func write(_ samples: [Float], to ring: RingBuffer) {
        samples.withUnsafeBufferPointer { ring.write($0) }
    }

    func testARingGivesBackWhatWasWritten() {
        let ring = RingBuffer(capacity: 10)
        for round in 0..<20 {
            let samples = numbered(round % 11, from: 100 * round)
            let cut = samples.count / 3
            write(Array(samples[..<cut]), to: ring)
            write(Array(samples[cut...]), to: ring)
            let drained = ring.drain()
            XCTAssertEqual(drained.samples, samples)
            XCTAssertFalse(drained.isAfterGap)
        }
    }

    func testAFullRingKeepsTheNewestAndSaysSo() {
        let ring = RingBuffer(capacity: 5)
        write(numbered(4), to: ring)
        write(numbered(3, from: 5), to: ring)
        var drained = ring.drain()
        XCTAssertEqual(drained.samples, [3, 4, 5, 6, 7])
        XCTAssertTrue(drained.isAfterGap)

        write(numbered(8), to: ring)
        drained = ring.drain()
        XCTAssertEqual(drained.samples, [4, 5, 6, 7, 8])
        XCTAssertTrue(drained.isAfterGap)

        write([1], to: ring)
        drained = ring.drain()
        XCTAssertEqual(drained.samples, [1])
        XCTAssertFalse(drained.isAfterGap, "told once")
    }

    func testABreakForgetsWhatCameBefore() {
        let ring = RingBuffer(capacity: 5)
        write(numbered(3), to: ring)
        ring.breakOff()
        write([9], to: ring)
        let drained = ring.drain()
        XCTAssertEqual(drained.samples, [9])
        XCTAssertTrue(drained.isAfterGap)
    }

    func testTwoThreadsLoseNothing() {
        let ring = RingBuffer(capacity: 100_000)
        let total = 50_000
        let done = expectation(description: "written")
        DispatchQueue.global().async {
            for first in stride(from: 1, through: total, by: 50) { self.write(numbered(50, from: first), to: ring) }
            done.fulfill()
        }
        var read: [Float] = []
        for _ in 0..<1_000 where read.count < total { read += ring.drain().samples }
        wait(for: [done], timeout: 30)
        read += ring.drain().samples
        XCTAssertEqual(read, numbered(total))
    }

    func testWindowsDoNotDependOnHowTheStreamIsCut() {
        let stream = numbered(103)
        for (length, hop) in [(10, 5), (10, 10), (10, 3), (7, 1)] {
            let expected = stride(from: 0, through: stream.count - length, by: hop).map {
                Array(stream[$0..<($0 + length)])
            }
            for piece in [1, 4, 10, 64, 103] {
                var sliding = SlidingWindow(length: length, hop: hop)
                let windows = stride(from: 0, to: stream.count, by: piece).flatMap {
                    sliding.push(Array(stream[$0..<min(stream.count, $0 + piece)]))
                }
                XCTAssertEqual(windows, expected, "\(length) \(hop) in pieces of \(piece)")
            }
        }
    }

    func testAfterAResetAWindowIsFilledAnew() {
        var sliding = SlidingWindow(length: 4, hop: 2)
        XCTAssertEqual(sliding.push(numbered(3)), [])
        sliding.reset()
        XCTAssertEqual(sliding.push(numbered(4, from: 10)), [numbered(4, from: 10)])
    }

    func testHopsAreThoseOfTheEvaluation() throws {
        for hop in try Vectors.load().hops {
            let overlap = ListeningSettings().overlap
            XCTAssertEqual(SlidingWindow.hop(length: hop.length, overlap: overlap), hop.hop)
        }
        XCTAssertEqual(SlidingWindow.hop(length: 10, overlap: 0), 10)
        XCTAssertEqual(SlidingWindow.hop(length: 10, overlap: 0.99), 1)
    }
}
