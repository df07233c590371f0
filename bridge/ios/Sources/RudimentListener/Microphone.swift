#if canImport(AVFoundation)
import AVFoundation
import RudimentWindows

/// The microphone at the hardware's own rate, one channel.
///
/// `AVAudioSinkNode` gets each buffer of the hardware, about 10 ms; a tap would collect 100 ms or more.
public actor Microphone {
    /// What came since the last call. After a gap (an interruption, another microphone) nothing before it belongs to it.
    public struct Piece: Sendable {
        public let samples: [Float]
        public let sampleRate: Double
        public let isAfterGap: Bool
    }

    public enum Problem: Error, LocalizedError {
        case notPermitted, noInput, interrupted

        public var errorDescription: String? {
            switch self {
            case .notPermitted: return "The microphone may not be used. Allow it in Settings, Privacy, Microphone."
            case .noInput: return "There is no microphone, or it does not give 32-bit floats."
            case .interrupted: return "Something else took the microphone. Start again."
            }
        }
    }

    /// Seconds of a hardware buffer that are asked for; the system may give others.
    public static let preferredBuffer = 0.010

    private var engine = AVAudioEngine()
    private let ring = RingBuffer(capacity: 1 << 18)  // a second and more at any rate
    private var sampleRate = 0.0
    private var problem: Error?
    private var observers: [NSObjectProtocol] = []

    public init() {}

    /// Asks for permission if nobody has yet, and begins to listen.
    public func start() async throws {
        guard await AVAudioApplication.requestRecordPermission() else { throw Problem.notPermitted }
        #if os(iOS)
        let session = AVAudioSession.sharedInstance()
        // Measurement: no automatic gain, which would take away how hard a stroke is.
        try session.setCategory(.record, mode: .measurement)
        try session.setPreferredIOBufferDuration(Self.preferredBuffer)
        #endif
        problem = nil
        try run()
        watch()
    }

    public func stop() {
        observers.forEach(NotificationCenter.default.removeObserver)
        observers = []
        engine.stop()
        #if os(iOS)
        try? AVAudioSession.sharedInstance().setActive(false, options: .notifyOthersOnDeactivation)
        #endif
    }

    /// Everything that was heard since the last call. Throws what ended the listening, once it has ended.
    public func drain() throws -> Piece {
        if let problem { throw problem }
        let (samples, isAfterGap) = ring.drain()
        return Piece(samples: samples, sampleRate: sampleRate, isAfterGap: isAfterGap)
    }

    /// Seconds from a sound to the buffer that holds it, at most.
    public var bufferLatency: Double {
        #if os(iOS)
        let session = AVAudioSession.sharedInstance()
        return session.inputLatency + session.ioBufferDuration
        #else
        return 512 / max(sampleRate, 1)  // the usual buffer of a Mac
        #endif
    }

    private func run() throws {
        engine.stop()
        ring.breakOff()
        #if os(iOS)
        try AVAudioSession.sharedInstance().setActive(true)
        #endif
        engine = AVAudioEngine()  // an old one remembers the format of the old microphone
        let input = engine.inputNode
        let format = input.outputFormat(forBus: 0)
        guard format.sampleRate > 0, format.channelCount > 0, format.commonFormat == .pcmFormatFloat32 else {
            throw Problem.noInput
        }
        sampleRate = format.sampleRate
        let sink = Self.sink(into: ring)
        engine.attach(sink)
        engine.connect(input, to: sink, format: format)
        engine.prepare()
        try engine.start()
    }

    /// Copies the first channel and does nothing else. Static, since its block is called by the audio thread and must not
    /// belong to the actor.
    private static func sink(into ring: RingBuffer) -> AVAudioSinkNode {
        AVAudioSinkNode { _, frameCount, audio -> OSStatus in
            let buffers = UnsafeMutableAudioBufferListPointer(UnsafeMutablePointer(mutating: audio))
            if let samples = buffers[0].mData?.assumingMemoryBound(to: Float.self) {
                ring.write(UnsafeBufferPointer(start: samples, count: Int(frameCount)))
            }
            return noErr
        }
    }

    // MARK: - What may happen meanwhile

    private func watch() {
        observe(.AVAudioEngineConfigurationChange) { _ in .restart }  // headphones came or went
        #if os(iOS)
        observe(AVAudioSession.mediaServicesWereResetNotification) { _ in .restart }
        observe(AVAudioSession.interruptionNotification) { information in
            let type = information?[AVAudioSessionInterruptionTypeKey] as? UInt
            let options = information?[AVAudioSessionInterruptionOptionKey] as? UInt ?? 0
            guard type == AVAudioSession.InterruptionType.ended.rawValue else { return .wait }
            return AVAudioSession.InterruptionOptions(rawValue: options).contains(.shouldResume) ? .restart : .giveUp
        }
        #endif
    }

    private enum Reaction: Sendable { case wait, restart, giveUp }

    private func observe(_ name: Notification.Name, _ reaction: @escaping @Sendable ([AnyHashable: Any]?) -> Reaction) {
        let center = NotificationCenter.default
        let observer = center.addObserver(forName: name, object: nil, queue: nil) { [weak self] note in
            let reaction = reaction(note.userInfo)
            Task { await self?.react(reaction) }
        }
        observers.append(observer)
    }

    private func react(_ reaction: Reaction) {
        guard !observers.isEmpty else { return }  // stopped in the meantime
        switch reaction {
        case .wait: ring.breakOff()
        case .giveUp: problem = Problem.interrupted
        case .restart:
            if engine.isRunning { return }  // an engine that must start anew has stopped; this word is of an older one
            do { try run() } catch { problem = error }
        }
    }
}
#endif
