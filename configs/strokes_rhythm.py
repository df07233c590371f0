"""Second stage of the stroke network: from strokes to the rudiment, without sound. (docs/strokes.md)

Anywhere, in under two minutes on two CPU cores:

    python -m sousa_jax.main --config=configs/strokes_rhythm.py:smoke

From what the first stage left, with hearing errors as measured there; the data are read for evaluation alone:

    python -m sousa_jax.evaluate_strokes --workdir=HEARING --split=validation --errors=errors.json
    python -m sousa_jax.main --config=configs/strokes_rhythm.py:small --config.init_from=HEARING \\
        --config.strokes.errors=errors.json --config.data.path=sousa_mini --workdir=RHYTHM
"""

from ml_collections import ConfigDict

from configs import strokes


def get_config(preset: str = "") -> ConfigDict:
    return strokes.stage("rhythm", preset)
