"""The class list is a contract: ids, slugs and patterns must never move."""

import dataclasses
import json
import subprocess
import sys
from fractions import Fraction

import pytest

from sousa_jax.errors import InputError
from sousa_jax.rudiments import (
    CLASS_IDS,
    FAMILIES,
    NUM_CLASSES,
    REST,
    RUDIMENTS,
    SLUGS,
    STROKE_TYPES,
    by_slug,
    parse_notation,
)

# Typed by hand, not computed from rudiments.json: what the right-hand lead plays (small letters: ornaments), whether
# the left hand then takes the lead, and of the whole cycle the beats, principal strokes, accents and ornaments.
PAS_SHEET = """
single_stroke_roll       RLRLRLRL            no    2     8   -          0
single_stroke_four       RLRL                no    1     4   -          0
single_stroke_seven      RLRLRLR             yes   4    14   -          0
multiple_bounce_roll     RLRLRLRL            no    2     8   -          0
triple_stroke_roll       RRRLLL              no    1     6   -          0
double_stroke_open_roll  RRLLRRLL            no    1     8   -          0
five_stroke_roll         RRLLR               yes   2    10   1/2,3/2    0
six_stroke_roll          RLLRRL              no    3/2   6   0,1        0
seven_stroke_roll        RRLLRRL             no    1     7   3/4        0
nine_stroke_roll         RRLLRRLLR           yes   4    18   1,3        0
ten_stroke_roll          RRLLRRLLRL          no    2    10   1,5/4      0
eleven_stroke_roll       RRLLRRLLRRL         no    2    11   5/4        0
thirteen_stroke_roll     RRLLRRLLRRLLR       yes   4    26   3/2,7/2    0
fifteen_stroke_roll      RRLLRRLLRRLLRRL     no    2    15   7/4        0
seventeen_stroke_roll    RRLLRRLLRRLLRRLLR   yes   6    34   2,5        0
single_paradiddle        RLRR                yes   2     8   0,1        0
double_paradiddle        RLRLRR              yes   2    12   0,1        0
triple_paradiddle        RLRLRLRR            yes   4    16   0,2        0
paradiddle_diddle        RLRRLL              no    1     6   0          0
flam                     lR                  yes   2     2   -          2
flam_accent              lRLR                yes   2     6   0,1        2
flam_tap                 lRR                 yes   2     4   0,1        2
flamacue                 lRLRLlR             yes   4    10   1/4,9/4    4
flam_paradiddle          lRLRR               yes   2     8   0,1        2
single_flammed_mill      lRRLR               yes   2     8   0,1        2
flam_paradiddle_diddle   lRLRRLL             yes   2    12   0,1        2
pataflafla               lRLRrL              no    1     4   0,3/4      2
swiss_army_triplet       lRRL                no    1     3   0          1
inverted_flam_tap        lRL                 yes   2     4   0,1        2
flam_drag                lRLLR               yes   2     8   0,1        2
drag                     llR                 yes   2     2   -          4
single_drag_tap          llRL                yes   2     4   1/2,3/2    4
double_drag_tap          llRllRL             yes   2     6   2/3,5/3    8
lesson_25                llRLR               no    1     3   1/2        2
single_dragadiddle       RRLRR               yes   2    10   0,1        0
drag_paradiddle_1        RllRLRR             yes   2    10   0,1        4
drag_paradiddle_2        RllRllRLRR          yes   4    12   0,2        8
single_ratamacue         llRLRL              yes   2     8   1/2,3/2    4
double_ratamacue         llRllRLRL           yes   3    10   1,5/2      8
triple_ratamacue         llRllRllRLRL        yes   4    12   3/2,7/2   12
"""
SHEET_ROWS = [line.split() for line in PAS_SHEET.strip().splitlines()]
SWAPPED = str.maketrans("RLrl", "LRlr")


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


@pytest.mark.parametrize("row", SHEET_ROWS, ids=lambda row: row[0])
def test_notated_as_on_the_sheet(row):
    slug, right_lead, changes_hands, beats, principals, accents, ornaments = row
    strokes = by_slug(slug).notated_strokes
    played = "".join(s.hand.lower() if s.kind == "g" else s.hand for s in strokes)
    assert played == right_lead + (right_lead.translate(SWAPPED) if changes_hands == "yes" else "")
    assert by_slug(slug).notated_beats == Fraction(beats)
    assert sum(s.kind != "g" for s in strokes) == int(principals)
    assert [s.beat for s in strokes if s.kind == "A"] == [Fraction(a) for a in accents.split(",") if a != "-"]
    assert sum(s.kind == "g" for s in strokes) == int(ornaments)


def test_the_sheet_table_is_whole():
    assert [by_slug(row[0]).pas_number for row in SHEET_ROWS] == list(range(1, 41))


