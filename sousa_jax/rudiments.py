"""The 40 PAS rudiments, in the dataset's fixed class order (ascending by slug), in two dialects.

`rudiments.json` holds both. The sousa dialect restates SOUSA's rudiment definitions (MIT, Copyright (c) 2025 Zak
Keown): each stroke of a pattern, grace notes included, owns one equal slot of `beats_per_cycle / len(sticking)` beats.
The notated dialect is the rhythm printed on the PAS International Drum Rudiments sheet, one cycle of it, as tokens:

    32 RR LL 8 R> | 32 LL RR 8 L>       five stroke roll
    16t llR L R 8 L> | 16t rrL R L 8 R> single ratamacue

    32 8. 16t   a note value for all that follows, until the next: 1 2 4 8 16 32, dotted with `.`, in triplets with `t`
                (three in the time of two; the six notes of a sextuplet are `16t`)
    R L         a stroke of that hand; `R>` is accented, `Rz` buzzed
    RR          a diddle: two strokes, each of the value (`R>R`: the first one is accented)
    lR llR      a flam, a drag: small letters are ornaments, before the beat and without time of their own
    -           a rest
    |           here the left hand takes the lead: the same again with the hands swapped; for the eye only
    beat=4.     first token only: the note value that the tempo counts, a quarter note unless given

Rolls are written out. A cycle has both leads if the printed rudiment changes hands, else the right-hand lead alone.
The tempo counts dotted quarters in 6/8, and eighths where 180 quarter notes a minute could not be played (`beat=8`).

    python -m sousa_jax.rudiments [--dialect=sousa|notated|both]      prints a table to proof-read
"""

import argparse
import dataclasses
import functools
import json
import re
from fractions import Fraction
from importlib import resources

from sousa_jax.errors import InputError, nearest

FAMILIES = ("roll", "diddle", "flam", "drag")

# How each stroke letter of `Rudiment.strokes` is called in SOUSA's stroke table.
STROKE_TYPES = {"A": "accent", "t": "tap", "d": "diddle", "b": "buzz", "g": "grace"}
REST = "-"

_VALUE = re.compile(r"(1|2|4|8|16|32)([.t]?)")
_STROKE = re.compile(r"(l{0,2}|r{0,2})([RL])([>z]?)([RL]?)")


@dataclasses.dataclass(frozen=True)
class Grace:
    """How SOUSA places one grace note.

    `rule` is `flam` (a flam spacing before its primary), `drag_first` / `drag_second` (the pair
    right before the primary), or `own_slot` (not moved: it sounds near its own slot, displaced
    by `offset_beats`). `slot` and `primary` are slot indices within the cycle.
    """

    slot: int
    primary: int
    offset_beats: float
    rule: str


@dataclasses.dataclass(frozen=True)
class Note:
    """One printed note or rest, in beats from the start of the cycle.

    `kind` is a letter of `STROKE_TYPES` (never `g`), or `REST` with `hand` empty. `ornaments` are the
    hands of the small notes before it: "", "L", "LL", "R" or "RR". `diddle` is 1 or 2 in a double stroke, else 0.
    """

    beat: Fraction
    value: Fraction
    hand: str
    kind: str
    ornaments: str = ""
    diddle: int = 0


@dataclasses.dataclass(frozen=True)
class NotatedStroke:
    """One sounding stroke of the printed cycle.

    An ornament has kind `g`, as `rule` `flam`, `drag_first` or `drag_second` (see `Grace`), the `beat` of its primary,
    the index of it in `primary`, and `gap` 0. Others have `rule` "" and `primary` -1; their `gap` is the time to the
    next printed note, rests between them included, for the last one to the first note of the next cycle.
    """

    beat: Fraction
    kind: str
    hand: str
    rule: str
    primary: int
    diddle: int
    gap: Fraction


@dataclasses.dataclass(frozen=True)
class Rudiment:
    """One rudiment. `sticking` (R/L) and `strokes` (letters of `STROKE_TYPES`) have one letter a slot; like
    `beats_per_cycle` and `graces` they are of the sousa dialect. `notated` is in the module's notation."""

    id: int
    slug: str
    name: str
    pas_number: int
    family: str
    subdivision: str
    beats_per_cycle: float
    sticking: str
    strokes: str
    graces: tuple[Grace, ...]
    notated: str

    @property
    def notation(self) -> str:
        """The sticking as drummers write it: capitals are accents, raised letters are grace notes (`ˡR`)."""
        raised = {"R": "ʳ", "L": "ˡ"}
        letters = []
        for hand, kind in zip(self.sticking, self.strokes, strict=True):
            if kind == "g":
                letters.append(raised[hand])
            else:
                letters.append((hand if kind == "A" else hand.lower()) + ("z" if kind == "b" else "") + " ")
        return "".join(letters).strip()

    # cached_property writes past the frozen __setattr__; the fields stay frozen.
    @functools.cached_property
    def notated_notes(self) -> tuple[Note, ...]:
        """The printed notes and rests of one cycle, in order."""
        return parse_notation(self.notated)

    @functools.cached_property
    def notated_beats(self) -> Fraction:
        """Length of the printed cycle."""
        return sum((note.value for note in self.notated_notes), Fraction(0))

    @functools.cached_property
    def notated_strokes(self) -> tuple[NotatedStroke, ...]:
        """The strokes of the printed cycle in playing order, ornaments right before their primary."""
        notes = [note for note in self.notated_notes if note.kind != REST]
        next_beats = [note.beat for note in notes[1:]] + [self.notated_beats + notes[0].beat]
        rules = {0: (), 1: ("flam",), 2: ("drag_first", "drag_second")}
        strokes = []
        for note, next_beat in zip(notes, next_beats, strict=True):
            primary = len(strokes) + len(note.ornaments)
            for hand, rule in zip(note.ornaments, rules[len(note.ornaments)], strict=True):
                strokes.append(NotatedStroke(note.beat, "g", hand, rule, primary, 0, Fraction(0)))
            strokes.append(NotatedStroke(note.beat, note.kind, note.hand, "", -1, note.diddle, next_beat - note.beat))
        return tuple(strokes)


