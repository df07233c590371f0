"""BEATs from random weights.

On SOUSA from the Hub:

    python -m sousa_jax.main --config=configs/beats_scratch.py:full

Anywhere, a small relative on synthetic data, in under two minutes on two CPU cores:

    python -m sousa_jax.main --config=configs/beats_scratch.py:smoke

Not yet measured.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(preset: str = "") -> ConfigDict:
    return common.experiment("beats", "scratch", preset)
