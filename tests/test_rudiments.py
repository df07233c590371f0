"""The class list is a contract: ids, slugs and patterns must never move."""

import json
import subprocess
import sys

import pytest

from sousa_jax.errors import InputError
from sousa_jax.rudiments import CLASS_IDS, FAMILIES, NUM_CLASSES, RUDIMENTS, SLUGS, by_slug


def test_forty_classes_in_slug_order():
    assert NUM_CLASSES == 40
    assert list(SLUGS) == sorted(SLUGS)
    assert [r.id for r in RUDIMENTS] == list(range(40))
    assert sorted(r.pas_number for r in RUDIMENTS) == list(range(1, 41))
    assert CLASS_IDS["pataflafla"] == SLUGS.index("pataflafla")


def test_families_have_sousas_sizes():
    """Data: roll 15, diddle 4, flam 11, drag 10 (a README of SOUSA says otherwise)."""
    sizes = {family: sum(r.family == family for r in RUDIMENTS) for family in FAMILIES}
    assert sizes == {"roll": 15, "diddle": 4, "flam": 11, "drag": 10}


def test_patterns_are_whole():
    for r in RUDIMENTS:
        assert len(r.sticking) == len(r.strokes)
        assert set(r.sticking) <= set("RL")
        assert set(r.strokes) <= set("Atdbg")
        assert [g.slot for g in r.graces] == [i for i, kind in enumerate(r.strokes) if kind == "g"]
        for grace in r.graces:
            assert r.strokes[grace.primary] != "g"


def test_equal_to_the_shared_definitions(sousa_mini):
    source = json.loads((sousa_mini.parent / "rudiments.json").read_text())["rudiments"]
    for row in source:
        ours = RUDIMENTS[row["class_id"]]
        assert (ours.slug, ours.name, ours.pas_number, ours.family) == (
            row["slug"], row["name"], row["pas_number"], row["family"],
        )  # fmt: skip
        assert (ours.sticking, ours.strokes, ours.beats_per_cycle) == (
            row["hands"], row["types"], row["beats_per_cycle"],
        )  # fmt: skip


@pytest.mark.parametrize("slug", ["single-paradiddle", "double_stroke_roll", "Pataflafla"])
def test_unknown_slug_names_the_nearest(slug):
    with pytest.raises(InputError, match="did you mean"):
        by_slug(slug)


def test_table_prints():
    out = subprocess.run([sys.executable, "-m", "sousa_jax.rudiments"], capture_output=True, text=True, check=True)
    assert len(out.stdout.splitlines()) == 40
    assert "ˡˡR" in out.stdout
