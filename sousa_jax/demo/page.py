"""The page, in Gradio: record, upload or synthesize on one side, the answer on the other; on a phone below it."""

import os
import pathlib
import secrets
from importlib import resources
from typing import Any

from sousa_jax.demo import answer, picture, words
from sousa_jax.demo.answer import SYNTH_HZ, SYNTH_S, Recording
from sousa_jax.errors import InputError
from sousa_jax.rejection import Limits
from sousa_jax.rudiments import RUDIMENTS, by_slug
from sousa_jax.stream import Stream

FORGOTTEN_S = 3600  # after which a visitor's recording is deleted, from disk and from memory
LARGEST_FILE = "200mb"  # ten minutes of 24 bit, two channels, 48 kHz are 173
VISITORS = 20  # recordings that are remembered, of at most 38 MB each

TITLE = "Which rudiment is it?"
WELCOME = f"# {TITLE}\nPlay one of the 40 on a snare drum, five seconds or more. What you record stays on this server."
INSECURE = (
    "This page came over plain http, so the browser gives it no microphone. Upload a recording, or see "
    "`python -m sousa_jax.demo --help` for https."
)
WARN = """() => isSecureContext
    || document.querySelectorAll(".only-insecure").forEach(one => one.style.display = "block")"""
SCROLL = "() => document.getElementById('answer')?.scrollIntoView({behavior: 'smooth', block: 'nearest'})"


