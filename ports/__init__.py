"""Official PyTorch checkpoints brought into our models, with proof. Needs the extra `ports`."""
