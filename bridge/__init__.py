"""The way out: Flax parameters → PyTorch student → Core ML package."""
