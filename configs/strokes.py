"""The network that hears strokes, and from them the rudiment. Last of three stages: both at once. (docs/strokes.md)

Anywhere, on synthetic data, in under two minutes on two CPU cores:

    python -m sousa_jax.main --config=configs/strokes.py:smoke

From an ear (`configs/strokes_hearing.py`) and a sense of rhythm (`configs/strokes_rhythm.py`), on real and synthetic
clips:

    python -m sousa_jax.main --config=configs/strokes.py:small --config.data.path=sousa_mini \\
        --config.data.cache_dir=cache --config.init_from=HEARING --config.strokes.rhythm_from=RHYTHM --workdir=STROKES
"""

from ml_collections import ConfigDict

from configs import common

SMALL_EPOCHS = {"hearing": 26, "rhythm": 12, "joint": 25}
LEARNING_RATES = {"hearing": 2e-3, "rhythm": 2e-3, "joint": 3e-4}


def get_config(preset: str = "") -> ConfigDict:
    return stage("joint", preset)


def stage(name: str, preset: str) -> ConfigDict:
    """The config of a stage: `hearing`, `rhythm` or `joint`."""
    config = common.base("strokes", "strokes", "scratch")
    config.strokes.stage = name
    # Of each batch where `path` is something else: a name is soon learnt by heart with its clip, strokes are not.
    config.data.synth.share = 0.75 if name == "joint" else 0.5
    config.train.accumulate = 1
    config.train.batch_size = 32
    config.train.learning_rate = LEARNING_RATES[name]
    config.train.label_smoothing = 0.05
    config.train.ema = 0.998
    # Strokes must stay where they fall.
    config.augment.update(tempo_stretch=0.0, mixup_alpha=0.0, time_masks=0, freq_masks=1, freq_mask_bins=8)
    if name == "hearing":
        config.model.window_s = 2.5
    elif name == "rhythm":
        config.train.batch_size = 64
        config.data.synth.clips = (32_000, 400, 400)
    if preset == "smoke":
        common.smoke(config)
    elif preset == "small":
        config.train.patience = config.train.epochs = SMALL_EPOCHS[name]
    elif preset == "full":
        config.data.path = "zkeown/sousa"
        config.data.by_performance = True
    elif preset:
        raise common.unknown_preset(preset)
    return config
