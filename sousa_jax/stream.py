"""The engine of listening: push any number of samples, get a reading of every window that they complete.

    stream = Stream(checkpoint.load_model(checkpoint.SHIPPED))
    state = stream.start()
    for reading in stream.push(state, samples):      # as often as samples come, float32 at the model's rate
        ...
    for reading in stream.finish(state):             # the end of a recording: what no window has held yet
        ...

samples → sliding windows → silence? → silent tail cut off, loop filled → network → calibrated → smoothed → reading

The windows, the gate, the length policy and the smoothing are those of the phone (`bridge/ios/Sources/RudimentWindows`:
SlidingWindow, Loudness, LengthPolicy, Smoother, ListeningSession, Latency); tests hold their constants together. Three
things differ, as files ask for it: the default hop is 0.5 s (the phone's is half a window, its `hop` may be set); no
window is left out when several are complete at once; and a stream may end. How the samples are cut into pieces changes
no reading, only its latency.
"""

import dataclasses
import functools
import time
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.special

from sousa_jax.checkpoint import Model
from sousa_jax.data.clips import loop_fill, trim_tail
from sousa_jax.data.frame_targets import FrameTargets
from sousa_jax.errors import InputError
from sousa_jax.step import Heard, make_eval_step

WINDOW_RANGE_S = (1.5, 5.0)
SMALLEST_PROBABILITY = 1e-7  # half precision may answer zero, whose logarithm would outvote every other window
FRAMES_PER_SECOND = 100  # of those whose loudness is measured


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a stream is cut into windows and their answers are joined; the phone's `ListeningSettings`.

    Attributes:
      window_s: seconds of playing that one answer is about, at most the model's. Shorter, they go round in a circle.
      hop_s: from window to window.
      smoothed_windows: how many are heard together.
      silence_db: a window whose loudest 10 ms are softer, decibels of full scale, is silence.
    """

    window_s: float = 5.0
    hop_s: float = 0.5
    smoothed_windows: int = 3
    silence_db: float = -50.0

    def __post_init__(self) -> None:
        low, high = WINDOW_RANGE_S
        if not low <= self.window_s <= high:
            raise InputError(f"a window lasts {low:g} to {high:g} s, not {self.window_s:g}")
        if not 0 < self.hop_s <= self.window_s:
            raise InputError(f"windows of {self.window_s:g} s need a hop above 0 and up to that, not {self.hop_s:g}")
        if self.smoothed_windows < 1:
            raise InputError(f"at least one window is heard, not {self.smoothed_windows}")


class Latency(NamedTuple):
    """From the last sample of a window to its reading, in seconds.

    buffering_s: of sound that came after that sample before anybody looked: the rest of the piece that was pushed,
    windows that wait for others of their batch. inference_s: the network's own time and what is around it.
    """

    buffering_s: float
    inference_s: float

    @property
    def total_s(self) -> float:
        return self.buffering_s + self.inference_s

    def until_change_is_heard_s(self, settings: Settings) -> float:
        """About how long after a drummer changes the rudiment the new one fills most of the windows that are heard
        together: half of what they span, up to a hop until the next window, and the latency."""
        span_s = settings.window_s + (settings.smoothed_windows - 1) * settings.hop_s
        return span_s / 2 + settings.hop_s + self.total_s


class Reading(NamedTuple):
    """What is known after a window. C is the number of classes, T that of the window's frames.

    start, end: its samples in the stream, `start ≤ i < end`.
    loudness_db: RMS of its loudest 10 ms, decibels of full scale; -inf for digital silence.
    sound: samples up to its silent tail; 0 where the whole window is silent, and then the rest is None.
    log_probs: `(C,)` float64, calibrated, of this window alone. smoothed: of the last windows together, probabilities.
    strokes: probabilities, `(T,)` float32 each, of a network that hears strokes; from the tail on a circle begins anew.
    latency: see there; the one field that depends on how samples were pushed.
    """

    start: int
    end: int
    loudness_db: float
    sound: int
    log_probs: np.ndarray | None
    smoothed: np.ndarray | None
    strokes: FrameTargets | None
    latency: Latency


class Window(NamedTuple):
    """One that is complete and not silent, and waits for the network. `wave` `(n,)` is what the network will hear."""

    start: int
    end: int
    loudness_db: float
    sound: int
    wave: np.ndarray


@dataclasses.dataclass
class State:
    """All that a stream remembers, changed by `push` and `finish`.

    Attributes:
      buffer: `(length + hop,)` float32: samples from `first` on, of which `held` are there.
      first: number of the first one in the stream.
      next_start: where the next window begins.
      waiting: windows for the network, fewer than its batch.
      logs: log-probabilities of the last windows, for the smoothing.
    """

    buffer: np.ndarray
    first: int = 0
    held: int = 0
    next_start: int = 0
    waiting: tuple[Window, ...] = ()
    logs: tuple[np.ndarray, ...] = ()

    @property
    def n_samples(self) -> int:
        """Samples of the stream so far."""
        return self.first + self.held


class Stream:
    """What does not change while listening: the network and the settings. It compiles one program, when it is made.

    Args:
      model: any.
      settings: see there.
      batch: windows that the network hears at once. With 1 a window is answered as soon as it is complete; with more
        it waits for others, for silence, or for the end.
    """

    def __init__(self, model: Model, settings: Settings | None = None, batch: int = 1):
        self.model, self.settings, self.batch = model, settings or Settings(), batch
        spec = model.config.frontend
        self.sample_rate = spec.sample_rate
        self.length = min(spec.window_samples, round(self.settings.window_s * self.sample_rate))
        self.hop = max(1, min(self.length, round(self.settings.hop_s * self.sample_rate)))
        hear_windows(model, np.zeros((1, spec.window_samples), np.float32), batch)

    def start(self) -> State:
        """The state before the first sample."""
        return State(np.zeros(self.length + self.hop, np.float32))

    def push(self, state: State, samples: np.ndarray) -> list[Reading]:
        """Takes in samples, `(n,)` float32 in -1 … 1, and returns the readings that they complete, oldest first.

        Raises:
          ValueError: not one channel of floating-point numbers.
        """
        if samples.ndim != 1 or samples.dtype.kind != "f":
            raise ValueError(f"expected one channel, (n,) float32, not {samples.shape} {samples.dtype}")
        readings, taken = [], 0
        total = state.n_samples + len(samples)
        while taken < len(samples):
            piece = samples[taken : taken + state.next_start + self.length - state.n_samples]
            state.buffer[state.held : state.held + len(piece)] = piece
            state.held += len(piece)
            taken += len(piece)
            if state.n_samples == state.next_start + self.length:
                readings += self._take(state, state.next_start, total)
                dropped = state.next_start - state.first
                state.buffer[: self.length] = state.buffer[dropped : state.held]
                state.first, state.held = state.next_start, self.length
                state.next_start += self.hop
        return readings

    def finish(self, state: State) -> list[Reading]:
        """The end of the stream: reads what no window has held yet, and what still waits. What is pushed next is
        another stream.

        A stream shorter than a window is one; of a longer one the last window ends with it, moved by less than a frame
        so that it begins on one.
        """
        readings, total = [], state.n_samples
        is_short = state.next_start == 0
        if is_short and state.held:
            readings += self._take(state, 0, total)
        elif not is_short:
            frame = self.sample_rate // (self.model.config.strokes_per_second or self.sample_rate)
            start = (total - self.length) // frame * frame
            readings += self._take(state, start, total) if start > state.first else []
        readings += self._answer(state, total)
        fresh = self.start()
        for field in dataclasses.fields(State):
            setattr(state, field.name, getattr(fresh, field.name))
        return readings

    def _take(self, state: State, start: int, total: int) -> list[Reading]:
        """The window of `length` samples from `start` on, or of as many as there are, is complete."""
        wave = state.buffer[start - state.first : min(state.held, start - state.first + self.length)]
        end, loudness_db = start + len(wave), peak_db(wave, self.sample_rate)
        if loudness_db < self.settings.silence_db:  # what follows is another take
            readings = self._answer(state, total)
            state.logs = ()
            latency = Latency((total - end) / self.sample_rate, 0.0)
            return [*readings, Reading(start, end, loudness_db, 0, None, None, None, latency)]
        kept = trim_tail(wave, self.sample_rate)
        filled = loop_fill(kept, self.model.config.frontend.window_samples, 0)
        state.waiting += (Window(start, end, loudness_db, len(kept), filled),)
        return self._answer(state, total) if len(state.waiting) == self.batch else []

    def _answer(self, state: State, total: int) -> list[Reading]:
        """The readings of all windows that wait."""
        if not state.waiting:
            return []
        begin_s = time.perf_counter()
        heard = hear_windows(self.model, np.stack([window.wave for window in state.waiting]), self.batch)
        log_probs = scipy.special.log_softmax(heard.logits.astype(np.float64) / self.model.temperature, axis=1)
        inference_s = time.perf_counter() - begin_s
        readings = []
        for i, window in enumerate(state.waiting):
            state.logs = (*state.logs, log_probs[i])[-self.settings.smoothed_windows :]
            strokes = None if heard.strokes is None else FrameTargets(*(x[i] for x in heard.strokes))
            latency = Latency((total - window.end) / self.sample_rate, inference_s)
            readings.append(Reading(*window[:4], log_probs[i], together(state.logs), strokes, latency))
        state.waiting = ()
        return readings


def together(logs: tuple[np.ndarray, ...]) -> np.ndarray:
    """What windows say together: the mean of their log-probabilities, `(C,)` each, as probabilities that sum to one."""
    floor = np.log(SMALLEST_PROBABILITY)
    return scipy.special.softmax(np.maximum(np.stack(logs), floor).mean(0))


def peak_db(wave: np.ndarray, sample_rate: int) -> float:
    """RMS of the loudest 10 ms of a window, `(n,)`, in decibels of full scale; `-inf` for digital silence. The last
    frame may be shorter and is filled up with zeros."""
    frame = max(1, sample_rate // FRAMES_PER_SECOND)
    powers = np.add.reduceat(np.square(wave, dtype=np.float64), np.arange(0, len(wave), frame)) / frame
    with np.errstate(divide="ignore"):
        return float(10 * np.log10(powers.max()))


def hear_windows(model: Model, windows: np.ndarray, batch: int) -> Heard:
    """What a network hears in `(W, n_samples)` windows, `batch` at a time, the last ones filled up with silence: one
    compiled program for any number of windows. NumPy."""
    eval_step = _eval_step(model.name, model.config)
    parts = []
    for i in range(0, len(windows), batch):
        some = windows[i : i + batch]
        full = np.pad(some, ((0, batch - len(some)), (0, 0)))
        parts.append(jax.device_get(eval_step(model.params, model.stats, {"waveform": full})))
    return jax.tree.map(lambda *x: np.concatenate(x)[: len(windows)], *parts)


@functools.lru_cache(maxsize=2)
def _eval_step(name: str, config: Any):
    return make_eval_step(name, config)
