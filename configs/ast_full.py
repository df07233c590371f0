"""AST with all of its official weights trained on.

Convert the official file first, then train on SOUSA from the Hub:

    python -m ports.convert --model=ast --download --out=pretrained/ast
    python -m sousa_jax.main --config=configs/ast_full.py:full --config.init_from=pretrained/ast

Anywhere, a small relative from random weights on synthetic data, in under two minutes on two CPU cores:

    python -m sousa_jax.main --config=configs/ast_full.py:smoke

Not yet measured.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(preset: str = "") -> ConfigDict:
    return common.experiment("ast", "full", preset)
