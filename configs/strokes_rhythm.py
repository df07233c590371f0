"""Second stage of the stroke network: from strokes to the rudiment, without sound. (docs/strokes.md)

Anywhere, in under two minutes on two CPU cores:

    python -m sousa_jax.main --config=configs/strokes_rhythm.py:smoke

Performances as they were struck, then as an ear hears them, with the errors measured of one; the data are read for
evaluation alone:

    python -m sousa_jax.main --config=configs/strokes_rhythm.py:small --config.data.path=sousa_mini --workdir=STRUCK
    python -m sousa_jax.evaluate_strokes --workdir=HEARING --split=validation --errors=errors.json
    python -m sousa_jax.main --config=configs/strokes_rhythm.py:small --config.data.path=sousa_mini \\
        --config.init_from=STRUCK --config.strokes.errors=errors.json --config.train.learning_rate=1e-3 \\
        --config.train.epochs=6 --workdir=RHYTHM
"""

from ml_collections import ConfigDict

from configs import strokes


def get_config(preset: str = "") -> ConfigDict:
    return strokes.stage("rhythm", preset)