def gradio() -> Any:
    """The library, its reports home switched off. `InputError` if it is not there."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise InputError(f"the page needs Gradio ({error}): pip install 'sousa-jax[demo]'") from None
    return gradio


def build(stream: Stream, limits: Limits) -> Any:
    """The page, a `gradio.Blocks`. Who comes is heard one after another."""
    gr = gradio()
    from sousa_jax.data.synth.performance import TEMPO_BPM
    from sousa_jax.data.synth.players import TIERS

    hop_s, spec = stream.settings.hop_s, stream.model.config.frontend

    # What happens: values of the components below.

    def show_part(heard: Recording | None, part: int | None) -> list[Any]:
        """One segment, for `of_part`; of nothing nothing."""
        if heard is None:
            return [gr.HTML(visible=False), "", gr.HTML(visible=False), gr.Slider(visible=False)]
        at_s, last_s = answer.middle_start_s(heard, part, stream), answer.last_start_s(heard, stream)
        told = words.lesson_lines(heard.take.played[part]) if part is not None else []
        is_silent = heard.take.overall is None  # the network was not asked
        return [
            gr.HTML(words.headline(heard, part), visible=True),
            "\n".join(f"- {line}" for line in told),
            gr.HTML(show_window(heard, at_s), visible=not is_silent),
            gr.Slider(value=at_s, maximum=last_s or hop_s, visible=last_s > 0 and not is_silent),
        ]

    def show_window(heard: Recording | None, at_s: float) -> str:
        """The picture; nothing of a recording that was forgotten meanwhile."""
        return picture.as_svg(picture.draw(answer.window(heard, at_s, stream), spec)) if heard else ""

    def show(heard: Recording | None) -> list[Any]:
        """For `of_recording`."""
        if heard is None:
            return [None, gr.Label(visible=False), gr.Radio(choices=[], visible=False), *show_part(None, None)]
        bars, part = words.bars(heard.take), answer.longest(heard.take)
        choices = [(line, i) for i, line in enumerate(words.parts(heard.take))]
        return [
            heard,
            gr.Label(bars or None, label=words.about_bars(heard.take), visible=bool(bars)),
            gr.Radio(choices, value=part, visible=len(choices) > 1),
            *show_part(heard, part),
        ]

    def listen(path: str | None, played: str = "") -> list[Any]:
        """A file to `of_recording`."""
        if path is None:
            return show(None)
        try:
            return show(answer.hear(pathlib.Path(path), stream, limits, played))
        except InputError as error:
            nothing = show(None)
            nothing[of_recording.index(headline)] = gr.HTML(words.refusal(str(error)), visible=True)
            return nothing

    def play(slug: str, tempo_bpm: float, tier: str) -> list[Any]:
        """The synthesizer to `performed`, `command`, `played`, `ask`."""
        seed = secrets.randbelow(2**31)
        command = (
            f"python -m sousa_jax.data.synth --rudiment={slug} --tempo={tempo_bpm:g} --tier={tier} "
            f"--duration={SYNTH_S:g} --seed={seed} --out=x.wav"
        )
        played = f"The synthesizer played: {by_slug(slug).name}, {tempo_bpm:g} beats a minute, {tier}"
        wave = answer.play(slug, tempo_bpm, tier, seed)
        return [(SYNTH_HZ, wave), f"The same: `{command}`", played, gr.Button(interactive=True)]

    # What it looks like.

    one_file = {"type": "filepath", "editable": False, "buttons": []}
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, FORGOTTEN_S)) as blocks:
        recording, played = gr.State(time_to_live=FORGOTTEN_S), gr.State("")
        gr.Markdown(WELCOME)
        with gr.Row():
            with gr.Column():
                with gr.Tab("Record"):
                    gr.Markdown(INSECURE, elem_classes="only-insecure")
                    recorder = gr.Audio(sources=["microphone"], label="Your drum", **one_file)
                with gr.Tab("Upload"):
                    uploader = gr.Audio(sources=["upload"], label="wav, flac, ogg or mp3", **one_file)
                with gr.Tab("Synthesizer"):
                    in_order = sorted(RUDIMENTS, key=lambda rudiment: rudiment.pas_number)
                    slug = gr.Dropdown(
                        [(f"{r.pas_number}. {r.name}", r.slug) for r in in_order], value="single_paradiddle",
                        label="Rudiment",
                    )  # fmt: skip
                    tempo = gr.Slider(*TEMPO_BPM, value=100, step=1, label="Beats a minute")
                    tier = gr.Radio(list(TIERS), value="advanced", label="Player")
                    perform = gr.Button("Play it", variant="primary")
                    performed = gr.Audio(
                        type="filepath", interactive=False, autoplay=True, buttons=["download"],
                        label="A random player on a random drum",
                    )  # fmt: skip
                    ask = gr.Button("Ask the network", interactive=False)
                    command = gr.Markdown(elem_classes="faint")
            with gr.Column():
                headline = gr.HTML(visible=False, padding=False, elem_id="answer")
                likeliest = gr.Label(num_top_classes=words.TOP, show_heading=False, visible=False)
                part = gr.Radio(label="One after another", visible=False, elem_classes="parts")
                lesson = gr.Markdown()
                drawn = gr.HTML(visible=False, padding=False)
                at = gr.Slider(0, hop_s, step=hop_s, label="Shown from second", visible=False)
        of_part = [headline, lesson, drawn, at]
        of_recording = [recording, likeliest, part, *of_part]
        queue = {"concurrency_id": "network", "concurrency_limit": 1}
        blocks.load(None, js=WARN)
        for asked in (
            recorder.change(listen, recorder, of_recording, **queue),
            uploader.change(listen, uploader, of_recording, **queue),
            ask.click(listen, [performed, played], of_recording, **queue),
        ):
            asked.then(None, js=SCROLL)
        perform.click(play, [slug, tempo, tier], [performed, command, played, ask], **queue)
        part.input(show_part, [recording, part], of_part, **queue)
        at.input(
            show_window, [recording, at], drawn, trigger_mode="always_last", show_progress="hidden", **queue
        )  # fmt: skip
    return blocks


def serve(blocks: Any, host: str, port: int, certificate: pathlib.Path | None, key: pathlib.Path | None) -> None:
    """Begins to serve, in a thread. No tunnel, and nothing that the page would load from elsewhere.

    Raises:
      InputError: the address is taken or not this machine's.
    """
    gr = gradio()
    theme = gr.themes.Base(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    try:
        blocks.launch(
            server_name=host,
            server_port=port,
            ssl_certfile=certificate and str(certificate),
            ssl_keyfile=key and str(key),
            ssl_verify=False,  # of the question that the library asks itself, whether it runs
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            footer_links=[],
            ssr_mode=False,
            enable_monitoring=False,
            max_file_size=LARGEST_FILE,
            state_session_capacity=VISITORS,
            theme=theme,
            css=resources.files("sousa_jax.demo").joinpath("page.css").read_text("utf-8"),
        )
    except OSError as error:
        raise InputError(f"cannot serve {host}:{port}: {' '.join(str(error).split())}") from None
