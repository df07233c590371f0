"""Where sound comes from, in pieces of one channel at a network's rate: recordings of any length, the microphone."""

import contextlib
import pathlib
import queue
from collections.abc import Iterator

import numpy as np

from sousa_jax.errors import InputError

BLOCK_S = 5.0
READABLE = "expected a recording that libsndfile reads (wav, flac, ogg, mp3)"
MICROPHONE_BLOCK_S = 0.02


class Resampler:
    """Pieces of a stream at one rate to pieces at another, by soxr at its HQ setting: together they are what the whole
    stream resampled at once is, however it is cut. What it remembers is in soxr; the samples it holds back are few.

    Args:
      from_hz, to_hz: rates; where they are the same, pieces come back as they are.
    """

    def __init__(self, from_hz: float, to_hz: float):
        import soxr

        self._to_hz = to_hz
        self._stream = None if from_hz == to_hz else soxr.ResampleStream(from_hz, to_hz, 1, "float32", "HQ")

    def push(self, samples: np.ndarray, last: bool = False) -> np.ndarray:
        """`(n,)` float32 to `(m,)`; with the `last` piece comes what was held back."""
        return samples if self._stream is None else self._stream.resample_chunk(samples, last)

    @property
    def delay_s(self) -> float:
        """Seconds of sound that it holds back now."""
        return 0.0 if self._stream is None else self._stream.delay() / self._to_hz


def blocks(path: pathlib.Path, sample_rate: int) -> Iterator[np.ndarray]:
    """A recording of any rate, format and number of channels, `(n,)` float32 pieces of about `BLOCK_S` at `sample_rate`
    Hz. Channels are averaged. Memory does not grow with the recording.

    Raises:
      InputError: on the way, as soon as it is seen that the file cannot be used: not there, not audio, cut short,
        empty, or not finite.
    """
    import soundfile

    if not path.is_file():
        raise InputError(f"{path}: {'a folder' if path.is_dir() else 'no such file'}; expected a recording")
    n_read = n_given = 0
    try:
        with soundfile.SoundFile(path) as audio:
            resampler = Resampler(audio.samplerate, sample_rate)
            while n_read < audio.frames:
                channels = audio.read(round(BLOCK_S * audio.samplerate), dtype="float32", always_2d=True)
                n_read += len(channels)
                if len(channels) == 0:
                    raise InputError(f"{path}: ends after {n_read} of {audio.frames} samples; it is cut short")
                if not np.isfinite(channels).all():
                    raise InputError(f"{path}: has samples that are not finite; {READABLE}")
                mono = channels @ np.full(channels.shape[1], 1 / channels.shape[1], np.float32)
                piece = resampler.push(mono, last=n_read >= audio.frames)
                n_given += len(piece)
                yield piece
    except (soundfile.SoundFileError, OSError) as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}; {READABLE}") from None
    if not n_given:
        raise InputError(f"{path}: empty, {n_read} samples; {READABLE}")


def read_audio(path: pathlib.Path, sample_rate: int) -> np.ndarray:
    """A whole recording as one channel at `sample_rate` Hz, `(n,)` float32, n ≥ 1. Errors as of `blocks`."""
    return np.concatenate(list(blocks(path, sample_rate)))


@contextlib.contextmanager
def microphone() -> Iterator[tuple[float, Iterator[np.ndarray]]]:
    """The default microphone, while the block lasts: its rate in Hz, and what it hears, `(n,)` float32 pieces.

    Raises:
      InputError: no `sounddevice`, no microphone, or it fails.
    """
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # OSError: PortAudio itself is missing
        raise InputError(f"--mic needs sounddevice ({error}): pip install 'sousa-jax[mic]'") from None
    heard: queue.SimpleQueue[np.ndarray] = queue.SimpleQueue()

    def pieces() -> Iterator[np.ndarray]:
        while True:
            yield heard.get()

    with contextlib.ExitStack() as opened:
        try:
            rate = float(sounddevice.query_devices(kind="input")["default_samplerate"])
            device = sounddevice.InputStream(
                samplerate=rate,
                channels=1,
                dtype="float32",
                blocksize=round(MICROPHONE_BLOCK_S * rate),
                callback=lambda samples, *_: heard.put(samples[:, 0].copy()),
            )
            opened.enter_context(device)
        except (sounddevice.PortAudioError, ValueError) as error:
            raise InputError(f"the microphone cannot be used: {' '.join(str(error).split())}") from None
        yield rate, pieces()
