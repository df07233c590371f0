"""Examples to listen to: clips that the best run took for something else, beside clips of what it named."""

import base64
import dataclasses
import io
from typing import Any

import numpy as np
import scipy.special

from sousa_jax.errors import InputError
from sousa_jax.report.analysis import Findings, title
from sousa_jax.report.runs import Run

RATE = 24_000  # Hz; of what a browser plays


@dataclasses.dataclass(frozen=True)
class Example:
    """A clip that can be heard: `source` is a data URI of its first window, as the network heard it."""

    caption: str
    sample_id: str
    source: str


def examples(findings: Findings, data: str | None = None) -> tuple[list[list[Example]], str]:
    """For each of the hardest pairs of the best run two clips, one that was mistaken and one that it was mistaken for;
    and, where there are none to hear, the reason.

    data: where the clips are, by default where the run had them.
    """
    run = findings.best.run
    try:
        clips = _open(run, data)
        rows = {sample_id: row for row, sample_id in enumerate(clips.table["sample_id"])}
        return [_pair(run, clips, rows, pair.played, pair.named) for pair in findings.hardest], ""
    except InputError as error:
        return [], str(error)


def _open(run: Run, data: str | None) -> Any:
    if not run.config:
        raise InputError(f"{run.name} does not record its data; give --data")
    from ml_collections import ConfigDict  # late: JAX, for the synthesizer

    from sousa_jax.data import open_split

    config = ConfigDict(run.config)
    config.data.cache_dir, config.data.streaming = "", False
    if data is not None:
        config.data.path, config.data.revision = data, ""
    split, expected = run.summary.get("split", "test"), run.summary.get("data_fingerprint")
    clips = open_split(config.data, split, seed=config.seed, sample_rate=RATE)
    if expected and clips.fingerprint != expected:
        raise InputError(f"{config.data.path} is not what {run.name} was tested on; give --data")
    return clips


def _pair(run: Run, clips: Any, rows: dict[str, int], played: int, named: int) -> list[Example]:
    answers = run.answers
    sure = scipy.special.softmax(answers.logits["all windows"], axis=1)[:, named]
    found = []
    for truth, caption in ((played, "the clip that was mistaken"), (named, f"{title(named)} that it knew")):
        mask = (answers.labels == truth) & (answers.named() == named)
        if mask.any():
            sample_id = answers.table["sample_id"][np.flatnonzero(mask)[sure[mask].argmax()]]
            if sample_id not in rows:
                raise InputError(f"the data of {run.name} have no clip {sample_id}; give --data")
            found.append(Example(caption, sample_id, _data_uri(clips, rows[sample_id], run.window_s)))
    return found


def _data_uri(clips: Any, row: int, window_s: float) -> str:
    import soundfile

    from sousa_jax.data.clips import BadClip, loop_fill, trim_tail

    if "MP3" not in soundfile.available_formats():
        raise InputError("this installation of libsndfile writes no MP3")
    try:
        wave = trim_tail(clips.waveform(row, RATE), RATE)
    except BadClip as bad:
        raise InputError(str(bad)) from bad
    buffer = io.BytesIO()
    soundfile.write(buffer, loop_fill(wave, round(window_s * RATE), 0), RATE, format="MP3")
    return "data:audio/mpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
