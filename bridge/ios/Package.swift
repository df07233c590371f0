// swift-tools-version: 5.9
import PackageDescription

let package = Package(
    name: "RudimentListener",
    platforms: [.iOS(.v17), .macOS(.v14)],
    products: [
        .library(name: "RudimentListener", targets: ["RudimentWindows", "RudimentListener", "RudimentScreens"])
    ],
    targets: [
        // No Apple framework: built and tested on Linux, too.
        .target(name: "RudimentWindows"),
        // Empty where there is no Core ML.
        .target(name: "RudimentListener", dependencies: ["RudimentWindows"]),
        .target(name: "RudimentScreens", dependencies: ["RudimentListener", "RudimentWindows"]),
        .testTarget(
            name: "RudimentWindowsTests", dependencies: ["RudimentWindows"], resources: [.copy("vectors.json")]),
        .testTarget(
            name: "RudimentListenerTests", dependencies: ["RudimentListener", "RudimentWindows"],
            resources: [.copy("Installed")]),
    ]
)
