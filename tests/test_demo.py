"""The page agrees with the command line, tells what goes wrong in a line, and asks nothing of the network."""

import importlib.util
import os
import re
import socket
import sys
import types

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from test_listen import PADS, PER_SECOND, RATE, perfect_step, played

from sousa_jax import checkpoint, lesson, listen, recording, rejection, stream
from sousa_jax.demo import __main__ as program
from sousa_jax.demo import answer, page, picture, words
from sousa_jax.errors import InputError
from sousa_jax.frontends import FrontendSpec
from sousa_jax.rejection import Limits
from sousa_jax.report.figures import INK, LINE
from sousa_jax.rudiments import by_slug
from sousa_jax.stream import Settings, Stream
from sousa_jax.strokes import sentences

SPEC = FrontendSpec(sample_rate=RATE, n_fft=128, win_length=64, hop_length=20, n_mels=16, fmax_hz=900.0)
SECOND = RATE


@pytest.fixture(scope="module")
def perfect():
    """The stream of a network that hears perfectly."""
    config = types.SimpleNamespace(frontend=SPEC, strokes_per_second=PER_SECOND)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "_eval_step", lambda name, config: perfect_step)
        yield Stream(checkpoint.Model("perfect", config, {}, {}, {}), Settings(), listen.BATCH)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("recordings")


def write(folder, wave, name="take.wav"):
    soundfile.write(folder / name, wave, RATE, subtype="FLOAT")
    return folder / name


@pytest.fixture(scope="module")
def three(folder):
    """Three rudiments one after another, a pause before the last; then a click a second."""
    clicks = np.zeros(8 * SECOND, np.float32)
    clicks[::SECOND] = 0.5
    parts = [played(PADS[0], 8), played(PADS[1], 9), np.zeros(2 * SECOND, np.float32), played(PADS[2], 7), clicks]
    return write(folder, np.concatenate(parts), "three.wav")


@pytest.fixture(scope="module")
def heard(perfect, three):
    return answer.hear(three, perfect, Limits(0.1, 0.5, 2.0))


# ---------------------------------------------------------------------------------------------------------------------
# What is heard, and what is said of it
# ---------------------------------------------------------------------------------------------------------------------


def test_the_page_hears_what_the_command_line_hears(perfect, three, heard):
    take = listen.hear_file(three, perfect, Limits(0.1, 0.5, 2.0))
    assert listen.as_json("", heard.take, 5) == listen.as_json("", take, 5)
    np.testing.assert_array_equal(heard.wave, recording.read_audio(three, RATE))
    assert [bool(p.segment.rudiment) for p in take.played] == [True, True, True, False], "what the fixture promises"


def test_each_segment_has_its_headline(heard):
    for part, one in enumerate(heard.take.played[:3]):
        told, rudiment = words.headline(heard, part), by_slug(one.segment.rudiment)
        assert f"<h2>{rudiment.name} <small>{one.segment.probability:.0%}</small></h2>" in told
        assert re.sub("</?b>", "", re.search('sticking">(.*?)</p>', told)[1]) == rudiment.notation
        assert f"<p>{one.tempo_bpm:.0f} beats a minute · {one.segment.start_s:.1f} to " in told
    told = words.headline(heard, 3)
    assert "<h2>No rudiment</h2><p>too few strokes · " in told
    assert words.parts(heard.take)[1].endswith(" s  Five Stroke Roll, 100%")
    assert words.parts(heard.take)[3].endswith(" s  no rudiment: too few strokes")
    assert answer.longest(heard.take) == 1, "the longest with a name"


def test_accents_are_bold(heard):
    assert 'sticking"><b>R</b> l r r <b>L</b> r l l</p>' in words.headline(heard, 0)


def test_bars_are_of_the_whole_recording(heard):
    told = listen.as_json("", heard.take, words.TOP)["overall"]
    assert list(words.bars(heard.take)) == [by_slug(answer["rudiment"]).name for answer in told]
    assert list(words.bars(heard.take).values()) == pytest.approx([a["probability"] for a in told], abs=1e-4)
    assert words.about_bars(heard.take).startswith("How likely")


