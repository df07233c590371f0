import XCTest

@testable import RudimentWindows

/// From the model's probabilities to what is shown.
final class AnswerTests: XCTestCase {
    func testWindowsAreJoinedAsInPython() throws {
        let smoothing = try Vectors.load().smoothing
        var smoother = Smoother(windows: smoothing.windows.count)
        let smoothed = smoothing.windows.map { smoother.add($0) }.last ?? []
        XCTAssertEqual(smoothed.count, Rudiment.all.count)
        for (rudiment, probability) in zip(Rudiment.all, smoothed) {
            XCTAssertEqual(probability, smoothing.smoothed[rudiment.slug] ?? -1, accuracy: 2e-6, rudiment.slug)
        }
    }

    func testOnlyTheLastWindowsCount() {
        var smoother = Smoother(windows: 2)
        _ = smoother.add([0.9, 0.1])
        _ = smoother.add([0.3, 0.7])
        let joined = smoother.add([0.3, 0.7])
        XCTAssertEqual(joined[0], 0.3, accuracy: 1e-9)
        smoother.reset()
        XCTAssertEqual(smoother.add([0.6, 0.4])[0], 0.6, accuracy: 1e-9)
    }

    func testAZeroDoesNotOutvoteEverything() {
        var smoother = Smoother(windows: 5)
        _ = smoother.add([0, 1])
        let joined = (0..<4).map { _ in smoother.add([0.999, 0.001]) }.last ?? []
        XCTAssertGreaterThan(joined[0], 0.5)
        XCTAssertEqual(joined.reduce(0, +), 1, accuracy: 1e-9)
    }

    func testLatencyIsTheSumOfItsParts() {
        let latency = Latency(hardwareBuffer: 0.010, polling: 0.010, resampler: 0.002, inference: 0.030)
        XCTAssertEqual(latency.total, 0.052, accuracy: 1e-9)
        XCTAssertTrue(latency.isAllowed)
        XCTAssertFalse(Latency(hardwareBuffer: 0.1, polling: 0, resampler: 0, inference: 0.030).isAllowed)
    }

    func testTheGuidesTableOfChanges() {
        let latency = Latency(hardwareBuffer: 0.010, polling: 0.010, resampler: 0.005, inference: 0.030)
        let table = [(5, 2.5, 3, 7.6), (5, 0.5, 1, 3.1), (2, 1, 3, 3.1), (1.5, 0.25, 3, 1.3)]
        for (window, hop, smoothed, expected) in table {
            let found = latency.untilChangeIsHeard(window: window, hop: hop, smoothedWindows: smoothed)
            XCTAssertEqual((found * 10).rounded() / 10, expected, accuracy: 1e-9)
        }
    }

    func testRudimentsAreFoundBySlug() {
        XCTAssertEqual(Rudiment.all.count, 40)
        XCTAssertEqual(Rudiment.named("single_paradiddle")?.name, "Single Paradiddle")
        XCTAssertNil(Rudiment.named("Single Paradiddle"))
    }

    func testTheLikeliestComesFirst() {
        var probabilities = [Double](repeating: 0.01, count: 40)
        (probabilities[10], probabilities[28]) = (0.2, 0.42)
        let ranked = Candidate.ranked(probabilities)
        XCTAssertEqual(ranked.prefix(2).map(\.rudiment.slug), ["single_paradiddle", "flam"])
        XCTAssertEqual(ranked[0].probability, 0.42)
        XCTAssertEqual(ranked.count, 40)
    }
}

final class InferenceTimesTests: XCTestCase {
    func testNineteenOfTwentyAreNotLonger() {
        let times = InferenceTimes(seconds: (1...100).reversed().map { Double($0) / 1000 })
        XCTAssertEqual(times.median, 0.051)
        XCTAssertEqual(times.percentile95, 0.095)
        XCTAssertFalse(times.isAllowed)
        XCTAssertEqual(InferenceTimes(seconds: [0.029]).percentile95, 0.029)
        XCTAssertTrue(InferenceTimes(seconds: [0.029]).isAllowed)
        XCTAssertFalse(InferenceTimes(seconds: [0.030]).isAllowed)
    }

    func testTheFirstRunsAreNotCounted() throws {
        var calls = 0
        let times = InferenceTimes.measure(warmUps: 2, runs: 3) { calls += 1 }
        XCTAssertEqual(calls, 5)
        XCTAssertEqual(times.seconds.count, 3)
        XCTAssertGreaterThanOrEqual(times.seconds[0], 0)
        XCTAssertEqual(Duration.milliseconds(1250).inSeconds, 1.25, accuracy: 1e-12)
    }
}
