"""EfficientAT taught by finished runs: their answers beside what is true.

    python -m sousa_jax.main --config=configs/distill_efficientat.py --config.teachers='("RUN_A","RUN_B")' \\
        --config.data.path=DATA

Anywhere, on synthetic data, a teacher and its student in a minute or two each on two CPU cores:

    python -m sousa_jax.main --config=configs/efficientat_scratch.py:smoke --workdir=TEACHER
    python -m sousa_jax.main --config=configs/distill_efficientat.py:smoke --config.teachers='("TEACHER",)'

Teachers may be any of the networks, also `strokes`; several count alike unless `config.distill.weights` says otherwise.
Students: `--config.model.variant=mn10` (default), `mn04`, `mn01`; `--config.model.hop_ms=5` for finer steps of time.
From random weights; `--config.init_from=DIR` begins with given ones.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(preset: str = "") -> ConfigDict:
    config = common.experiment("efficientat", "scratch", preset)
    config.teachers = ("TEACHER",)  # to be given: without one this would be configs/efficientat_scratch.py
    if preset in ("", "full"):
        config.train.epochs = 40
        config.train.learning_rate = 1e-3
    return config