def test_a_lesson_is_that_of_the_command_line(heard):
    one = heard.take.played[0]
    assert words.lesson_lines(one) == sentences(lesson.teach(one.strokes, by_slug(PADS[0])))
    assert words.lesson_lines(heard.take.played[3]) == [], "of no rudiment none"


def test_a_long_lesson_is_about_its_beginning_and_a_short_one_says_so(perfect, folder):
    (one,) = answer.hear(write(folder, played(PADS[0], 70)), perfect, Limits()).take.played
    told = words.lesson_lines(one)
    assert told[0] == "Its first 60 seconds:"
    assert any(re.match(r"Heard 48\d of", line) for line in told), "of 560 strokes"
    (one,) = answer.hear(write(folder, played(PADS[0], 0.3)), perfect, Limits()).take.played
    assert words.lesson_lines(one) == ["3 strokes were heard; at least 4 are needed to find a tempo."]


@pytest.mark.parametrize("n", [1, 3 * SECOND, 12 * SECOND])
def test_silence_is_said_to_be_silent(perfect, folder, n):
    silent = answer.hear(write(folder, np.zeros(n, np.float32)), perfect, Limits())
    assert words.headline(silent, answer.longest(silent.take)) == "<h2>Silence</h2>"
    assert words.bars(silent.take) == {}
    assert "<svg" in picture.as_svg(picture.draw(answer.window(silent, 0.0, perfect), SPEC))


def test_what_is_no_rudiment_is_not_named_but_the_bars_say_what_it_would_be(perfect, folder):
    other = answer.hear(write(folder, played(PADS[0], 8)), perfect, Limits(strokes_per_s=50.0))
    assert "No rudiment" in words.headline(other, answer.longest(other.take))
    assert next(iter(words.bars(other.take))) == by_slug(PADS[0]).name
    assert words.about_bars(other.take) == "If it is a rudiment after all"


def test_what_was_played_is_said_first_and_is_text(perfect, folder):
    one = answer.hear(write(folder, played(PADS[0], 6)), perfect, Limits(), "a <b> & c")
    assert words.headline(one, 0).startswith('<p class="faint">a &lt;b&gt; &amp; c</p>')


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a sound", "bad.wav: "),
        (b"", "bad.wav: "),
        ("long", "bad.wav: longer than 10 minutes; python -m sousa_jax.listen hears any length"),
    ],
    ids=["text", "nothing", "too long"],
)
def test_what_cannot_be_heard_is_a_line_that_does_not_tell_where_the_server_keeps_files(
    perfect, tmp_path, content, message
):
    path = tmp_path / "bad.wav"
    if content == "long":
        soundfile.write(path, np.zeros(601 * 1000, np.int16), 1000)
    else:
        path.write_bytes(content)
    with pytest.raises(InputError) as refused:
        answer.hear(path, perfect, Limits())
    told = str(refused.value)
    assert told.startswith(message)
    assert str(tmp_path) not in told
    assert "\n" not in told
    assert words.refusal("<x>") == "<h2>This cannot be heard</h2><p>&lt;x&gt;</p>"


# ---------------------------------------------------------------------------------------------------------------------
# The window that is shown
# ---------------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(at_s=st.floats(0, 100))
def test_any_window_is_a_piece_of_the_recording_with_its_strokes(perfect, heard, at_s):
    shown = answer.window(heard, at_s, perfect)
    assert len(shown.wave) == SPEC.window_samples
    begin = round(shown.start_s * RATE)
    assert begin == min(round(at_s * RATE), len(heard.wave) - perfect.length)
    np.testing.assert_array_equal(shown.wave[: shown.n_sound], heard.wave[begin : begin + shown.n_sound])
    end_s = shown.start_s + shown.n_sound / RATE
    all_s = np.concatenate([played.strokes.time_s for played in heard.take.played])
    np.testing.assert_array_equal(shown.strokes.time_s, all_s[(all_s >= shown.start_s) & (all_s < end_s)])


