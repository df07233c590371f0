"""The 40 PAS rudiments, in the dataset's fixed class order (ascending by slug).

`rudiments.json` restates SOUSA's rudiment definitions (MIT, Copyright (c) 2025 Zak Keown) as data.
Each stroke of a pattern, grace notes included, owns one equal slot of
`beats_per_cycle / len(sticking)` beats.

    python -m sousa_jax.rudiments        prints the table with stickings
"""

import dataclasses
import functools
import json
from importlib import resources

from sousa_jax.errors import InputError, nearest

FAMILIES = ("roll", "diddle", "flam", "drag")

# How each stroke letter of `Rudiment.strokes` is called in SOUSA's stroke table.
STROKE_TYPES = {"A": "accent", "t": "tap", "d": "diddle", "b": "buzz", "g": "grace"}


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
class Rudiment:
    """One rudiment. `sticking` (R/L) and `strokes` (letters of `STROKE_TYPES`) have one letter a slot."""

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
    for r in sorted(RUDIMENTS, key=lambda r: r.pas_number):
        print(f"{r.pas_number:>2}  {r.name:<24} {r.family:<7} {r.beats_per_cycle:>4} beats  {r.notation}")


if __name__ == "__main__":
    main()
