"""One clip to listen to and to look at."""

import pathlib

import numpy as np

from sousa_jax.data.synth.strokes import KINDS, LEFT, Strokes
from sousa_jax.errors import InputError
from sousa_jax.rudiments import STROKE_TYPES


def write_audio(path: pathlib.Path, wave: np.ndarray, sample_rate: int) -> None:
    """Writes `(n,)` float32 as a 24-bit file under a name that `check_name` takes."""
    import soundfile

    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        soundfile.write(unfinished, wave, sample_rate, format=path.suffix[1:].upper(), subtype="PCM_24")
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)


def check_name(path: pathlib.Path) -> None:
    """`InputError` for a suffix other than .wav and .flac, or a folder that is not there."""
    if path.suffix not in (".wav", ".flac"):
        raise InputError(f"cannot write {path}: a clip's name ends in .wav or .flac")
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}")


def draw_clip(path: pathlib.Path, wave: np.ndarray, sample_rate: int, strokes: Strokes, title: str) -> pathlib.Path:
    """Draws waveform, mel spectrogram and strokes of a clip, one above the other; returns the path.

    Args:
      path: of the picture, `.png`.
      wave: (n,) float32.
      strokes: of one performance, times in seconds from the clip's first sample.
    """
    import librosa
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    duration_s = len(wave) / sample_rate
    hop = sample_rate // 200  # 5 ms: the two strokes of a flam stand apart
    mel = librosa.feature.melspectrogram(
        y=wave, sr=sample_rate, n_fft=1024, hop_length=hop, n_mels=96, fmax=min(16_000, sample_rate / 2)
    )
    figure, (wave_axes, mel_axes, stroke_axes) = plt.subplots(
        3, 1, figsize=(min(40, 4 + 2 * duration_s), 7), sharex=True, layout="constrained", height_ratios=(2, 3, 2)
    )
    wave_axes.plot(np.arange(len(wave)) / sample_rate, wave, linewidth=0.4, color="black")
    wave_axes.set(ylabel="sample value", title=title)
    mel_axes.imshow(
        librosa.power_to_db(mel, ref=np.max, top_db=80),
        origin="lower", aspect="auto", extent=(0, duration_s, 0, 96), cmap="magma",
    )  # fmt: skip
    mel_axes.set(ylabel="mel band, 80 dB")
    for hand, name, colour in ((0, "right", "tab:blue"), (LEFT, "left", "tab:orange")):
        for kind, letter in enumerate(KINDS):
            chosen = strokes.valid & (strokes.hand == hand) & (strokes.kind == kind)
            if not chosen.any():
                continue
            marker = {"A": ">", "t": "o", "d": "s", "b": "x", "g": "."}[letter]
            stroke_axes.vlines(strokes.time_s[chosen], 0, strokes.velocity[chosen], colors=colour, linewidth=1)
            stroke_axes.plot(
                strokes.time_s[chosen], strokes.velocity[chosen], marker, color=colour,
                label=f"{name} {STROKE_TYPES[letter]}",
            )  # fmt: skip
    stroke_axes.set(xlabel="seconds", ylabel="velocity", ylim=(0, 130), xlim=(0, duration_s))
    figure.legend(*stroke_axes.get_legend_handles_labels(), loc="outside lower center", ncols=10, fontsize="small")
    unfinished = path.with_name(f".{path.name}.tmp")
    figure.savefig(unfinished, dpi=100, format="png")
    plt.close(figure)
    unfinished.rename(path)
    return path
