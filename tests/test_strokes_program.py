"""From a recording to strokes, words and files: every frame is heard once, and what goes wrong is said in one line.

Not `test_strokes.py`: `data/test_strokes.py`, of SOUSA's table of strokes, has that name.
"""

import errno
import functools
import io
import pathlib
import types

import numpy as np
import pandas as pd
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from small_sousa import rows, write_hub, write_strokes

from configs import strokes as configs
from sousa_jax import checkpoint, lesson, models, start, strokes, strokes_picture
from sousa_jax.alignment import pattern_of
from sousa_jax.data.clips import window_starts
from sousa_jax.data.frame_targets import FrameTargets, place_on_frames
from sousa_jax.errors import InputError
from sousa_jax.frontends import FrontendSpec
from sousa_jax.hearing import pick
from sousa_jax.lesson import teach
from sousa_jax.recording import read_audio
from sousa_jax.rudiments import CLASS_IDS, by_slug
from sousa_jax.step import Heard, make_eval_step
from sousa_jax.strokes import BATCH, hear, likeliest, sousa_clip

# ---------------------------------------------------------------------------------------------------------------------
# Windows are stitched
# ---------------------------------------------------------------------------------------------------------------------

RATE, PER_SECOND = 16_000, 200
HOP = RATE // PER_SECOND
SPEC = FrontendSpec(sample_rate=RATE, window_s=0.1)
N_WINDOW, PER_WINDOW = SPEC.window_samples, SPEC.window_samples // HOP  # samples, frames
SILENCE = (50.0, -50.0)  # logits of a window that only fills up a batch: no mean may have seen them


def network(strokes_per_second=PER_SECOND):
    config = types.SimpleNamespace(frontend=SPEC, strokes_per_second=strokes_per_second)
    return checkpoint.Model("stub", config, {}, {}, {})


def numbered(n):
    """A clip whose sample i is i + 1."""
    return np.arange(1, n + 1, dtype=np.float32)


def parrot_step(params, stats, batch):
    """A network that says of each frame: its sample, the window's first sample, its place in the window, and 1."""
    wave = batch["waveform"]
    assert wave.shape == (BATCH, N_WINDOW), "one shape, one compiled program"
    here, ones = wave[:, ::HOP], np.ones((BATCH, PER_WINDOW), np.float32)
    logits = np.where(wave.any(1)[:, None], wave[:, :1] / N_WINDOW * [0, 1], SILENCE)
    return Heard(logits, FrameTargets(here, wave[:, :1] * ones, np.arange(PER_WINDOW) * ones, ones))


@pytest.fixture
def parrot(monkeypatch):
    monkeypatch.setattr("sousa_jax.stream._eval_step", lambda name, config: parrot_step)


# Up to eleven windows, and lengths about those of one and of two.
LENGTHS = st.one_of(
    st.integers(1, 6 * N_WINDOW),
    st.builds(lambda k, off: k * N_WINDOW + off, st.integers(1, 3), st.integers(-2 * HOP, 2 * HOP)),
)


