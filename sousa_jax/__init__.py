"""SOUSAphone in JAX: hears a snare drum and names which of the 40 PAS rudiments is played."""

__version__ = "0.1.0"
