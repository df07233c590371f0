import XCTest

@testable import RudimentWindows

final class LengthPolicyTests: XCTestCase {
    func testTailsAreCutAsInPython() throws {
        for tail in try Vectors.load().tails {
            let length = LengthPolicy.lengthWithoutTail(tail.wave, sampleRate: tail.rate)
            XCTAssertEqual(length, tail.length, tail.name)
        }
    }

    func testShortClipsGoRoundAsInPython() throws {
        for fill in try Vectors.load().fills {
            let filled = LengthPolicy.loopFill(numbered(fill.clip), count: fill.count, start: fill.start)
            XCTAssertEqual(filled, fill.filled, "\(fill)")
        }
    }

    func testWindowsStartAsInPython() throws {
        for case_ in try Vectors.load().starts {
            let starts = LengthPolicy.windowStarts(clip: case_.clip, window: case_.window, hop: case_.hop)
            XCTAssertEqual(starts, case_.starts, "\(case_)")
        }
    }

    func testAnEmptyClipHasNoTail() {
        XCTAssertEqual(LengthPolicy.lengthWithoutTail([], sampleRate: 1000), 0)
    }
}