@settings(max_examples=150, deadline=None)
@given(LENGTHS)
def test_every_frame_is_heard_in_the_window_in_whose_middle_it_lies_most_nearly(n):
    """At any length: no frame twice, none moved. A last frame that is centred at the clip's very end may be 0."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sousa_jax.stream._eval_step", lambda name, config: parrot_step)
        stream, log_probs = hear(network(), numbered(n))
    n_frames = max(1, round(n / HOP))
    assert all(column.shape == (n_frames,) and column.dtype == np.float32 for column in stream)
    begins = np.array([start // HOP for start in window_starts(n, N_WINDOW, N_WINDOW // 2)])
    heard = np.arange(n_frames)[stream.density == 1]
    assert len(heard) >= n_frames - 1
    np.testing.assert_array_equal(stream.onset[heard], 1 + heard * HOP)
    begin = heard - stream.grace[heard].astype(int)
    np.testing.assert_array_equal(stream.velocity[heard], 1 + begin * HOP)
    from_middle = np.abs(heard[:, None] - begins - (PER_WINDOW - 1) / 2)
    np.testing.assert_array_equal(np.abs(heard - begin - (PER_WINDOW - 1) / 2), from_middle.min(1))
    if len(heard) < n_frames:
        assert [column[-1] for column in stream] == [0] * 4
    logits = np.array([[0, (1 + b * HOP) / N_WINDOW] for b in begins])
    expected = (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).mean(0)
    np.testing.assert_allclose(log_probs, expected, rtol=1e-4, atol=1e-5)


def test_a_clip_shorter_than_the_window_is_told_once(parrot):
    """The window holds it several times; the first round is it."""
    stream, _ = hear(network(), numbered(5 * HOP))
    np.testing.assert_array_equal(stream.onset, 1 + HOP * np.arange(5))
    np.testing.assert_array_equal(stream.velocity, 1)


@pytest.mark.parametrize("n", [5 * HOP, 4 * N_WINDOW], ids=["one window", "many"])
def test_nothing_is_heard_in_a_silent_tail(parrot, n):
    """The stream is as long as the clip, tail included."""
    stream, _ = hear(network(), np.pad(numbered(n), (0, 20 * HOP)))
    assert len(stream.onset) == n // HOP + 20
    assert (stream.onset[: n // HOP] > 0).all()
    assert not any(column[n // HOP :].any() for column in stream)


def test_a_network_that_hears_no_strokes_is_refused():
    with pytest.raises(InputError, match=r"this stub hears no strokes"):
        hear(network(strokes_per_second=0), numbered(100))


# ---------------------------------------------------------------------------------------------------------------------
# Where the sound comes from
# ---------------------------------------------------------------------------------------------------------------------


def test_a_recording_is_one_channel_at_the_models_rate(tmp_path):
    sine = np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)
    soundfile.write(tmp_path / "two.wav", np.stack([sine, 0 * sine], 1), 8000)
    wave = read_audio(tmp_path / "two.wav", RATE)
    assert (wave.shape, wave.dtype) == ((RATE,), np.float32)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    assert np.abs(wave - expected)[500:-500].max() < 0.01


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nothing.wav", None, "no such file"),
        ("folder", "folder", "a folder"),
        ("text.wav", b"not a sound", "expected a recording that libsndfile reads"),
        ("empty.wav", b"", "expected a recording that libsndfile reads"),
    ],
)
def test_what_is_no_recording_is_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_audio(path, RATE)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> pathlib.Path:
    """Two clips a split: test000 has five strokes of one sample, test001 is broken, of others no strokes are known."""
    made = {split: rows(split, 2, 1) for split in ("train", "validation", "test")}
    clicks, file = np.zeros(round(0.5 * RATE)), io.BytesIO()
    clicks[np.rint(np.array([5, 100, 200, 300, 400]) / 1000 * RATE).astype(int)] = 0.9
    soundfile.write(file, clicks, RATE, format="FLAC")
    made["test"][0]["audio"]["bytes"], made["test"][1]["audio"]["bytes"] = file.getvalue(), b"broken"
    root = write_hub(tmp_path_factory.mktemp("data") / "hub", {split: [shard] for split, shard in made.items()})
    struck = [(100.0, 90, True, "grace"), *((ms, 127, False, "accent") for ms in (5.0, 200.0, 300.0, 400.0))]
    ids = ["test000"] * 5 + ["test001"]
    lines = [(sample_id, *stroke) for sample_id, stroke in zip(ids, [*struck, struck[0]], strict=True)]
    write_strokes(root / "auxiliary/strokes.parquet", lines)
    return root


def test_a_clip_of_sousa_is_found_in_any_split(hub):
    wave, true = sousa_clip(str(hub), "test000", RATE)
    assert np.flatnonzero(wave).tolist() == [80, 1600, 3200, 4800, 6400]
    np.testing.assert_allclose(true.time_s, [0.1, 0.005, 0.2, 0.3, 0.4], rtol=1e-6)
    assert true.velocity.tolist() == [90, 127, 127, 127, 127]
    assert true.is_grace.tolist() == [True, False, False, False, False]


@pytest.mark.parametrize(
    ("sample_id", "message"),
    [
        ("validation01", "no clip 'validation01'; did you mean 'validation001'"),
        ("train0", "did you mean 'train00"),
        ("???", "no clip '???'; see its table"),
        ("test001", "clip test001: "),
        ("train000", "clip train000: no strokes"),
    ],
)
def test_a_clip_that_cannot_be_used_is_named_with_its_nearest(hub, sample_id, message):
    """Not there, as in any split; broken; without strokes."""
    with pytest.raises(InputError) as error:
        sousa_clip(str(hub), sample_id, RATE)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_split_may_be_missing_but_not_all(tmp_path):
    made = rows("train", 1, 1)
    root = write_hub(tmp_path / "part", {"train": [made]})
    write_strokes(root / "auxiliary/strokes.parquet", [("train000", 5.0, 90, False, "tap")])
    assert len(sousa_clip(str(root), "train000", RATE)[1].time_s) == 1
    with pytest.raises(InputError, match="did you mean 'train000'"):
        sousa_clip(str(root), "train00", RATE)
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="none"):
        sousa_clip(str(tmp_path / "none"), "train000", RATE)


# ---------------------------------------------------------------------------------------------------------------------
# The program
# ---------------------------------------------------------------------------------------------------------------------


def save(folder, name, config):
    checkpoint.save_model(folder, checkpoint.Model(name, config, *models.init(name, config, 0), {}))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> pathlib.Path:
    """A folder with a tiny network of windows of half a second, which learned nothing."""
    config = configs.get_config("smoke")
    config.model.window_s = 0.5
    config.model.settings.update(width=8, dilations=(1, 2), rhythm_widths=(8, 8))
    return save(tmp_path_factory.mktemp("model") / "run", "strokes", start.network(config))


BPM = 120


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> pathlib.Path:
    """Two cycles of a paradiddle at 120 beats a minute, each stroke one sample; two seconds at 16 kHz, then silence."""
    pattern = pattern_of(by_slug("single_paradiddle"), "sousa")
    time_s = np.concatenate([pattern.beat + k * pattern.beats for k in range(2)]) * 60 / BPM
    wave = np.zeros(round(time_s[-1] * RATE) + RATE)
    wave[np.rint(time_s * RATE).astype(int)] = np.tile(pattern.velocity, 2)
    path = tmp_path_factory.mktemp("recorded") / "paradiddle.wav"
    soundfile.write(path, wave, RATE, subtype="FLOAT")
    return path


@pytest.fixture
def perfect_ear(monkeypatch):
    """Hears every sample that is not zero, and one rudiment."""

    def hear_clicks(model, wave):
        samples = np.flatnonzero(np.abs(wave) > 0.02)
        none = np.zeros(len(samples), bool)
        struck = (np.float32(samples / RATE), np.float32(127 * np.abs(wave[samples])), none, none)
        log_probs = np.log(np.where(np.arange(40) == CLASS_IDS["single_paradiddle"], 0.61, 0.01))
        return place_on_frames(*struck, max(1, round(len(wave) / HOP)), PER_SECOND), log_probs

    monkeypatch.setattr(strokes, "hear", hear_clicks)


def left(folder):
    """Names of all files, hidden ones too."""
    return sorted(path.name for path in folder.iterdir())


def is_picture(path):
    """Decodes to its end, and is not one colour."""
    import matplotlib.image

    pixels = matplotlib.image.imread(path, format="png")
    return pixels.shape[0] > 200 and pixels.shape[1] > 900 and pixels.std() > 0


def test_a_network_is_heard_from_file_to_files(model, tmp_path, capsys, monkeypatch):
    """The whole way with a network that learned nothing: the table holds what its windows say, no more and no less.

    Frames of the first quarter and of the last are of the first window and of the last alone, by the evaluation step.
    """
    faint = functools.partial(pick, threshold=0.01)  # of untrained probabilities
    monkeypatch.setattr(strokes, "pick", faint)
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, round(0.9 * RATE)).astype(np.float32)
    soundfile.write(tmp_path / "noise.wav", wave, RATE, subtype="FLOAT")
    csv, plot = tmp_path / "out.csv", tmp_path / "out.png"
    strokes.main([str(tmp_path / "noise.wav"), f"--workdir={model}", f"--csv={csv}", f"--plot={plot}"])
    loaded = checkpoint.load_model(model)
    stream, log_probs = hear(loaded, wave)
    windows = np.stack([wave[:8000], wave[-8000:]])
    alone = make_eval_step(loaded.name, loaded.config)(loaded.params, loaded.stats, {"waveform": windows}).strokes
    for found, expected in zip(stream, alone, strict=True):
        assert found.shape == (180,)
        np.testing.assert_allclose(found[:40], expected[0][:40], atol=1e-5)
        np.testing.assert_allclose(found[-40:], expected[1][-40:], atol=1e-5)
    table = pd.read_csv(csv, keep_default_na=False, na_values={"time_s": ""})
    heard = faint(stream, PER_SECOND)
    assert len(heard.time_s) >= lesson.FEWEST
    assert tuple(table.columns) == lesson.COLUMNS
    np.testing.assert_allclose(table["time_s"].dropna(), heard.time_s, rtol=1e-4)
    assert is_picture(plot)
    assert left(tmp_path) == ["noise.wav", "out.csv", "out.png"]
    said = capsys.readouterr().out
    assert said.splitlines()[0].endswith(by_slug(likeliest(log_probs)[0][0]).name)
    assert said.splitlines()[-2:] == [f"written to {csv}", f"written to {plot}"]


def test_a_paradiddle_is_told_as_one(perfect_ear, model, recording, tmp_path, capsys):
    strokes.main([str(recording), f"--workdir={model}", f"--csv={tmp_path / 'out.csv'}", "--dialect=sousa"])
    said = capsys.readouterr().out
    assert said.startswith(" 61.0%  Single Paradiddle\n")
    assert "Tempo 120.0 beats a minute, Single Paradiddle in SOUSA's even slots." in said
    assert "Heard 16 of 16 written strokes (0% missed), and 0 that are not written." in said
    table = pd.read_csv(tmp_path / "out.csv")
    assert table["hand"].tolist() == list("RLRRLRLL") * 2
    assert (table["status"] == "played").all()
    assert table["deviation_ms"].abs().max() <= 2.6, "half a frame"
    assert left(tmp_path) == ["out.csv"]


def test_what_was_meant_and_in_which_rhythm(perfect_ear, model, recording, capsys, monkeypatch):
    """The rudiment that is asked for is taught, the likeliest is still named; the dialect of a file is left open."""
    asked = []

    def watched(heard, rudiment, dialect):
        asked.append((rudiment.slug, dialect))
        return teach(heard, rudiment, dialect)

    monkeypatch.setattr(lesson, "teach", watched)
    strokes.main([str(recording), f"--workdir={model}", "--rudiment=flam_tap", "--dialect=notated"])
    strokes.main([str(recording), f"--workdir={model}"])
    assert asked == [("flam_tap", "notated"), ("single_paradiddle", None)]
    said = capsys.readouterr().out
    assert said.count(" 61.0%  Single Paradiddle\n") == 2
    assert "Flam Tap in the printed rhythm" in said


def test_a_clip_whose_strokes_are_known(perfect_ear, model, hub, tmp_path, capsys, monkeypatch):
    """SOUSA's own rhythm unless another is asked for; the strokes that were struck are drawn."""
    asked, drawn = [], []
    monkeypatch.setattr(lesson, "teach", lambda *args: asked.append(args[2]) or teach(*args))
    draw = strokes_picture.draw
    monkeypatch.setattr(strokes_picture, "draw", lambda *args: drawn.append(args[5]) or draw(*args))
    strokes.main([f"--sousa={hub}", "--clip=test000", f"--workdir={model}", f"--plot={tmp_path / 'out.png'}"])
    strokes.main([f"--sousa={hub}", "--clip=test000", f"--workdir={model}", "--dialect=notated"])
    assert asked == ["sousa", "notated"]
    assert drawn[0].velocity.tolist() == [90, 127, 127, 127, 127]
    assert left(tmp_path) == ["out.png"]


