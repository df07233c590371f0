"""From a file, or from the synthesizer, to what was heard; as `python -m sousa_jax.listen` hears it."""

import dataclasses
import math
import pathlib
from typing import NamedTuple

import numpy as np

from sousa_jax import recording
from sousa_jax.data.clips import loop_fill, trim_tail
from sousa_jax.errors import InputError
from sousa_jax.hearing import HeardStrokes
from sousa_jax.rejection import Limits
from sousa_jax.stream import Stream
from sousa_jax.take import Listener, Take

LONGEST_S = 600.0
SYNTH_HZ, SYNTH_S = 44_100, 8.0


@dataclasses.dataclass(frozen=True)
class Recording:
    """What the page shows. wave: `(n,)` float32 at the network's rate. played: what the synthesizer was asked for, in
    words, if it was the synthesizer."""

    wave: np.ndarray
    take: Take
    played: str = ""


class Window(NamedTuple):
    """Part of a recording as the network was given it.

    start_s: of its first sample, in the recording. wave: `(n,)` float32. n_sound: samples until it begins anew, as the
    length policy fills a window; n of one that is full. strokes: in it, on the recording's clock.
    """

    start_s: float
    wave: np.ndarray
    n_sound: int
    strokes: HeardStrokes


def hear(path: pathlib.Path, stream: Stream, limits: Limits, played: str = "") -> Recording:
    """A file as `listen.hear_file` hears it, and its samples. `InputError` if it cannot be used or is too long."""
    listener, pieces, n_samples = Listener(stream, limits), [], 0
    try:
        for samples in recording.blocks(path, stream.sample_rate):
            n_samples += len(samples)
            if n_samples > LONGEST_S * stream.sample_rate:
                limit = f"longer than {LONGEST_S / 60:g} minutes"
                raise InputError(f"{path.name}: {limit}; python -m sousa_jax.listen hears any length")
            listener.push(samples)
            pieces.append(samples)
    except InputError as error:  # where the server keeps a file is its own affair
        raise InputError(str(error).replace(str(path), path.name)) from None
    return Recording(np.concatenate(pieces), listener.finish(), played)


def play(slug: str, tempo_bpm: float, tier: str, seed: int) -> np.ndarray:
    """The synthesizer, on a random drum: `(n,)` int16 at `SYNTH_HZ`, what `python -m sousa_jax.data.synth` makes of the
    same and `--duration=8`."""
    import jax

    from sousa_jax.data.synth.request import Request, perform

    wave, _ = perform(jax.random.key(seed), Request(slug, tempo_bpm, tier, duration_s=SYNTH_S), SYNTH_HZ)
    return np.rint(wave * 32767).astype(np.int16)


def longest(take: Take) -> int | None:
    """Number of the segment that matters most: the longest rudiment, else the longest of all; None without any."""
    lengths = [(bool(p.segment.rudiment), p.segment.end_s - p.segment.start_s) for p in take.played]
    return lengths.index(max(lengths)) if lengths else None


def last_start_s(heard: Recording, stream: Stream) -> float:
    """Where the last window begins, rounded up to a hop; 0 of a recording that fits into one."""
    hop_s = stream.settings.hop_s
    return max(0, math.ceil((len(heard.wave) - stream.length) / stream.sample_rate / hop_s)) * hop_s


def middle_start_s(heard: Recording, part: int | None, stream: Stream) -> float:
    """Where the window begins that lies in the middle of a segment; 0 without one."""
    if part is None:
        return 0.0
    segment, hop_s = heard.take.played[part].segment, stream.settings.hop_s
    at_s = (segment.start_s + segment.end_s - stream.length / stream.sample_rate) / 2
    return float(np.clip(round(at_s / hop_s) * hop_s, 0.0, last_start_s(heard, stream)))


def window(heard: Recording, at_s: float, stream: Stream) -> Window:
    """The window that begins at `at_s`; the last one ends with the recording."""
    rate, n_window = stream.sample_rate, stream.model.config.frontend.window_samples
    begin = max(0, min(round(at_s * rate), len(heard.wave) - stream.length))
    kept = trim_tail(heard.wave[begin : begin + stream.length], rate)
    columns = [np.concatenate(column) for column in zip(*(p.strokes for p in heard.take.played), strict=True)]
    strokes = HeardStrokes(*columns or np.zeros((4, 0), np.float32))
    inside = (strokes.time_s >= begin / rate) & (strokes.time_s < (begin + len(kept)) / rate)
    strokes = HeardStrokes(*(column[inside] for column in strokes))
    return Window(begin / rate, loop_fill(kept, n_window, 0), min(len(kept), n_window), strokes)
