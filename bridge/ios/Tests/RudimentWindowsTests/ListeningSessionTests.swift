import XCTest

@testable import RudimentWindows

/// Windows of two seconds at 1,000 Hz, for a model of five seconds.
final class ListeningSessionTests: XCTestCase {
    private func session(_ change: (inout ListeningSettings) -> Void = { _ in }) -> ListeningSession {
        var settings = ListeningSettings()
        settings.window = 2
        change(&settings)
        return ListeningSession(settings: settings, sampleRate: 1000, modelSamples: 5000)
    }

    /// No two samples of it are alike, none is soft.
    private func playing(_ count: Int) -> [Float] { (0..<count).map { 0.5 + Float($0) / 1e5 } }

    func testAShortWindowGoesRoundUntilTheModelsIsFull() {
        var session = session()
        XCTAssertNil(session.hear(playing(1999)))
        let input = session.hear([0.25])
        let heard = playing(1999) + [0.25]
        XCTAssertEqual(input, heard + heard + Array(heard[..<1000]))
    }

    func testTheNextWindowIsDueAfterAHop() {
        var session = session()
        XCTAssertNotNil(session.hear(playing(2000)))
        XCTAssertNil(session.hear(playing(999)))
        XCTAssertNotNil(session.hear(playing(1)))

        var sooner = self.session { $0.hop = 0.1 }
        XCTAssertNotNil(sooner.hear(playing(2000)))
        XCTAssertNotNil(sooner.hear(playing(100)))
    }

    func testASlowPhoneSkipsWindows() {
        var session = session()
        let stream = playing(4500)
        XCTAssertEqual(session.hear(stream)?.prefix(2000), stream[2000..<4000])
        XCTAssertNotNil(session.hear(playing(500)), "and the next one begins where it would have begun")
    }

    func testTheTailOfAWindowIsCutOff() {
        var session = session()
        let input = session.hear(playing(1200) + [Float](repeating: 0, count: 800))
        XCTAssertEqual(input?.prefix(2400), (playing(1200) + playing(1200))[...])
    }

    func testSilenceIsNotAskedAndEndsWhatWasSmoothed() {
        var session = session()
        _ = session.answer([0.9, 0.1])
        XCTAssertNil(session.hear([Float](repeating: 0.001, count: 2000)), "-60 dB")
        XCTAssertEqual(session.answer([0.2, 0.8])[0], 0.2, accuracy: 1e-9)
        XCTAssertNotNil(session.hear([Float](repeating: 0.01, count: 2000)), "-40 dB")
    }

    func testDigitalSilenceIsSilence() {
        var session = session()
        XCTAssertNil(session.hear([Float](repeating: 0, count: 2000)))
        XCTAssertEqual(Loudness.peakDecibels([0, 0], sampleRate: 1000), -.infinity)
    }

    func testLoudnessIsThatOfTheLoudestTenMilliseconds() {
        let burst = [Float](repeating: 0, count: 90) + [Float](repeating: 0.1, count: 10)
        XCTAssertEqual(Loudness.peakDecibels(burst, sampleRate: 1000), -20, accuracy: 1e-4)
    }

    func testAWindowIsNeverLongerThanTheModels() {
        var settings = ListeningSettings()
        settings.window = 5
        var session = ListeningSession(settings: settings, sampleRate: 1000, modelSamples: 3000)
        XCTAssertEqual(session.hear(playing(3000)), playing(3000))
    }

    func testAfterAGapNothingIsRemembered() {
        var session = session()
        _ = session.hear(playing(1999))
        _ = session.answer([0.9, 0.1])
        session.reset()
        XCTAssertNil(session.hear(playing(1999)))
        XCTAssertEqual(session.answer([0.2, 0.8])[0], 0.2, accuracy: 1e-9)
    }
}
