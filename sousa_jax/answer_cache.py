"""What teachers answer about fixed places of recorded clips, kept on disk: asked once, however long a student trains.

    --config.distill.cache=DIR --config.data.crops=8 --config.augment.tempo_stretch=0 --config.augment.mixup_alpha=0

A training clip is heard at `config.data.crops` evenly spaced places. What only the student hears (noise, gain, masks,
jitter) may stay on; stretching and mixing, which teachers hear too, may not. DIR belongs to one set of teachers and one
set of clips:

    logits.float32   (clips, crops, teachers, NUM_CLASSES), NaN where a clip is bad
    answers.json     who was asked about what (`_key`), and about how many clips so far
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sousa_jax import checkpoint, distill
from sousa_jax.data.clips import BadClip, Clips, crop_start, loop_fill, trim_tail
from sousa_jax.data.pipeline import BadClips, ordered_map
from sousa_jax.devices import Layout
from sousa_jax.distill import Teacher
from sousa_jax.errors import InputError
from sousa_jax.frontends import FrontendSpec
from sousa_jax.logging import logger
from sousa_jax.rudiments import NUM_CLASSES

LOGITS, RECORD = "logits.float32", "answers.json"
KEEP_EVERY = 64  # clips, after which what was answered is on disk
MORE_THAN_LOGITS = ("embedding", "strokes")


@dataclasses.dataclass(frozen=True)
class AnswerCache:
    """`logits`: `(clips, crops, teachers, NUM_CLASSES)` float32, memory-mapped."""

    folder: pathlib.Path
    logits: np.ndarray

    def of(self, clip: np.ndarray, crop: np.ndarray) -> np.ndarray:
        """What was answered about crops of clips, `(B,)` each: `(B, teachers, NUM_CLASSES)`.

        `InputError` if a number is missing: the file was changed.
        """
        found = self.logits[clip, crop]
        if not np.isfinite(found).all():
            raise InputError(f"the teachers' answers in {self.folder} are damaged: delete it, and they are asked again")
        return found


class AnsweredBatches:
    """The same batches with `teacher_logits` in each, `(B, teachers, NUM_CLASSES)`."""

    def __init__(self, batches: Any, cache: AnswerCache):
        self._batches, self._cache = batches, cache
        self.names = batches.names

    def __iter__(self) -> "AnsweredBatches":
        return self

    def __next__(self) -> tuple[dict[str, Any], dict[str, int]]:
        batch, position = next(self._batches)
        return batch | {"teacher_logits": self._cache.of(batch["clip"], batch["crop"])}, position

    def __enter__(self) -> "AnsweredBatches":
        return self

    def __exit__(self, *exception: Any) -> None:
        self._batches.__exit__(*exception)


def check(config: ConfigDict) -> None:
    """`InputError` if `config` asks for answers from a cache about what no cache can hold."""
    data, settings = config.data, config.distill
    if not data.crops:
        raise InputError(
            "config.distill.cache needs --config.data.crops=N, the places of each clip that are asked about"
        )
    if data.path == "synth" or data.synth.share or data.streaming:
        raise InputError(
            "config.distill.cache: synthetic and streamed clips are heard once, there is nothing to keep; turn it off"
        )
    moved = [name for name in ("tempo_stretch", "mixup_alpha") if config.augment[name]]
    if moved:
        raise InputError(
            f"config.distill.cache: teachers would hear {' and '.join(moved)} too; "
            f"{' '.join(f'--config.augment.{name}=0' for name in moved)}, or turn the cache off"
        )
    if data.speed:
        raise InputError(
            f"config.distill.cache: no clip is heard twice at the same speed with config.data.speed={data.speed}; "
            "set it to 0, or turn the cache off"
        )
    more = [name for name in MORE_THAN_LOGITS if settings[name]]
    if more:
        raise InputError(f"config.distill.cache holds logits alone, not what config.distill.{more[0]} needs")


def ask(
    config: ConfigDict, teachers: Sequence[Teacher], clips: Clips, student: FrontendSpec, bad: BadClips, layout: Layout
) -> AnswerCache:
    """The cache in `config.distill.cache`: opened, finished where an earlier call stopped, or made.

    `InputError` if it is of other teachers, clips or places, if it is damaged, or if it would be larger than
    `config.distill.cache_mb`.
    """
    folder = pathlib.Path(config.distill.cache)
    shape = (len(clips), config.data.crops, len(teachers), NUM_CLASSES)
    n_bytes, most_mb = 4 * int(np.prod(shape)), config.distill.cache_mb
    if n_bytes > most_mb * 1e6:
        raise InputError(
            f"the teachers' answers would take {n_bytes / 1e6:.3g} MB, config.distill.cache_mb allows {most_mb}; "
            "fewer --config.data.crops need less"
        )
    key = _key(config, teachers, clips, student)
    n_done = _n_done(folder, key, n_bytes)
    logits = np.memmap(folder / LOGITS, np.float32, "r+", shape=shape)
    if n_done < len(clips):
        if jax.process_count() > 1:
            raise InputError(f"{folder} holds the answers about {n_done} of {len(clips)} clips: make it by one process")
        _fill(config, teachers, clips, student, bad, layout, logits, n_done, functools.partial(_keep, folder, key))
    logger.info("teachers' answers about %d clips at %d places each: %s, %.1f MB", *shape[:2], folder, n_bytes / 1e6)
    return AnswerCache(folder, np.memmap(folder / LOGITS, np.float32, "r", shape=shape))


def _key(config: ConfigDict, teachers: Sequence[Teacher], clips: Clips, student: FrontendSpec) -> dict[str, Any]:
    """All that the answers follow from. The fingerprint of the clips stands for their ids and sounds, in order."""
    return {
        "teachers": [checkpoint.digest(teacher.model) for teacher in teachers],
        "clips": clips.fingerprint,
        "crops": config.data.crops,
        "window_s": student.window_s,
        "sample_rate": student.sample_rate,
        "compute_dtype": config.train.compute_dtype,
    }


_SAYS = {"teachers": "other teachers, or other checkpoints of theirs", "clips": "other clips", "crops": "other places"}


def _n_done(folder: pathlib.Path, key: dict[str, Any], n_bytes: int) -> int:
    """About how many clips the teachers have answered in `folder`; begins it where there is nothing."""
    if not (folder / RECORD).exists():
        if folder.exists() and any(folder.iterdir()):
            raise InputError(
                f"{folder} holds something else than teachers' answers; choose another config.distill.cache"
            )
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / LOGITS, "wb") as file:
            file.truncate(n_bytes)
        _keep(folder, key, 0)
    try:
        found = json.loads((folder / RECORD).read_text("utf-8"))
        n_done, size = int(found.pop("clips_done")), (folder / LOGITS).stat().st_size
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder} is damaged ({error!r}): delete it, and the teachers are asked again") from error
    other = [name for name in key if found.get(name) != key[name]]
    if other:
        what = ", ".join(_SAYS.get(name, f"another {name}") for name in other)
        raise InputError(f"{folder} holds answers of {what}: choose another config.distill.cache, or delete it")
    if size != n_bytes:
        raise InputError(
            f"{folder} is damaged ({size} bytes instead of {n_bytes}): delete it, and they are asked again"
        )
    return n_done


def _keep(folder: pathlib.Path, key: dict[str, Any], n_done: int) -> None:
    checkpoint.write_json(folder / RECORD, key | {"clips_done": n_done})


def _fill(config, teachers, clips, student, bad, layout, logits, n_done, keep) -> None:
    """Asks about all clips from `n_done` on. How many it were is noted every `KEEP_EVERY` clips, once their numbers are
    on disk."""
    import tqdm

    answer = _asker(config, teachers, student, layout)
    bar = tqdm.tqdm(desc="asking teachers", total=len(clips), initial=n_done, unit="clip", disable=None)
    with bar, contextlib.closing(_cut(config, clips, student, bad, n_done)) as cut:
        for first in range(n_done, len(clips), KEEP_EVERY):
            some = list(itertools.islice(cut, KEEP_EVERY))
            heard = [i for i, windows in enumerate(some, first) if windows is not None]
            logits[first : first + len(some)] = np.nan
            if heard:
                answers = answer(np.concatenate([windows for windows in some if windows is not None]))
                logits[heard] = answers.reshape(len(heard), *logits.shape[1:])
            logits.flush()
            keep(first + len(some))
            bar.update(len(some))


def _asker(
    config: ConfigDict, teachers: Sequence[Teacher], student: FrontendSpec, layout: Layout
) -> Callable[[np.ndarray], np.ndarray]:
    """`answer(windows)`: `(n, n_samples)` float32 at the student's rate → `(n, teachers, NUM_CLASSES)`."""
    hear, n_rows = distill.hearers(teachers, student, config), config.eval.batch_size
    given = layout.place(distill.arrays(teachers))
    key = jax.random.key(0)  # of augmentations that teachers do not hear

    @jax.jit
    def of_batch(given, waveform):
        batch = {"waveform": waveform, "label": jnp.zeros(len(waveform), jnp.int32)}
        return jnp.stack([outputs(given, key, batch).logits for outputs in hear], 1)

    def answer(windows: np.ndarray) -> np.ndarray:
        padded = np.pad(windows, ((0, -len(windows) % n_rows), (0, 0)))  # one shape, compiled once
        parts = (layout.batch(padded[i : i + n_rows]) for i in range(0, len(padded), n_rows))
        return np.concatenate([layout.gather(of_batch(given, part)) for part in parts])[: len(windows)]

    return answer


def _cut(
    config: ConfigDict, clips: Clips, student: FrontendSpec, bad: BadClips, first: int
) -> Iterator[np.ndarray | None]:
    """The windows of each clip from `first` on, `(crops, n_samples)`; None for a bad one."""
    n_crops, n = config.data.crops, student.window_samples

    def windows(index: int) -> np.ndarray | None:
        try:
            wave = trim_tail(clips.waveform(index, student.sample_rate), student.sample_rate)
        except BadClip as error:
            bad.add(error)
            return None
        starts = [crop_start(len(wave), n, crop, n_crops) for crop in range(n_crops)]
        return np.stack([loop_fill(wave, n, start) for start in starts])

    return ordered_map(windows, range(first, len(clips)), config.data.workers, ahead=8 * config.data.workers)
