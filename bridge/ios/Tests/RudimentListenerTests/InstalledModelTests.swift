import XCTest

@testable import RudimentListener
@testable import RudimentWindows

/// A real model on a real device: put a `.mlpackage` and its `golden.json` into `Installed/`.
final class InstalledModelTests: XCTestCase {
    func testTheGoldenClipIsAnsweredAsInFlax() async throws {
        #if canImport(CoreML)
        let golden = try GoldenClip(contentsOf: try installed("json"))
        let (names, strokes) = try await model().check(golden)
        print("golden clip: largest difference \(names.probability) (\(names.slug)), strokes \(strokes ?? 0)")
        XCTAssertTrue(names.isWithin(), "\(names)")
        XCTAssertLessThanOrEqual(strokes ?? 0, GoldenClip.allowedDifference)
        #else
        throw XCTSkip("there is no Core ML here")
        #endif
    }

    func testInferenceTakesLessThanThirtyMilliseconds() async throws {
        #if canImport(CoreML)
        let times = try await model().measureInference()
        print("inference: median \(times.median) s, 95 % within \(times.percentile95) s, \(times.seconds.count) runs")
        #if os(iOS) && !targetEnvironment(simulator)
        XCTAssertTrue(times.isAllowed, "95 % of the runs within \(times.percentile95) s")
        #else
        throw XCTSkip("the time counts on a phone with an A15 or later")
        #endif
        #else
        throw XCTSkip("there is no Core ML here")
        #endif
    }

    #if canImport(CoreML)
    private func model() async throws -> RudimentModel {
        try RudimentModel(compiledAt: await RudimentModel.compile(installed("mlpackage")))
    }

    /// The file with this ending in `Installed/`.
    private func installed(_ ending: String) throws -> URL {
        let folder = try XCTUnwrap(Bundle.module.url(forResource: "Installed", withExtension: nil))
        let files = try FileManager.default.contentsOfDirectory(at: folder, includingPropertiesForKeys: nil)
        guard let file = files.first(where: { $0.pathExtension == ending }) else {
            throw XCTSkip("there is no .\(ending) in Tests/RudimentListenerTests/Installed")
        }
        return file
    }
    #endif
}
