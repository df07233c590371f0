"""SOUSA's exercise scores: what is computed from SOUSA's own strokes must be what SOUSA says of them."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from sousa_jax.data.synth.scores import SCORE_COLUMNS, batched_scores, scores
from sousa_jax.data.synth.strokes import KINDS, LEFT, RIGHT, Strokes
from sousa_jax.rudiments import FAMILIES, STROKE_TYPES, by_slug

EXACT = [name for name in SCORE_COLUMNS if name != "groove_feel_proxy"]
TIERS = ("beginner", "intermediate", "advanced", "professional")
KIND_OF_TYPE = {STROKE_TYPES[letter]: i for i, letter in enumerate(KINDS)}


def strokes_from_table(table: pd.DataFrame) -> Strokes:
    """One performance of SOUSA's stroke table, in the table's order, as arrays of (S,)."""
    row_of_index = {index: row for row, index in enumerate(table["index"])}
    return Strokes(
        time_s=table["actual_time_ms"].to_numpy(np.float32) / 1000,
        written_s=table["intended_time_ms"].to_numpy(np.float32) / 1000,
        velocity=table["actual_velocity"].to_numpy(np.float32),
        written_velocity=table["intended_velocity"].to_numpy(np.float32),
        hand=np.where(table["hand"] == "L", LEFT, RIGHT).astype(np.int32),
        kind=table["stroke_type"].map(KIND_OF_TYPE).to_numpy(np.int32),
        is_grace=table["is_grace_note"].to_numpy(bool),
        diddle=table["diddle_position"].fillna(0).to_numpy(np.int32),
        parent=np.array([row_of_index.get(p, -1) for p in table["parent_stroke_index"]], np.int32),
        valid=np.ones(len(table), bool),
    )


def padded(strokes: Strokes, length: int) -> Strokes:
    """Rows that are not valid up to `length`, filled with what would spoil any score."""
    more = length - len(strokes.time_s)
    filled = [np.concatenate([column, np.full(more, 99, column.dtype)]) for column in strokes[:-2]]
    parent = np.concatenate([strokes.parent, np.zeros(more, np.int32)])
    return Strokes(*filled, parent, np.concatenate([strokes.valid, np.zeros(more, bool)]))


@functools.cache
def real_clips(root: pathlib.Path) -> tuple[pd.DataFrame, Strokes, np.ndarray]:
    """200 clips of every rudiment and tier: SOUSA's labels, the strokes as a batch, the families."""
    files = sorted((root / "labels_only").glob("*.parquet"))
    labels = pd.concat([pd.read_parquet(file) for file in files]).sort_values("sample_id")
    labels = labels.groupby(["skill_tier", "rudiment_slug"]).head(2).sample(200, random_state=0).reset_index(drop=True)
    tables = pd.read_parquet(root / "auxiliary" / "strokes.parquet", filters=[("sample_id", "in", labels["sample_id"])])
    performances = dict(list(tables.groupby("sample_id")))
    each = [padded(strokes_from_table(performances[sample_id]), 232) for sample_id in labels["sample_id"]]
    family = np.array([FAMILIES.index(by_slug(slug).family) for slug in labels["rudiment_slug"]], np.int32)
    return labels, Strokes(*(np.stack(column) for column in zip(*each, strict=True))), family


@functools.cache
def computed(root: pathlib.Path) -> dict[str, np.ndarray]:
    _, strokes, family = real_clips(root)
    return {name: np.asarray(column) for name, column in batched_scores(strokes, family).items()}


@pytest.mark.parametrize("name", EXACT)
def test_equals_sousas_column(sousa_mini, name):
    """Exactly SOUSA's formula: float32 leaves less than a thousandth of a point. NaN is where SOUSA has NaN."""
    labels, *_ = real_clips(sousa_mini)
    np.testing.assert_allclose(computed(sousa_mini)[name], labels[name], atol=2e-3, rtol=0)


def test_groove_is_near_sousas(sousa_mini):
    """The one restated score stays what its docstring says of it."""
    labels, *_ = real_clips(sousa_mini)
    groove = pd.Series(computed(sousa_mini)["groove_feel_proxy"])
    assert groove.between(0, 1).all()
    assert (groove - labels["groove_feel_proxy"]).abs().mean() < 0.09
    assert groove.corr(labels["groove_feel_proxy"], method="spearman") > 0.65


