"""Labelled clips: SOUSA from the Hub or a folder, or the built-in synthesizer, behind one switch."""

from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from sousa_jax.errors import InputError

if TYPE_CHECKING:
    from sousa_jax.data.clips import Clips
    from sousa_jax.data.mixed import MixedBatches
    from sousa_jax.data.pipeline import BadClips, TrainBatches
    from sousa_jax.data.sousa import StreamedClips
    from sousa_jax.data.synth import SynthBatches
    from sousa_jax.devices import Layout

SPLITS = ("train", "validation", "test")


def open_split(data: ConfigDict, split: str, *, seed: int, sample_rate: int) -> "Clips | StreamedClips":
    """The clips of one split, from what `config.data` says.

    `data.path` is `synth`, a folder in the Hub's or in the generator's layout, or a Hub id. With
    `data.cache_dir` the clips are decoded and resampled to `sample_rate` Hz once and kept there. `data.exclude` leaves
    clips out of all splits but `test`.
    """
    from sousa_jax.data import sousa
    from sousa_jax.data.subset import SubsetClips

    if data.streaming and data.path != "synth":
        if data.get("exclude"):
            raise InputError("config.data.exclude needs random access: turn config.data.streaming off")
        return sousa.stream_clips(data.path, split, revision=data.revision or None)
    clips = _open(data, split, seed, sample_rate)
    exclude = tuple(data.get("exclude", ()))  # runs of before have none
    return SubsetClips(clips, exclude) if exclude and split != "test" else clips


def _open(data: ConfigDict, split: str, seed: int, sample_rate: int) -> "Clips":
    from sousa_jax.data import cache, sousa, synth

    if data.path == "synth":
        num_clips = dict(zip(SPLITS, data.synth.clips, strict=True))
        source = synth.Source(data.synth.dialect, data.synth.num_cycles, data.synth.clip_s)
        # An unknown split is refused there.
        return synth.SynthClips(split, num_clips.get(split, 1), seed, source, data.synth.bandwidth_hz)
    clips = sousa.open_clips(data.path, split, revision=data.revision or None)
    if data.cache_dir:
        return cache.CachedClips(clips, sample_rate, data.cache_dir, data.workers)
    return clips


def rows_from_clips(data: ConfigDict, batch_size: int) -> int:
    """How many rows of a training batch come from `data.path`; the others are synthetic, `data.synth.share` of all.

    `InputError` for a share that is not between 0 and 1, or leaves no row for `data.path`.
    """
    share = 0.0 if data.path == "synth" else data.synth.share
    rows = batch_size - round(batch_size * share)
    if not 0 <= share < 1 or rows < 1:
        raise InputError(
            f"data.synth.share is {share} of a batch of {batch_size}; it must leave at least one row for {data.path} "
            "(for synthetic clips alone: --config.data.path=synth)"
        )
    return rows


def train_batches(
    config: ConfigDict,
    clips: "Clips | StreamedClips",
    *,
    sample_rate: int,
    window_s: float,
    bad: "BadClips",
    position: dict[str, int] | None,
    layout: "Layout | None" = None,
    strokes_per_second: int = 0,
    sound: bool = True,
) -> "TrainBatches | SynthBatches | MixedBatches":
    """Infinite training batches: of `clips`, made on the device by the synthesizer, or of both.

    Recorded clips come as the rows of this process, synthetic ones lie as `layout` says. With `strokes_per_second`
    above 0 batches have `stroke_targets`, a `FrameTargets` of that many frames a second. Without `sound` they are
    synthetic performances that nobody renders, whatever `config.data.path` says.
    """
    import jax

    from sousa_jax.data.mixed import MixedBatches
    from sousa_jax.data.pipeline import TrainBatches
    from sousa_jax.data.synth import Source, SynthBatches, learned_drums
    from sousa_jax.data.synth.render import inner_rate

    data, batch_size = config.data, config.train.batch_size
    n_rows = rows_from_clips(data, batch_size)
    learned = None
    if sound and data.synth.get("drums"):  # runs of before have none
        rendered_hz = inner_rate(sample_rate, data.synth.bandwidth_hz)
        learned = learned_drums.load(data.synth.drums, rendered_hz, data.synth.drums_share)

    def synthetic(n: int, position: dict[str, int] | None) -> SynthBatches:
        return SynthBatches(
            Source(data.synth.dialect, data.synth.num_cycles, window_s),
            batch_size=n,
            sample_rate=sample_rate,
            window_s=window_s,
            seed=config.seed,
            position=position,
            layout=layout,
            bandwidth_hz=data.synth.bandwidth_hz,
            strokes_per_second=strokes_per_second,
            sound=sound,
            learned=learned,
        )

    def recorded(n: int, position: dict[str, int] | None) -> TrainBatches:
        return TrainBatches(
            clips,
            batch_size=n,
            sample_rate=sample_rate,
            window_s=window_s,
            seed=config.seed,
            bad=bad,
            position=position,
            by_performance=data.by_performance,
            workers=data.workers,
            prefetch=data.prefetch,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            strokes_per_second=strokes_per_second,
            crops=data.get("crops", 0),
            speed=data.get("speed", 0.0),
        )

    if data.path == "synth" or not sound:
        return synthetic(batch_size, position)
    if n_rows == batch_size:
        return recorded(batch_size, position)
    given, made = MixedBatches.positions(position)
    return MixedBatches(recorded(n_rows, given), synthetic(batch_size - n_rows, made), layout)
