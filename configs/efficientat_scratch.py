"""EfficientAT from random weights.

Anywhere, on synthetic data, in under two minutes on two CPU cores:

    python -m sousa_jax.main --config=configs/efficientat_scratch.py:smoke

On 1,450 real SOUSA clips, 18 minutes on two cores of a Zen 5 EPYC:

    python -m sousa_jax.main --config=configs/efficientat_scratch.py:small --config.data.path=sousa_mini \\
        --config.data.cache_dir=cache

    test balanced accuracy 0.504 over all windows, 0.468 on the first; duration alone 0.050
"""

from ml_collections import ConfigDict

from configs import common


def get_config(preset: str = "") -> ConfigDict:
    config = common.experiment("efficientat", "scratch", preset)
    if preset == "small":
        # Tuned for minutes on a CPU: half the mel bands, which rhythm does not need, buy twice the epochs.
        config.model.variant = "mn04"
        config.model.n_mels = 64
        config.model.settings.update({"norm_momentum": 0.95, "grouped_init": True})
        config.train.batch_size = 32
        config.train.accumulate = 1
        config.train.learning_rate = 1.5e-3
        config.train.epochs = 90
        config.train.patience = 90
        config.augment.freq_masks = 1
        config.augment.freq_mask_bins = 8
        config.augment.time_masks = 0  # they would hide strokes
    return config
