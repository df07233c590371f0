"""AST with adapters of LoRA beside frozen official weights.

Convert the official file first, then train on SOUSA from the Hub:

    python -m ports.convert --model=ast --download --out=pretrained/ast
    python -m sousa_jax.main --config=configs/ast_lora.py:full --config.init_from=pretrained/ast

Anywhere, a small relative from random weights on synthetic data, in under two minutes on two CPU cores:

    python -m sousa_jax.main --config=configs/ast_lora.py:smoke

Not yet measured.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(preset: str = "") -> ConfigDict:
    return common.experiment("ast", "lora", preset)