def test_a_window_in_the_middle_of_its_segment_is_shown_first(perfect, heard):
    for part, segment in enumerate(one.segment for one in heard.take.played):
        middle_s = answer.middle_start_s(heard, part, perfect) + 2.5
        assert abs(middle_s - (segment.start_s + segment.end_s) / 2) <= 0.25
    assert answer.last_start_s(heard, perfect) == 34 - 5


def test_a_short_recording_is_shown_as_it_goes_round(perfect, folder):
    short = answer.hear(write(folder, played(PADS[1], 1.5)), perfect, Limits())
    shown = answer.window(short, answer.middle_start_s(short, 0, perfect), perfect)
    assert answer.last_start_s(short, perfect) == 0
    assert 0 < shown.n_sound <= 1.5 * RATE
    np.testing.assert_array_equal(shown.wave[shown.n_sound : 2 * shown.n_sound], shown.wave[: shown.n_sound])
    assert len(shown.strokes.time_s) == np.count_nonzero(shown.wave[: shown.n_sound])
    assert "again from the start" in picture.as_svg(picture.draw(shown, SPEC))


def test_the_picture_has_every_stroke_and_the_colours_of_the_page(perfect, heard):
    shown = answer.window(heard, 0.0, perfect)
    figure = picture.draw(shown, SPEC)
    sound, bands = figure.axes
    stems = next(c for c in sound.collections if len(c.get_paths()) == len(shown.strokes.time_s))
    np.testing.assert_allclose([path.vertices[0, 0] for path in stems.get_paths()], shown.strokes.time_s, atol=1e-6)
    assert bands.images[0].get_extent()[:2] == [pytest.approx(0, abs=1e-6), pytest.approx(5, abs=0.05)]
    assert sound.get_xlim() == bands.get_xlim() == (0, 5)
    svg = picture.as_svg(figure)
    assert {"var(--ink)", "var(--line)"} <= set(re.findall(r"var\(--\w+\)", svg))
    assert INK not in svg
    assert LINE not in svg
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"|<metadata>.*?</metadata>', "", svg, flags=re.S)


# ---------------------------------------------------------------------------------------------------------------------
# The program
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ssl_certfile=x.pem"], "--ssl_certfile and --ssl_keyfile belong together"),
        (["--ssl_certfile=x.pem", "--ssl_keyfile=y.pem"], "x.pem: no such file"),
        (["--workdir=nowhere"], "nowhere holds no model.json"),
    ],
)
def test_bad_arguments_are_one_line(monkeypatch, tmp_path, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(page, "gradio", lambda: None)
    with pytest.raises(SystemExit) as stopped:
        program.main(arguments)
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert message in said
    assert len(said.splitlines()) == 1


def test_without_gradio_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit):
        program.main([])
    assert "pip install 'sousa-jax[demo]'" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# In a browser
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped():
    """The network that comes with the package."""
    return Stream(checkpoint.load_model(checkpoint.SHIPPED), batch=listen.BATCH), rejection.load(checkpoint.SHIPPED)


@pytest.fixture(scope="module")
def address(shipped):
    """Of the page, served from a thread on a free port."""
    if importlib.util.find_spec("gradio") is None and not os.environ.get("CI"):
        pytest.skip("the page needs gradio: pip install -e '.[demo]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    blocks = page.build(*shipped)
    page.serve(blocks, "127.0.0.1", port, None, None)
    yield f"http://localhost:{port}/"
    blocks.close(verbose=False)


@pytest.fixture
def phone(chromium, address):
    """The page on a phone; what it asks for elsewhere, what fails and what it complains of fails the test."""
    from playwright.sync_api import sync_playwright

    wrong = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])  # CI is root
        opened = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
        opened.set_default_timeout(60_000)
        opened.on("console", lambda message: message.type == "error" and wrong.append(message.text))
        opened.on("pageerror", lambda error: wrong.append(str(error)))
        opened.on("request", lambda asked: asked.url.startswith((address, "data:", "blob:")) or wrong.append(asked.url))
        opened.on("response", lambda got: got.status >= 400 and wrong.append(f"{got.status} {got.url}"))
        # What the page itself calls off, as a stream of events that has ended, is no failure.
        opened.on("requestfailed", lambda got: got.failure != "net::ERR_ABORTED" and wrong.append(got.url))
        opened.goto(address)
        yield opened
        browser.close()
    assert wrong == []