@pytest.mark.parametrize("r", RUDIMENTS, ids=lambda r: r.slug)
def test_both_leads_have_one_rhythm(r):
    strokes = r.notated_strokes
    row = next(row for row in SHEET_ROWS if row[0] == r.slug)
    assert ("|" in r.notated) == (row[2] == "yes")
    if row[2] == "yes":
        half, half_beats = len(strokes) // 2, r.notated_beats / 2
        for right, left in zip(strokes[:half], strokes[half:], strict=True):
            assert (left.beat - half_beats, left.hand) == (right.beat, right.hand.translate(SWAPPED))
            assert (left.kind, left.rule, left.diddle, left.gap) == (
                right.kind, right.rule, right.diddle, right.gap,
            )  # fmt: skip


@pytest.mark.parametrize("r", RUDIMENTS, ids=lambda r: r.slug)
def test_notated_notes_fill_the_cycle(r):
    end = Fraction(0)
    for note in r.notated_notes:
        assert note.beat == end  # so values sum to the cycle, and no two notes share a beat
        assert note.value > 0
        assert note.kind == REST or note.kind in set(STROKE_TYPES) - {"g"}
        assert (note.kind == REST) == (note.hand == "")
        end += note.value
    assert end == r.notated_beats
    assert r.notated_notes is r.notated_notes  # parsed once


@pytest.mark.parametrize("r", RUDIMENTS, ids=lambda r: r.slug)
def test_notated_strokes_are_whole(r):
    strokes = r.notated_strokes
    assert sum(s.gap for s in strokes) == r.notated_beats
    # At the fastest tempo a double stroke is 24 strokes a second, singles 18 in short runs and 12 without a pause.
    assert min(s.gap for s in strokes if s.kind != "g") >= Fraction(1, 8 if "d" in {s.kind for s in strokes} else 6)
    for i, stroke in enumerate(strokes):
        if stroke.kind == "g":
            primary = strokes[stroke.primary]
            assert primary.kind != "g"
            assert (primary.beat, stroke.gap, stroke.diddle) == (stroke.beat, 0, 0)
            assert primary.hand != stroke.hand
            distance = {"flam": 1, "drag_first": 2, "drag_second": 1}[stroke.rule]
            assert stroke.primary == i + distance
        else:
            assert (stroke.rule, stroke.primary) == ("", -1)
            if stroke.diddle == 1:
                assert (strokes[i + 1].diddle, strokes[i + 1].hand, strokes[i + 1].kind) == (2, stroke.hand, "d")
                assert strokes[i + 1].beat == stroke.beat + stroke.gap
            assert stroke.kind != "d" or stroke.diddle


def test_notation_is_read_exactly():
    notes = parse_notation("beat=4. 8 llR>R 16t Lz - | rL 4. R")
    assert [(n.beat * 3, n.value * 3, n.hand, n.kind, n.ornaments, n.diddle) for n in notes] == [
        (0, 1, "R", "A", "LL", 1),
        (1, 1, "R", "d", "", 2),
        (2, Fraction(1, 3), "L", "b", "", 0),
        (Fraction(7, 3), Fraction(1, 3), "", REST, "", 0),
        (Fraction(8, 3), Fraction(1, 3), "L", "t", "R", 0),
        (3, 3, "R", "t", "", 0),
    ]
    with pytest.raises(dataclasses.FrozenInstanceError):
        notes[0].hand = "L"


def test_a_gap_runs_across_rests_and_into_the_next_cycle():
    rudiment = dataclasses.replace(by_slug("flam"), notated="8 - R - rL -")
    assert [s.gap for s in rudiment.notated_strokes] == [1, 0, Fraction(3, 2)]


@pytest.mark.parametrize(
    "text",
    ["", "16", "16 -", "R", "- 16 R", "3 R", "16tt R", "16 X", "16 r", "16 R>>", "16 R>z", "16 RzR", "16 RL", "16 RRR",
     "16 rR", "16 rlR", "16 lllR", "16 R> 8", "16 8 R", "16 | R", "16 R |", "16 R | 8 | L", "16 R | L | R", "16 R 8 |",
     "beat= 4 R", "beat=5 4 R", "16 R beat=4 L", "16 R,L"],
)  # fmt: skip
def test_wrong_notation_is_refused(text):
    with pytest.raises(InputError, match="rudiment notation"):
        parse_notation(text)


@pytest.mark.parametrize(("dialect", "rows"), [("sousa", 40), ("notated", 40), ("both", 80), (None, 80)])
def test_table_prints(dialect, rows):
    command = [sys.executable, "-m", "sousa_jax.rudiments", *([f"--dialect={dialect}"] if dialect else [])]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, encoding="utf-8").stdout.splitlines()
    assert len(lines) == rows
    assert max(len(line) for line in lines) < 160
    assert any("ˡˡR" in line for line in lines) == (dialect != "notated")
    assert any("16t llR L R 8 L>" in line for line in lines) == (dialect != "sousa")
