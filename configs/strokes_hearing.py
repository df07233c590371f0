"""First stage of the stroke network: from sound to strokes. (docs/strokes.md has all three and what came out.)

Anywhere, on synthetic data, in under two minutes on two CPU cores:

    python -m sousa_jax.main --config=configs/strokes_hearing.py:smoke

On 1,450 real SOUSA clips and as many synthetic ones:

    python -m sousa_jax.main --config=configs/strokes_hearing.py:small --config.data.path=sousa_mini \\
        --config.data.cache_dir=cache --workdir=HEARING
"""

from ml_collections import ConfigDict

from configs import strokes


def get_config(preset: str = "") -> ConfigDict:
    return strokes.stage("hearing", preset)
