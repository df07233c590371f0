#if canImport(SwiftUI) && canImport(CoreML)
import RudimentListener
import RudimentWindows
import SwiftUI

/// An app in one view: loads the model and the golden clip of the app's bundle and shows both screens.
///
///     @main struct Demo: App { var body: some Scene { WindowGroup { RudimentDemo(modelNamed: "RudimentClassifier") } } }
public struct RudimentDemo: View {
    private let modelName: String
    @State private var model: RudimentModel?
    @State private var golden: GoldenClip?
    @State private var problem: String?

    /// - Parameter modelNamed: of the package in the app, without `.mlpackage`. `golden.json` may lie beside it.
    public init(modelNamed: String) { modelName = modelNamed }

    public var body: some View {
        Group {
            if let model {
                TabView {
                    ListenScreen(model: model).tabItem { Label("Listen", systemImage: "waveform") }
                    CheckScreen(model: model, golden: golden).tabItem { Label("Check", systemImage: "checkmark.seal") }
                }
            } else {
                Text(problem ?? "Loading the model …").padding()
            }
        }
        .task { await load() }
    }

    private func load() async {
        guard let url = Bundle.main.url(forResource: modelName, withExtension: "mlmodelc") else {
            problem = "The app holds no model \(modelName). Drag \(modelName).mlpackage into the app's target."
            return
        }
        do {
            let file = Bundle.main.url(forResource: "golden", withExtension: "json")
            golden = try file.map { try GoldenClip(contentsOf: $0) }
            model = try await Task.detached { try RudimentModel(compiledAt: url) }.value
        } catch {
            problem = "\(error)"
        }
    }
}
#endif
