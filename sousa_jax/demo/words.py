"""What the page says of a recording."""

import html
import re

import numpy as np

from sousa_jax import lesson
from sousa_jax.demo.answer import Recording
from sousa_jax.errors import InputError
from sousa_jax.hearing import HeardStrokes
from sousa_jax.rudiments import by_slug
from sousa_jax.strokes import likeliest, sentences
from sousa_jax.take import LESSON_S, Played, Take

TOP = 5
LEGEND = (
    "R right, L left; capitals are accents, raised letters grace notes, z buzzes. Which hand leads cannot be heard."
)


def headline(heard: Recording, part: int | None) -> str:
    """The answer, HTML: a segment's name, its sticking, when it was played; or that there is none, and why."""
    played = f'<p class="faint">{html.escape(heard.played)}</p>' if heard.played else ""
    if part is None:
        return played + ("<h2>Silence</h2>" if heard.take.overall is None else "<h2>No rudiment</h2>")
    one = heard.take.played[part]
    when = f"{one.segment.start_s:.1f} to {one.segment.end_s:.1f} s"
    if not one.segment.rudiment:
        return f"{played}<h2>No rudiment</h2><p>{html.escape(one.segment.objection)} · {when}</p>"
    rudiment = by_slug(one.segment.rudiment)
    sticking = re.sub("([RL]z?)", r"<b>\1</b>", rudiment.notation)
    tempo = f"{one.tempo_bpm:.0f} beats a minute · " if one.tempo_bpm else ""
    return (
        f"{played}<h2>{rudiment.name} <small>{one.segment.probability:.0%}</small></h2>"
        f'<p class="sticking">{sticking}</p><p class="faint">{LEGEND}</p><p>{tempo}{when}</p>'
    )


def refusal(message: str) -> str:
    """Why a file was not heard, HTML."""
    return f"<h2>This cannot be heard</h2><p>{html.escape(message)}</p>"


def bars(take: Take) -> dict[str, float]:
    """Names and probabilities of the likeliest rudiments of the whole recording; none of silence."""
    if take.overall is None:
        return {}
    return {by_slug(slug).name: probability for slug, probability in likeliest(np.log(take.overall), TOP)}


def about_bars(take: Take) -> str:
    """What the bars are."""
    is_one = any(played.segment.rudiment for played in take.played)
    return "How likely, over the whole recording" if is_one else "If it is a rudiment after all"


def parts(take: Take) -> list[str]:
    """A line for each segment."""
    lines = []
    for segment in (played.segment for played in take.played):
        what = f"no rudiment: {segment.objection}"
        if segment.rudiment:
            what = f"{by_slug(segment.rudiment).name}, {segment.probability:.0%}"
        lines.append(f"{segment.start_s:.1f} … {segment.end_s:.1f} s  {what}")
    return lines


def lesson_lines(played: Played) -> list[str]:
    """A segment beside what is written: the sentences of `python -m sousa_jax.strokes`; of a long one about its
    beginning. Nothing where no strokes are heard."""
    time_s = played.strokes.time_s
    if not len(time_s):
        return []
    first = HeardStrokes(*(np.asarray(column)[time_s <= time_s[0] + LESSON_S] for column in played.strokes))
    try:
        told = sentences(lesson.teach(first, by_slug(played.segment.rudiment)))
    except InputError as error:  # too few strokes
        return [f"{error}."]
    return told if len(first.time_s) == len(time_s) else [f"Its first {LESSON_S:g} seconds:", *told]
