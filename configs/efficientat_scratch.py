"""EfficientAT from random weights.

    python -m sousa_jax.main --config=configs/efficientat_scratch.py:smoke
"""

from ml_collections import ConfigDict

from configs import common


def get_config(preset: str = "") -> ConfigDict:
    config = common.base(model="efficientat", variant="mn10", strategy="scratch")
    if preset == "smoke":
        common.smoke(config)
        config.model.variant = "mn01"
        config.train.learning_rate = 3e-3
    elif preset == "small":
        config.model.variant = "mn04"
        config.train.batch_size = 32
        config.train.accumulate = 1
        config.train.learning_rate = 1.5e-3
        config.train.epochs = 60
        config.train.patience = 60
    elif preset == "full":
        config.data.path = "zkeown/sousa"
        config.data.by_performance = True
    elif preset:
        raise common.unknown_preset(preset)
    return config
