"""Labelled clips: SOUSA from the Hub or a folder, or the built-in synthesizer, behind one switch."""

from typing import TYPE_CHECKING

from ml_collections import ConfigDict

if TYPE_CHECKING:
    from sousa_jax.data.clips import Clips
    from sousa_jax.data.sousa import StreamedClips

SPLITS = ("train", "validation", "test")


def open_split(data: ConfigDict, split: str, *, seed: int, sample_rate: int) -> "Clips | StreamedClips":
    """The clips of one split, from what `config.data` says.

    `data.path` is `synth`, a folder in the Hub's or in the generator's layout, or a Hub id. With
    `data.cache_dir` the clips are decoded and resampled to `sample_rate` Hz once and kept there.
    """
    from sousa_jax.data import cache, sousa, synth

    if data.path == "synth":
        num_clips = dict(zip(SPLITS, data.synth_clips, strict=True))
        return synth.SynthClips(split, num_clips.get(split, 1), seed)  # which refuses an unknown split
    revision = data.revision or None
    if data.streaming:
        return sousa.stream_clips(data.path, split, revision=revision)
    clips = sousa.open_clips(data.path, split, revision=revision)
    if data.cache_dir:
        return cache.CachedClips(clips, sample_rate, data.cache_dir, data.workers)
    return clips
