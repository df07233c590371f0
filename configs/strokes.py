"""The network that hears strokes, and from them the rudiment. Last of three stages: both at once. (docs/strokes.md)

Anywhere, on synthetic data, in under two minutes on two CPU cores:

    python -m sousa_jax.main --config=configs/strokes.py:smoke

From what the stage before left (`configs/strokes_rhythm.py`), on real and synthetic clips:

    python -m sousa_jax.main --config=configs/strokes.py:small --config.init_from=RHYTHM \\
        --config.data.path=sousa_mini --config.data.cache_dir=cache --workdir=STROKES
"""

from ml_collections import ConfigDict

from configs import common


def get_config(preset: str = "") -> ConfigDict:
    return stage("joint", preset)


def stage(name: str, preset: str) -> ConfigDict:
    """The config of a stage: `hearing`, `rhythm` or `joint`."""
    config = common.base("strokes", "strokes", "scratch")
    config.strokes.stage = name
    config.data.synth.share = 0.5  # of each batch where `path` is something else
    config.train.accumulate = 1
    config.train.batch_size = 32
    config.train.learning_rate = 2e-3
    config.train.weight_decay = 0.01
    config.train.label_smoothing = 0.05
    for name_of_stage in ("tempo_stretch", "mixup_alpha", "time_masks"):  # strokes must stay where they fall
        config.augment[name_of_stage] = type(config.augment[name_of_stage])(0)
    config.augment.freq_masks = 1
    config.augment.freq_mask_bins = 8
    if name == "hearing":
        config.model.window_s = 2.5
    elif name == "rhythm":
        config.train.batch_size = 64
        config.data.synth.clips = (32_000, 400, 400)
    else:
        config.train.learning_rate = 5e-4
    if preset == "smoke":
        common.smoke(config)
        config.train.epochs = 2
    elif preset == "small":
        config.train.patience = config.train.epochs = 10
    elif preset == "full":
        config.data.path = "zkeown/sousa"
        config.data.by_performance = True
    elif preset:
        raise common.unknown_preset(preset)
    return config
