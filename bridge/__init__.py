"""The way out: Flax parameters → PyTorch twin → Core ML package, and the proof that they are the same."""
