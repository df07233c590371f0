#if canImport(SwiftUI) && canImport(CoreML)
import RudimentListener
import RudimentWindows
import SwiftUI

/// What is played now, and how sure that is.
public struct ListenScreen: View {
    private let model: RudimentModel
    @State private var isListening = false
    @State private var way = RudimentListener.Way.model
    @State private var window = ListeningSettings().window
    @State private var reading: Reading?
    @State private var problem: String?

    public init(model: RudimentModel) { self.model = model }

    public var body: some View {
        VStack(spacing: 20) {
            Text(reading?.ranked.first?.rudiment.name ?? (isListening ? "Play …" : "Not listening"))
                .font(.largeTitle)
                .multilineTextAlignment(.center)
            ForEach(Array((reading?.ranked ?? []).prefix(5)), id: \.rudiment) { place in
                HStack {
                    Text(place.rudiment.name)
                    ProgressView(value: place.probability)
                    Text(place.probability, format: .percent.precision(.fractionLength(0))).monospacedDigit()
                }
            }
            Spacer()
            if let latency = reading?.latency {
                Text("Latency \(milliseconds(latency.total)), of which inference \(milliseconds(latency.inference))")
                    .foregroundStyle(latency.isAllowed ? Color.secondary : Color.red)
            }
            if let problem { Text(problem).foregroundStyle(Color.red) }
            Group {
                Picker("Through", selection: $way) {
                    Text("Core ML").tag(RudimentListener.Way.model)
                    Text("SoundAnalysis").tag(RudimentListener.Way.soundAnalysis)
                }
                .pickerStyle(.segmented)
                Stepper("Window \(window.formatted()) s", value: $window, in: ListeningSettings.windowRange, step: 0.5)
                    .disabled(way == .soundAnalysis)
            }
            .disabled(isListening)
            Button(isListening ? "Stop" : "Listen") { isListening.toggle() }
                .buttonStyle(.borderedProminent)
        }
        .padding()
        .task(id: isListening) { if isListening { await listen() } }
    }

    private func listen() async {
        (reading, problem) = (nil, nil)
        var settings = ListeningSettings()
        settings.window = window
        do {
            for try await next in RudimentListener(model: model, settings: settings, way: way).readings() {
                reading = next
            }
        } catch {
            problem = error.localizedDescription
        }
        isListening = false
    }
}

/// Seconds for people.
func milliseconds(_ seconds: Double) -> String {
    "\((seconds * 1000).formatted(.number.precision(.fractionLength(1)))) ms"
}
#endif
