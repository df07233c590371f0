#if canImport(SwiftUI) && canImport(CoreML)
import RudimentListener
import RudimentWindows
import SwiftUI

/// Whether the installed model answers as the network in Flax did, and how fast it is on this device.
public struct CheckScreen: View {
    private let model: RudimentModel
    private let golden: GoldenClip?
    @State private var isBusy = false
    @State private var lines: [Line] = []

    private struct Line: Hashable, Sendable {
        let text: String
        let isGood: Bool
    }

    public init(model: RudimentModel, golden: GoldenClip?) {
        self.model = model
        self.golden = golden
    }

    public var body: some View {
        VStack(alignment: .leading, spacing: 16) {
            Text("\(model.samples) samples at \(model.sampleRate) Hz")
            ForEach(lines, id: \.self) { line in
                Label(line.text, systemImage: line.isGood ? "checkmark.circle" : "xmark.circle")
                    .foregroundStyle(line.isGood ? Color.green : Color.red)
            }
            Spacer()
            if isBusy { ProgressView() }
            Button("Check and measure") { isBusy = true }
                .buttonStyle(.borderedProminent)
                .disabled(isBusy)
        }
        .padding()
        .task(id: isBusy) {
            guard isBusy else { return }
            let (model, golden) = (model, golden)
            lines = await Task.detached { Self.check(model, golden) }.value
            isBusy = false
        }
    }

    nonisolated private static func check(_ model: RudimentModel, _ golden: GoldenClip?) -> [Line] {
        do {
            return try [goldenLine(model, golden), speedLine(model.measureInference())]
        } catch {
            return [Line(text: error.localizedDescription, isGood: false)]
        }
    }

    nonisolated private static func goldenLine(_ model: RudimentModel, _ golden: GoldenClip?) throws -> Line {
        guard let golden else { return Line(text: "The app holds no golden.json", isGood: false) }
        let (names, strokes) = try model.check(golden)
        let isGood = names.isWithin() && (strokes ?? 0) <= GoldenClip.allowedDifference
        let heard = strokes.map { ", strokes by \($0.formatted())" } ?? ""
        let text = "Golden clip differs by \(names.probability.formatted()) (\(names.slug))\(heard)"
        return Line(text: text, isGood: isGood)
    }

    nonisolated private static func speedLine(_ times: InferenceTimes) -> Line {
        let text =
            "Inference \(milliseconds(times.median)), 95 % within \(milliseconds(times.percentile95)), "
            + "longest \(milliseconds(times.seconds.last ?? 0)), \(times.seconds.count) runs"
        return Line(text: text, isGood: times.isAllowed)
    }
}
#endif
