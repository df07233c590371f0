"""EfficientAT with adapters of LoRA beside frozen official weights.

Convert the official file first, then train on SOUSA from the Hub:

    python -m ports.convert --model=efficientat --download --out=pretrained/efficientat
    python -m sousa_jax.main --config=configs/efficientat_lora.py:full --config.init_from=pretrained/efficientat

Anywhere, a small relative from random weights on synthetic data, in under two minutes on two CPU cores:

    python -m sousa_jax.main --config=configs/efficientat_lora.py:smoke

On 1,450 real SOUSA clips, from what `efficientat_scratch.py:small` learned from synthetic ones (see there), about 13
minutes on two busy cores of a Zen 5 EPYC:

    python -m sousa_jax.main --config=configs/efficientat_lora.py:small --config.init_from=SYNTH \\
        --config.data.path=sousa_mini --config.data.cache_dir=cache

    test balanced accuracy 0.580 over all windows, 0.593 on the first; from scratch in the same 45 epochs 0.342
    (learning rate 5e-4: of 5e-4, 2e-3, 5e-3 the best by validation)

The official weights were not tried yet.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(preset: str = "") -> ConfigDict:
    return common.experiment("efficientat", "lora", preset)
