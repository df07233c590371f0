"""Real clips and synthetic ones of the very same strokes, side by side: what the spectrograms say.

    python -m benchmarks.side_by_side --data=sousa_mini --out=docs/real_and_synthetic.jpg

Each row is one clip of the validation split: on the left as SOUSA rendered it; beside it the same stroke table and
preset, on three random drums of ours. Two seconds from the middle of the clip, log-mel, 5 ms a frame, the marks below
are the strokes (the height is their velocity).
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import librosa
import matplotlib
import numpy as np
import pandas as pd

from sousa_jax.data.sousa import open_clips
from sousa_jax.data.synth.presets import PRESET_NAMES, SOUSA
from sousa_jax.data.synth.render import render_batch
from sousa_jax.data.synth.strokes import KINDS, Strokes
from sousa_jax.errors import one_line_errors
from sousa_jax.rudiments import STROKE_TYPES

matplotlib.use("agg")
import matplotlib.pyplot as plt

RATE = 16_000
SHOWN_S = 2.0
DRUMS = 3
CLIPS = ("flam_accent", "single_drag_tap", "single_paradiddle", "nine_stroke_roll", "multiple_bounce_roll")


def as_strokes(table: pd.DataFrame) -> Strokes:
    """A clip's rows of SOUSA's stroke table, times from its first sample."""
    time_s = np.maximum(table["actual_time_ms"].to_numpy(), 0) / 1000
    written_s = table["intended_time_ms"].to_numpy() / 1000
    kinds = [STROKE_TYPES[letter] for letter in KINDS]
    velocity = table["actual_velocity"].to_numpy()
    return Strokes(
        time_s=jnp.asarray(time_s, jnp.float32),
        written_s=jnp.asarray(written_s, jnp.float32),
        velocity=jnp.asarray(velocity, jnp.float32),
        written_velocity=jnp.asarray(table["intended_velocity"].to_numpy(), jnp.float32),
        hand=jnp.asarray((table["hand"] == "L").to_numpy(), jnp.int32),
        kind=jnp.asarray([kinds.index(name) for name in table["stroke_type"]], jnp.int32),
        is_grace=jnp.asarray(table["is_grace_note"].to_numpy()),
        diddle=jnp.asarray(table["diddle_position"].fillna(0).to_numpy(), jnp.int32),
        parent=jnp.asarray(table["parent_stroke_index"].fillna(-1).to_numpy(), jnp.int32),
        valid=jnp.ones(len(table), bool),
    )


def log_mel(wave: np.ndarray) -> np.ndarray:
    mel = librosa.feature.melspectrogram(y=wave, sr=RATE, n_fft=512, hop_length=80, n_mels=64, fmax=7_500)
    return librosa.power_to_db(mel, ref=np.max, top_db=70)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, required=True, help="SOUSA folder in the Hub's layout")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    with one_line_errors():
        draw(args.data, args.out)


def draw(data: pathlib.Path, out: pathlib.Path) -> None:
    clips = open_clips(str(data), "validation")
    table = pd.read_parquet(data / "auxiliary" / "strokes.parquet")
    figure, axes = plt.subplots(
        len(CLIPS), 1 + DRUMS, figsize=(4 * (1 + DRUMS), 2.2 * len(CLIPS)), sharex=True, layout="constrained"
    )
    seen_banks: set[str] = set()
    for row, (slug, cells) in enumerate(zip(CLIPS, axes, strict=True)):
        of_slug = clips.table[clips.table["rudiment_slug"] == slug]
        fresh = of_slug[~of_slug["soundfont"].isin(seen_banks)]
        index = (fresh if len(fresh) else of_slug).index[0]
        clip = clips.table.loc[index]
        seen_banks.add(clip["soundfont"])
        strokes = as_strokes(table[table["sample_id"] == clip["sample_id"]])
        real = clips.waveform(index, RATE)
        made = render_batch(
            jax.random.split(jax.random.key(row), DRUMS),
            jax.tree.map(lambda column: jnp.repeat(column[None], DRUMS, 0), strokes),
            sample_rate=RATE,
            n_samples=len(real),
            start_s=jnp.zeros(DRUMS),
            style=jnp.full(DRUMS, SOUSA),
            preset=jnp.full(DRUMS, PRESET_NAMES.index(clip["augmentation_preset"])),
        )
        start_s = max(0.0, (len(real) / RATE - 1 - SHOWN_S) / 2)
        time_s = np.asarray(strokes.time_s) - start_s
        for cell, wave in zip(cells, [real, *np.asarray(made)], strict=True):
            part = wave[round(start_s * RATE) :][: round(SHOWN_S * RATE)]
            cell.imshow(log_mel(part), origin="lower", aspect="auto", extent=(0, SHOWN_S, 0, 64), cmap="magma")
            cell.vlines(time_s, -12, -12 + 11 * np.asarray(strokes.velocity) / 127, colors="black", linewidth=0.8)
            cell.set(xlim=(0, SHOWN_S), ylim=(-12, 64), yticks=[])
        cells[0].set_title(f"real: {slug}, {clip['soundfont'][:12]}, {clip['augmentation_preset']}", fontsize=8)
        for number, cell in enumerate(cells[1:], 1):
            cell.set_title(f"synthetic {number}", fontsize=8)
    for cell in axes[-1]:
        cell.set_xlabel("seconds")
    figure.savefig(out, dpi=65)
    print(out)


if __name__ == "__main__":
    main()