@pytest.mark.parametrize("name", ["timing_accuracy", "hand_balance", "groove_feel_proxy", "overall_score"])
def test_orders_the_tiers(sousa_mini, name):
    """Better players score higher: what the scores are for."""
    labels, *_ = real_clips(sousa_mini)
    means = pd.Series(computed(sousa_mini)[name]).groupby(labels["skill_tier"]).mean()
    assert means[list(TIERS)].is_monotonic_increasing


def exercise(letters: str, hands: str, seed: int = 0) -> Strokes:
    """Strokes of these kinds, four a second and 10 ms off or so, a grace note belonging to what follows it."""
    rng, n = np.random.default_rng(seed), len(letters)
    kind = np.array([KINDS.index(letter) for letter in letters], np.int32)
    is_grace, written_s = np.array([letter == "g" for letter in letters]), np.arange(n, dtype=np.float32) / 4
    time_s = np.maximum(0, written_s + rng.normal(0, 0.01, n)).astype(np.float32)
    time_s[is_grace] = time_s[np.flatnonzero(is_grace) + 1] - np.float32(0.03)
    diddles = np.cumsum(kind == KINDS.index("d"))
    return Strokes(
        time_s=time_s,
        written_s=written_s,
        velocity=rng.integers(40, 120, n).astype(np.float32),
        written_velocity=np.full(n, 65, np.float32),
        hand=np.array([LEFT if hand == "L" else RIGHT for hand in hands], np.int32),
        kind=kind,
        is_grace=is_grace,
        diddle=np.where(kind == KINDS.index("d"), 2 - diddles % 2, 0).astype(np.int32),
        parent=np.where(is_grace, np.arange(n) + 1, -1).astype(np.int32),
        valid=np.ones(n, bool),
    )


ONLY_IN = {"flam_quality": ("flam",), "diddle_quality": ("roll", "diddle"), "roll_sustain": ("roll",)}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_family_has_no_score_for_is_nan(family):
    """A number where SOUSA has NaN would silently enter somebody's mean."""
    found = jax.jit(scores)(exercise("gAddt" * 4, "LRLLR" * 4), FAMILIES.index(family))
    assert found.keys() == set(SCORE_COLUMNS)
    for name in SCORE_COLUMNS:
        assert found[name].dtype == jnp.float32
        assert np.isfinite(found[name]) == (family in ONLY_IN.get(name, FAMILIES)), name


def test_without_accents_and_diddles():
    """SOUSA's constants where there is nothing to measure."""
    found = scores(exercise("tttt" * 4, "RLRL" * 4), FAMILIES.index("roll"))
    assert (found["accent_differentiation"], found["accent_accuracy"], found["diddle_quality"]) == (80, 100, 80)


def test_a_machine_is_perfect_in_time():
    """No error at all, 0 / 0 in the ratios between the hands, gives no NaN."""
    strokes = exercise("Attt" * 4, "RLRL" * 4)
    found = scores(strokes._replace(time_s=strokes.written_s), FAMILIES.index("roll"))
    assert found["tempo_stability"] == found["subdivision_evenness"] == 100
    assert found["weak_hand_index"] == 50
    assert found["groove_feel_proxy"] == 1
    assert np.isfinite(found["overall_score"])


def test_padding_and_batching_change_nothing():
    """The device computes batches of padded performances; each must score as it does alone."""
    performances = [exercise("gAddt" * 4, "LRLLR" * 4, 1), exercise("Atdd" * 7, "RLRR" * 7, 2)]
    family = np.array([2, 0], np.int32)
    batch = Strokes(*(np.stack(column) for column in zip(*(padded(p, 40) for p in performances), strict=True)))
    together = batched_scores(batch, family)
    for i, performance in enumerate(performances):
        alone = scores(performance, int(family[i]))
        for name in SCORE_COLUMNS:
            np.testing.assert_allclose(together[name][i], alone[name], rtol=1e-4, atol=1e-3, err_msg=name)
