"""EfficientAT from random weights.

Anywhere, on synthetic data, in under two minutes on two CPU cores:

    python -m sousa_jax.main --config=configs/efficientat_scratch.py:smoke

On 1,450 real SOUSA clips, 18 minutes on two cores of a Zen 5 EPYC:

    python -m sousa_jax.main --config=configs/efficientat_scratch.py:small --config.data.path=sousa_mini \\
        --config.data.cache_dir=cache

    test balanced accuracy 0.504 over all windows, 0.468 on the first; duration alone 0.050

The same network on synthetic clips alone, 44 minutes; on those 400 real test clips 0.576 and 0.564:

    python -m sousa_jax.main --config=configs/efficientat_scratch.py:small --config.train.epochs=9 \\
        --config.data.synth.clips='(14720,400,400)' --config.data.synth.bandwidth_hz=8000.0 --workdir=SYNTH
"""

from ml_collections import ConfigDict

from configs import common


def get_config(preset: str = "") -> ConfigDict:
    return common.experiment("efficientat", "scratch", preset)
