"""The built-in data: simulated players perform the 40 rudiments on random drums, endlessly.

Everything is a pure function of (seed, split, row), in JAX, on the device:

    players → written → performance      key → who plays, what is written, what is played (`Strokes`)
    drums → chain → render               strokes → a random drum, a room, a microphone → waveform
    learned_drums                        recordings → their drums, in place of random ones
    stream                               the endless rows of a split
    batches                              rows → training batches under jit
    clips · export · request             a fixed set of rows as `Clips`; as a folder in the Hub's layout; one by name
    targets · scores                     labels: strokes per frame; SOUSA's exercise scores

    python -m sousa_jax.data.synth --help
"""

from sousa_jax.data.synth.batches import SynthBatches
from sousa_jax.data.synth.clips import SynthClips
from sousa_jax.data.synth.stream import Source

__all__ = ["Source", "SynthBatches", "SynthClips"]
