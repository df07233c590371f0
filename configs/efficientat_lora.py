"""EfficientAT with adapters of LoRA beside frozen official weights.

Convert the official file first, then train on SOUSA from the Hub:

    python -m ports.convert --model=efficientat --download --out=pretrained/efficientat
    python -m sousa_jax.main --config=configs/efficientat_lora.py:full --config.init_from=pretrained/efficientat

Anywhere, a small relative from random weights on synthetic data, in under two minutes on two CPU cores:

    python -m sousa_jax.main --config=configs/efficientat_lora.py:smoke

Not yet measured.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(preset: str = "") -> ConfigDict:
    return common.experiment("efficientat", "lora", preset)
