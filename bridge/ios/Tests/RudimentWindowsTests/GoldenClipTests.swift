import XCTest

@testable import RudimentWindows

/// The file that Python writes is read, and a wrong answer is told from a right one.
final class GoldenClipTests: XCTestCase {
    func testItIsReadAsPythonWroteIt() throws {
        let golden = try Vectors.load().golden
        XCTAssertEqual(golden.samples, [0, 1.5, -0.25, 3e-5])
        XCTAssertEqual(golden.sampleRate, 1000)
        XCTAssertEqual(golden.probabilities.count, 40)
        XCTAssertEqual(golden.probabilities.max { $0.value < $1.value }?.key, golden.label)
        let strokes = try XCTUnwrap(golden.strokes)
        XCTAssertEqual(strokes.rows, ["onset", "velocity", "grace", "density"])
        XCTAssertEqual(strokes.framesPerSecond, 200)
        XCTAssertEqual(strokes.values, (0..<8).map { Float($0) / 8 })
    }

    func testTheSameAnswerIsNoDifference() throws {
        let golden = try Vectors.load().golden
        let difference = golden.difference(from: golden.probabilities)
        XCTAssertEqual(difference.probability, 0)
        XCTAssertTrue(difference.isWithin())
    }

    func testWrongAnswersAreNamed() throws {
        let golden = try Vectors.load().golden
        var answer = golden.probabilities
        answer["flam", default: 0] += 0.03
        let difference = golden.difference(from: answer)
        XCTAssertEqual(difference.slug, "flam")
        XCTAssertEqual(difference.probability, 0.03, accuracy: 1e-9)
        XCTAssertFalse(difference.isWithin())
        XCTAssertTrue(difference.isWithin(0.04))

        answer = golden.probabilities
        answer["flam"] = .nan
        XCTAssertFalse(golden.difference(from: answer).isWithin())
        XCTAssertFalse(golden.difference(from: [:]).isWithin())
    }

    func testAnotherLabelIsADifferenceHoweverSmall() throws {
        let golden = try Vectors.load().golden
        var answer = golden.probabilities
        answer[golden.label] = 0
        XCTAssertFalse(golden.difference(from: answer).isWithin(1))
    }

    func testStrokesAreCompared() throws {
        let golden = try Vectors.load().golden
        var values = try XCTUnwrap(golden.strokes).values
        XCTAssertEqual(golden.strokeDifference(from: values), 0)
        values[5] += 0.125
        XCTAssertEqual(golden.strokeDifference(from: values), 0.125)
        values[5] = .nan
        XCTAssertEqual(golden.strokeDifference(from: values), .infinity)
        XCTAssertEqual(golden.strokeDifference(from: [0]), .infinity)
    }

    func testAnotherFileIsRefused() throws {
        let object = try JSONSerialization.jsonObject(with: Vectors.data()) as? [String: Any]
        let golden = try XCTUnwrap(object?["golden"] as? [String: Any])
        let changes: [(String, Any, GoldenClip.Problem)] = [
            ("format", "sousa-golden-0", .format("sousa-golden-0")),
            ("n_samples", 5, .samples(expected: 5, found: 4)),
            ("probabilities", ["flam": 1.0], .classes),
        ]
        for (key, value, problem) in changes {
            var changed = golden
            changed[key] = value
            let data = try JSONSerialization.data(withJSONObject: changed)
            XCTAssertThrowsError(try JSONDecoder().decode(GoldenClip.self, from: data)) {
                XCTAssertEqual($0 as? GoldenClip.Problem, problem)
            }
        }
    }
}