def _fraction_of_whole(value: str) -> Fraction | None:
    """`8.` → 3/16; None if `value` is no note value."""
    match = _VALUE.fullmatch(value)
    return match and Fraction(1, int(match[1])) * {"": 1, ".": Fraction(3, 2), "t": Fraction(2, 3)}[match[2]]


def parse_notation(text: str) -> tuple[Note, ...]:
    """Notes and rests of a line in the module's notation; `InputError` naming the first token that is wrong."""

    def wrong(what: str) -> InputError:
        return InputError(f"rudiment notation {text!r}: {what}")

    tokens = text.split()
    whole_of_beat = Fraction(1, 4)
    if tokens and tokens[0].startswith("beat="):
        whole_of_beat = _fraction_of_whole(tokens[0].removeprefix("beat="))
        if whole_of_beat is None:
            raise wrong(f"{tokens[0]!r} names no note value")
        tokens = tokens[1:]

    notes: list[Note] = []
    beat, value, value_is_used = Fraction(0), None, True
    left_lead_at = 0
    for token in tokens:
        if token == "|":
            if not notes or not value_is_used or left_lead_at:
                raise wrong("'|' may stand once, between notes")
            left_lead_at = len(notes)
            continue
        whole = _fraction_of_whole(token)
        if whole is not None:
            if not value_is_used:
                raise wrong(f"{token!r} right after another note value")
            value, value_is_used = whole / whole_of_beat, False
            continue
        if value is None:
            raise wrong(f"{token!r} before any note value")
        value_is_used = True
        if token == REST:
            notes.append(Note(beat, value, "", REST))
            beat += value
            continue
        match = _STROKE.fullmatch(token)
        if match is None:
            raise wrong(f"{token!r} is no note value, stroke, '-' or '|'")
        ornaments, hand, mark, second = match.groups()
        if ornaments[:1].upper() == hand:
            raise wrong(f"{token!r}: ornaments are played by the other hand")
        if second and (second != hand or mark == "z"):
            raise wrong(f"{token!r}: a diddle is two plain strokes of one hand")
        kind = {">": "A", "z": "b", "": "d" if second else "t"}[mark]
        notes.append(Note(beat, value, hand, kind, ornaments.upper(), 1 if second else 0))
        beat += value
        if second:
            notes.append(Note(beat, value, hand, "d", "", 2))
            beat += value
    if all(note.kind == REST for note in notes):
        raise wrong("there is no stroke")
    if not value_is_used or left_lead_at == len(notes):
        raise wrong(f"nothing follows {tokens[-1]!r}")
    return tuple(notes)


@functools.cache
def _load() -> tuple[Rudiment, ...]:
    rows = json.loads(resources.files("sousa_jax").joinpath("rudiments.json").read_text("utf-8"))
    return tuple(Rudiment(**{**row, "graces": tuple(Grace(**g) for g in row["graces"])}) for row in rows)


RUDIMENTS: tuple[Rudiment, ...] = _load()
SLUGS: tuple[str, ...] = tuple(r.slug for r in RUDIMENTS)
CLASS_IDS: dict[str, int] = {r.slug: r.id for r in RUDIMENTS}
NUM_CLASSES = len(RUDIMENTS)


def by_slug(slug: str) -> Rudiment:
    """The rudiment of that slug; `InputError` naming the nearest known slugs otherwise."""
    if slug not in CLASS_IDS:
        hint = nearest(slug.replace("-", "_"), SLUGS)
        raise InputError(f"unknown rudiment {slug!r}; " + (f"did you mean {hint}?" if hint else f"known: {SLUGS}"))
    return RUDIMENTS[CLASS_IDS[slug]]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m sousa_jax.rudiments", description="The 40 rudiments, to proof-read."
    )
    parser.add_argument("--dialect", choices=("sousa", "notated", "both"), default="both")
    dialect = parser.parse_args().dialect
    for r in sorted(RUDIMENTS, key=lambda r: r.pas_number):
        accents = [str(s.beat) for s in r.notated_strokes if s.kind == "A"]
        ornaments = sum(s.kind == "g" for s in r.notated_strokes)
        sousa = f"{r.beats_per_cycle:>4} beats  {r.notation}"
        notated = (
            f"{r.notated_beats!s:>4} beats  {len(accents)} accents at {' '.join(accents) or '-':<9}"
            f"{ornaments:>2} ornaments  {r.notated}"
        )
        head = f"{r.pas_number:>2}  {r.name:<24} {r.family:<7}"
        if dialect == "both":
            print(f"{head} sousa   {sousa}\n{'':{len(head)}} notated {notated}")
        else:
            print(f"{head} {sousa if dialect == 'sousa' else notated}")


if __name__ == "__main__":
    main()
