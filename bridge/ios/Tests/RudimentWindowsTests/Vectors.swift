import Foundation
import XCTest

@testable import RudimentWindows

/// Numbers that the Python functions gave (`tests/bridge/test_ios.py` holds the file to them).
struct Vectors: Decodable {
    struct Tail: Decodable {
        let name: String
        let wave: [Float]
        let rate: Int
        let length: Int
    }
    struct Fill: Decodable {
        let clip: Int
        let count: Int
        let start: Int
        let filled: [Float]
    }
    struct Starts: Decodable {
        let clip: Int
        let window: Int
        let hop: Int
        let starts: [Int]
    }
    struct Smoothing: Decodable {
        let windows: [[Double]]
        let smoothed: [String: Double]
    }
    struct Hop: Decodable {
        let length: Int
        let hop: Int
    }

    let tails: [Tail]
    let fills: [Fill]
    let starts: [Starts]
    let smoothing: Smoothing
    let hops: [Hop]
    let golden: GoldenClip

    static func load() throws -> Vectors { try JSONDecoder().decode(Vectors.self, from: data()) }

    static func data() throws -> Data {
        let url = try XCTUnwrap(Bundle.module.url(forResource: "vectors", withExtension: "json"))
        return try Data(contentsOf: url)
    }
}

/// `count` samples that are all different: 1, 2, 3 …
func numbered(_ count: Int, from first: Int = 1) -> [Float] { (0..<count).map { Float(first + $0) } }