def answered(opened, after):
    """What the page says, once `after` was done."""
    after()
    opened.locator("#answer h2").wait_for()
    opened.locator(".picture svg").wait_for()
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"
    return opened.locator("#answer").inner_text()


def headline(heard):
    """Name and probability."""
    told = words.headline(heard, answer.longest(heard.take))
    return re.sub("<.*?>", "", re.search("<h2>(.*?)</h2>", told)[1])


@pytest.mark.slow
def test_the_page_hears_the_synthesizer_and_a_file(phone, shipped, tmp_path):
    """What it plays is what is asked about, and both are answered as on the command line."""
    assert phone.evaluate("isSecureContext")
    assert phone.locator(".only-insecure").first.is_hidden()
    phone.get_by_role("tab", name="Synthesizer").click()
    ask = phone.get_by_role("button", name="Ask the network")
    assert ask.is_disabled()
    phone.get_by_role("button", name="Play it").click()
    phone.get_by_text("The same: ").wait_for()
    command = phone.get_by_text("The same: ").inner_text()
    seed = int(re.search(r"--seed=(\d+)", command)[1])
    assert "--rudiment=single_paradiddle --tempo=100 --tier=advanced --duration=8" in command
    told = answered(phone, ask.click)
    path = tmp_path / "x.wav"
    soundfile.write(path, answer.play("single_paradiddle", 100, "advanced", seed), answer.SYNTH_HZ)
    heard = answer.hear(path, *shipped)
    assert told.startswith("The synthesizer played: Single Paradiddle, 100 beats a minute, advanced")
    assert headline(heard) in told

    soundfile.write(path, answer.play("five_stroke_roll", 140, "professional", 3), answer.SYNTH_HZ)
    heard = answer.hear(path, *shipped)
    phone.get_by_role("tab", name="Upload").click()
    phone.locator("input[type=file]").set_input_files(path)
    phone.wait_for_function("!document.getElementById('answer').innerText.includes('The synthesizer')")
    told = answered(phone, lambda: None)
    assert headline(heard) in told
    for name in words.bars(heard.take):
        assert phone.get_by_test_id(f"{name}-confidence-set").is_visible()
    assert words.lesson_lines(heard.take.played[0])
    for line in words.lesson_lines(heard.take.played[0]):
        assert phone.get_by_text(line).is_visible()
    before = phone.locator(".picture").inner_html()
    phone.locator("input[type=range]:visible").fill("0.5")
    phone.wait_for_function("before => document.querySelector('.picture').innerHTML != before", arg=before)

    soundfile.write(tmp_path / "y.wav", np.zeros(601 * 3000), 3000, subtype="PCM_U8")  # the browser plays it
    phone.locator("button[aria-label=Clear]:visible").click()
    phone.locator("#answer").wait_for(state="hidden")
    phone.locator("input[type=file]").set_input_files(tmp_path / "y.wav")
    phone.get_by_role("heading", name="This cannot be heard").wait_for()
    assert "y.wav: longer than 10 minutes" in phone.locator("#answer").inner_text()
    assert phone.locator(".picture").is_hidden()

    by_plain_http = phone.context.browser.new_page()
    by_plain_http.add_init_script("Object.defineProperty(window, 'isSecureContext', {value: false})")
    by_plain_http.goto(phone.url)
    by_plain_http.get_by_text("the browser gives it no microphone").wait_for()


@pytest.mark.slow
def test_an_address_that_is_taken_is_one_line(address, shipped):
    port = int(re.search(r":(\d+)/", address)[1])
    with pytest.raises(InputError, match=f"cannot serve 127.0.0.1:{port}: "):
        page.serve(page.build(*shipped), "127.0.0.1", port, None, None)
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