@pytest.mark.parametrize("n", [1, 10, RATE], ids=["one sample", "ten", "a second"])
def test_silence_is_said_to_be_silent(model, tmp_path, capsys, n):
    """However short: a table without rows, a picture without strokes."""
    soundfile.write(tmp_path / "silent.wav", np.zeros(n), RATE)
    csv, plot = tmp_path / "out.csv", tmp_path / "out.png"
    strokes.main([str(tmp_path / "silent.wav"), f"--workdir={model}", f"--csv={csv}", f"--plot={plot}"])
    assert "0 strokes heard, too few for a tempo: at least 4 are needed." in capsys.readouterr().out
    assert csv.read_text().splitlines() == [",".join(lesson.COLUMNS)]
    assert is_picture(plot)


def test_a_file_that_cannot_be_finished_leaves_the_old_one(
    perfect_ear, model, recording, tmp_path, monkeypatch, capsys
):
    def half(table, path, **options):
        path.write_text("time_s,wri")
        raise OSError(errno.ENOSPC, "No space left on device")

    csv = tmp_path / "out.csv"
    csv.write_text("of last week")
    monkeypatch.setattr(pd.DataFrame, "to_csv", half)
    with pytest.raises(SystemExit) as stopped:
        strokes.main([str(recording), f"--workdir={model}", f"--csv={csv}"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: cannot write {csv}: No space left on device"
    assert csv.read_text() == "of last week"
    assert left(tmp_path) == ["out.csv"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.wav"], "nothing.wav: no such file"),
        (["."], "a folder; expected a recording"),
        (["broken.wav"], "broken.wav: "),
        ([], "give either a recording or --sousa"),
        (["{recording}", "--sousa={hub}", "--clip=test000"], "give either a recording or --sousa"),
        (["--clip=test000"], "give either a recording or --sousa"),
        (["{recording}", "--clip=test000"], "belong together"),
        (["--sousa={hub}"], "belong together"),
        (["--sousa={hub}", "--clip=test00"], "did you mean 'test00"),
        (["--sousa=nowhere", "--clip=test000"], "nowhere: nothing there"),
        (["{recording}", "--csv=out.txt"], "cannot write out.txt: its name must end in .csv"),
        (["{recording}", "--plot=out.jpg"], "cannot write out.jpg: its name must end in .png"),
        (["{recording}", "--plot=nowhere/out.png"], "cannot write nowhere/out.png: no folder nowhere"),
        (["{recording}", "--csv=folder.csv"], "cannot write folder.csv: a folder"),
        (["{recording}", "--rudiment=flam_tab"], "unknown rudiment 'flam_tab'; did you mean 'flam_tap'"),
        (["{recording}", "--dialect=printed"], "invalid choice: 'printed'"),
        (["{recording}", "--workdir=nowhere"], "nowhere holds no model.json"),
        (["{recording}", "--workdir=plain"], "this ast hears no strokes (config.model.head was plain)"),
    ],
)
def test_bad_arguments_are_one_line_and_nothing_is_written(
    model, recording, hub, tmp_path, capsys, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.wav").write_bytes(recording.read_bytes()[:30])
    (tmp_path / "folder.csv").mkdir()
    if "--workdir=plain" in arguments:
        save(tmp_path / "plain", "ast", models.make_config("ast", "ast", width=16, depth=1, n_heads=2, mlp_width=32))
    before = left(tmp_path)
    arguments = [argument.format(recording=recording, hub=hub) for argument in arguments]
    with pytest.raises(SystemExit) as exit_info:
        strokes.main([f"--workdir={model}", "--csv=out.csv", "--plot=out.png", *arguments])
    assert exit_info.value.code == 2
    said = capsys.readouterr()
    assert not said.out
    assert message in said.err.strip().splitlines()[-1]
    assert "Traceback" not in said.err
    assert left(tmp_path) == before
