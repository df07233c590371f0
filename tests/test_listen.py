"""Play, and it tells you: files to text, JSON, tables and pictures; bad files are one line, the others are heard."""

import csv
import io
import json
import re
import types

import numpy as np
import pytest
import soundfile

from sousa_jax import checkpoint, listen, recording, rejection, stream
from sousa_jax.alignment import pattern_of
from sousa_jax.data.clips import trim_tail
from sousa_jax.data.frame_targets import FrameTargets
from sousa_jax.rejection import Limits
from sousa_jax.rudiments import CLASS_IDS, NUM_CLASSES, SLUGS, by_slug
from sousa_jax.step import Heard
from sousa_jax.stream import Settings, Stream
from sousa_jax.take import Listener

# A network that hears perfectly: each sample that is not zero is a stroke as hard as it is loud, and the fourth decimal
# says of which rudiment it is.
RATE, PER_SECOND = 2000, 200
FRAME, WINDOW = RATE // PER_SECOND, 5 * RATE
PADS = ("single_paradiddle", "five_stroke_roll", "flam_tap")
BPM = 120


def perfect_step(params, stats, batch):
    wave = batch["waveform"]
    level = np.abs(wave).reshape(len(wave), -1, FRAME).max(2)
    onset = (level > 0.02).astype(np.float32)
    coded = np.rint(level * 1e4).astype(int) % 10
    votes = np.stack([((coded == 1 + i) & (onset > 0)).sum(1) for i in range(len(PADS))], 1)
    logits = np.full((len(wave), NUM_CLASSES), -2.0, np.float32)
    for i, slug in enumerate(PADS):
        logits[:, CLASS_IDS[slug]] = 8 * votes[:, i] / np.maximum(votes.sum(1), 1)
    return Heard(logits, FrameTargets(onset, np.rint(level * 100).astype(np.float32) / 100, 0 * onset, onset))


def played(slug, seconds, late_s=0.0):
    """A rudiment at 120 beats a minute, each stroke one sample; every left one so late."""
    pattern = pattern_of(by_slug(slug), "sousa")
    time_s = np.concatenate([pattern.beat + k * pattern.beats for k in range(100)]) * 60 / BPM
    time_s = time_s + late_s * np.tile(pattern.hand, 100)
    velocity = np.tile(pattern.velocity, 100)[time_s < seconds]
    wave = np.zeros(round(seconds * RATE), np.float32)
    wave[np.rint(time_s[time_s < seconds] * RATE).astype(int)] = velocity.round(2) + 1e-4 * (1 + PADS.index(slug))
    return wave


@pytest.fixture
def perfect(monkeypatch):
    """The perfect network instead of the shipped one."""
    spec = types.SimpleNamespace(sample_rate=RATE, window_samples=WINDOW)
    config = types.SimpleNamespace(frontend=spec, strokes_per_second=PER_SECOND)
    model = checkpoint.Model("perfect", config, {}, {}, {})
    monkeypatch.setattr(stream, "_eval_step", lambda name, config: perfect_step)
    monkeypatch.setattr(checkpoint, "load_model", lambda folder: model)
    monkeypatch.setattr(rejection, "load", lambda folder: Limits(0.1, 0.5, 2.0))
    return model


@pytest.fixture
def three(tmp_path):
    """Three rudiments one after another, a pause before the last."""
    parts = [played(PADS[0], 8), played(PADS[1], 9), np.zeros(2 * RATE, np.float32), played(PADS[2], 7)]
    soundfile.write(tmp_path / "three.wav", np.concatenate(parts), RATE, subtype="FLOAT")
    return tmp_path / "three.wav"


def run(capsys, *arguments, code=0):
    """What is printed; errors are not JSON's business."""
    if code:
        with pytest.raises(SystemExit) as stopped:
            listen.main([str(argument) for argument in arguments])
        assert stopped.value.code == code
    else:
        listen.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return said


# ---------------------------------------------------------------------------------------------------------------------
# What is told
# ---------------------------------------------------------------------------------------------------------------------


def no_constants(name):
    raise AssertionError(f"{name} is not JSON")


def checked(entry):
    """An entry of `--json` has the promised keys, plain values, and times in order."""
    assert list(entry) == ["file", "duration_s", "overall", "segments", "tempo_bpm", "strokes"]
    assert all(list(answer) == ["rudiment", "probability"] for answer in entry["overall"])
    assert all(list(segment) == ["start_s", "end_s", "rudiment", "probability"] for segment in entry["segments"])
    assert all(list(stroke) == ["time_s", "velocity", "deviation_ms"] for stroke in entry["strokes"])
    for answer in entry["overall"] + entry["segments"]:
        assert answer["rudiment"] in SLUGS
        assert 0 <= answer["probability"] <= 1
    times = [segment[name] for segment in entry["segments"] for name in ("start_s", "end_s")]
    assert times == sorted(times)
    assert all(0 <= time_s <= entry["duration_s"] + 0.01 for time_s in times)
    assert [s["time_s"] for s in entry["strokes"]] == sorted(s["time_s"] for s in entry["strokes"])
    return entry


def test_three_rudiments_one_after_another(perfect, three, capsys):
    (entry,) = json.loads(run(capsys, three, "--json").out, parse_constant=no_constants)
    checked(entry)
    assert [segment["rudiment"] for segment in entry["segments"]] == list(PADS)
    edges = [(segment["start_s"], segment["end_s"]) for segment in entry["segments"]]
    np.testing.assert_allclose(edges, [(0, 8), (8, 17), (19, 26)], atol=0.5)
    assert [answer["rudiment"] for answer in entry["overall"][:3]] == [PADS[1], PADS[0], PADS[2]], "by their length"
    assert entry["tempo_bpm"] == pytest.approx(BPM, rel=0.01)
    assert entry["duration_s"] == 26
    struck = np.flatnonzero(recording.read_audio(three, RATE)) / RATE
    np.testing.assert_allclose([s["time_s"] for s in entry["strokes"]], struck, atol=0.006)


def test_deviations_are_of_the_segments_own_rudiment(perfect, tmp_path, capsys):
    """Left strokes are 20 ms late."""
    soundfile.write(tmp_path / "late.wav", played(PADS[0], 10, late_s=0.02), RATE, subtype="FLOAT")
    (entry,) = json.loads(run(capsys, tmp_path / "late.wav", "--json").out)
    deviations = np.array([stroke["deviation_ms"] for stroke in entry["strokes"]], float)
    left = np.tile([hand == "L" for hand in by_slug(PADS[0]).sticking], 20)[: len(deviations)]
    assert np.median(deviations[left]) - np.median(deviations[~left]) == pytest.approx(20, abs=3)


def test_a_timeline_for_people(perfect, three, capsys):
    said = run(capsys, three).out
    assert re.match(rf"{three}: 26\.0 s, heard in .* times real time\)\n +\d+\.\d%  Five Stroke Roll\n", said)
    lines = [line for line in said.splitlines() if "…" in line]
    told = [re.split(r"  +", line.split(" s  ")[1])[0] for line in lines]
    assert told == ["Single Paradiddle", "Five Stroke Roll", "silence", "Flam Tap"]
    assert "R l r r L r l l" in lines[0]
    assert "120" in lines[1]


def test_a_table_has_a_row_a_segment(perfect, three, capsys):
    rows = list(csv.DictReader(io.StringIO(run(capsys, three, three, "--csv").out)))
    assert tuple(rows[0]) == listen.COLUMNS
    assert [row["rudiment"] for row in rows] == [*PADS, *PADS]
    assert float(rows[0]["tempo_bpm"]) == pytest.approx(BPM, rel=0.01)
    assert rows[0]["sticking"] == by_slug(PADS[0]).notation


def test_a_picture(perfect, three, capsys):
    import matplotlib.image

    path = three.with_suffix(".png")
    assert f"written to {path}" in run(capsys, three, f"--plot={path}").err
    pixels = matplotlib.image.imread(path)
    assert pixels.shape[1] > 900
    assert pixels.std() > 0
    assert sorted(file.name for file in three.parent.iterdir()) == ["three.png", "three.wav"]


@pytest.mark.parametrize("n", [1, 100, 12 * RATE], ids=["one sample", "fifty ms", "long"])
def test_silence_is_said_to_be_silent(perfect, tmp_path, capsys, n):
    soundfile.write(tmp_path / "silent.wav", np.zeros(n), RATE)
    said = run(capsys, tmp_path / "silent.wav", f"--plot={tmp_path / 'out.png'}")
    assert "no rudiment: silence" in said.out
    (entry,) = json.loads(run(capsys, tmp_path / "silent.wav", "--json").out, parse_constant=no_constants)
    assert checked(entry)["overall"] == entry["segments"] == entry["strokes"] == []
    assert entry["tempo_bpm"] is None


def test_what_is_no_rudiment_gets_a_reason_and_no_segment(perfect, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(rejection, "load", lambda folder: Limits(strokes_per_s=50.0))
    soundfile.write(tmp_path / "other.wav", played(PADS[0], 8), RATE, subtype="FLOAT")
    said = run(capsys, tmp_path / "other.wav").out
    assert "no rudiment; if it is one after all:" in said
    assert "no rudiment: too few strokes" in said
    (entry,) = json.loads(run(capsys, tmp_path / "other.wav", "--json").out)
    assert checked(entry)["segments"] == []
    assert entry["overall"][0]["rudiment"] == PADS[0]


def test_a_short_take_is_heard(perfect, tmp_path, capsys):
    """Less than half a window."""
    soundfile.write(tmp_path / "short.wav", played(PADS[1], 1.5), RATE, subtype="FLOAT")
    (entry,) = json.loads(run(capsys, tmp_path / "short.wav", "--json").out)
    assert [segment["rudiment"] for segment in checked(entry)["segments"]] == [PADS[1]]
    assert len(entry["strokes"]) == np.count_nonzero(played(PADS[1], 1.5))


def test_a_network_without_strokes_tells_names_alone(perfect, three, capsys, monkeypatch):
    monkeypatch.setattr(stream, "_eval_step", lambda *_: lambda *args: Heard(perfect_step(*args).logits, None))
    perfect.config.strokes_per_second = 0
    (entry,) = json.loads(run(capsys, three, "--json").out)
    assert [segment["rudiment"] for segment in checked(entry)["segments"]] == list(PADS)
    assert (entry["tempo_bpm"], entry["strokes"]) == (None, [])


# ---------------------------------------------------------------------------------------------------------------------
# Pieces, batches, memory
# ---------------------------------------------------------------------------------------------------------------------


def test_a_take_does_not_depend_on_its_pieces(perfect, three):
    wave = recording.read_audio(three, RATE)

    def told(size, batch):
        listener = Listener(Stream(perfect, Settings(), batch), Limits())
        for begin in range(0, len(wave), size):
            listener.push(wave[begin : begin + size])
        return listen.as_json("x", listener.finish(), 5)

    whole = told(len(wave), 1)
    assert whole["segments"]
    assert all(told(size, batch) == whole for size, batch in ((1, 1), (777, 4), (10 * RATE, 3)))


def test_a_long_take_is_remembered_in_little(perfect):
    """Ten minutes: no samples are kept but those of the windows under way; what grows is counted."""
    listener, part = Listener(Stream(perfect, Settings(), 4), Limits()), played(PADS[0], 20)
    for _ in range(30):
        listener.push(part)
        assert len(listener._state.buffer) == WINDOW + RATE // 2
        assert len(listener._state.waiting) < 4
        assert len(listener._rest) < RATE // 100
    grown = sum(power.nbytes for power in listener._powers)
    grown += sum(column.nbytes for frames in listener._frames for column in frames)
    grown += sum(answer.log_probs.nbytes for answer in listener._answers)
    assert grown / 600 * 3600 < 20e6, "of an hour"
    assert len(listener.finish().played) == 1


# ---------------------------------------------------------------------------------------------------------------------
# Bad files, bad arguments, the microphone
# ---------------------------------------------------------------------------------------------------------------------


def test_bad_files_are_one_line_each_and_the_others_are_heard(perfect, three, tmp_path, capsys):
    (tmp_path / "text.wav").write_bytes(b"not a sound")
    (tmp_path / "empty.wav").write_bytes(b"")
    bad = [tmp_path / "nothing.wav", tmp_path / "text.wav", tmp_path / "empty.wav", tmp_path]
    said = run(capsys, bad[0], three, *bad[1:], "--json", code=2)
    assert [entry["file"] for entry in json.loads(said.out)] == [str(three)]
    lines = said.err.splitlines()
    assert len(lines) == len(bad)
    assert all(line.startswith(f"error: {path}: ") for line, path in zip(lines, bad, strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give recordings, or --mic"),
        (["x.wav", "--mic"], "give recordings, or --mic"),
        (["x.wav", "y.wav", "--plot=out.png"], "--plot draws one take, not 2"),
        (["x.wav", "--plot=out.jpg"], "its name must end in .png"),
        (["x.wav", "--top=41"], "--top must be 1 to 40; found 41"),
        (["x.wav", "--hop=0"], "need a hop above 0"),
        (["x.wav", "--json", "--csv"], "not allowed with argument"),
        (["x.wav", "--plot=out.png"], "x.wav: no such file"),
    ],
)
def test_bad_arguments_are_one_line_and_nothing_is_written(perfect, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    said = run(capsys, *arguments, code=2)
    assert message in said.err.strip().splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_model_or_without_limits(perfect, three, tmp_path, capsys, monkeypatch):
    monkeypatch.undo()
    assert "holds no model.json" in run(capsys, three, f"--workdir={tmp_path}", code=2).err
    assert rejection.load(tmp_path) is None


def test_limits_that_nobody_fitted_are_said(perfect, three, capsys, monkeypatch):
    monkeypatch.setattr(rejection, "load", lambda folder: None)
    assert "has no listening.json: every sound gets a name" in run(capsys, three, "--json").err


def test_the_microphone_is_heard_until_it_is_stopped(perfect, capsys, monkeypatch):
    """A stand-in gives ten seconds at 8 kHz and then Ctrl-C."""

    def pieces():
        for _ in range(10 * 50):
            yield np.repeat(samples[:40], 4)
            samples[:-40] = samples[40:]
        raise KeyboardInterrupt

    samples = played(PADS[0], 12)

    class Microphone:
        def __enter__(self):
            return 4.0 * RATE, pieces()

        def __exit__(self, *_):
            return False

    monkeypatch.setattr(recording, "microphone", Microphone)
    said = run(capsys, "--mic", "--json")
    (entry,) = json.loads(said.out)
    assert entry["file"] == "microphone"
    assert entry["duration_s"] == pytest.approx(10, abs=0.1)
    told = [line for line in said.err.splitlines() if " s  " in line]
    assert len(told) == pytest.approx((10 - 5) / 0.5 + 1, abs=1)
    latency = [line for line in said.err.splitlines() if line.startswith("latency")]
    parts = r"buffer \d+, resampler \d+, network \d+"
    assert re.fullmatch(rf"latency \d+ ms \({parts}\); a change of rudiment is heard after about \d\.\d s", latency[0])


# ---------------------------------------------------------------------------------------------------------------------
# The network that comes with the package
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_shipped_network_tells_three_rudiments_apart(tmp_path, capsys):
    """Synthetic ones, one after another without a pause, in a stereo file of another rate; and noise after them."""
    from sousa_jax.data.other_sounds import coloured
    from sousa_jax.data.synth.clips import SynthClips
    from sousa_jax.data.synth.stream import Source

    rate, wanted = 22_050, ("single_dragadiddle", "six_stroke_roll", "multiple_bounce_roll")
    clips = SynthClips("test", 80, 3, Source("sousa", 0, 10.0))
    parts, slugs = [], clips.table["rudiment_slug"].tolist()
    for slug in wanted:
        row = max(
            i for i, (name, tier) in enumerate(zip(slugs, clips.table["skill_tier"], strict=True)) if name == slug
        )
        parts.append(trim_tail(clips.waveform(row, rate), rate))
    rng = np.random.default_rng(0)
    parts.append(0.1 * coloured(rng, 8 * rate, -1).astype(np.float32) * 3)
    ends = np.cumsum([len(part) for part in parts]) / rate
    wave = np.concatenate(parts)
    soundfile.write(tmp_path / "three.flac", np.stack([wave, wave], 1), rate)
    (entry,) = json.loads(run(capsys, tmp_path / "three.flac", "--json").out, parse_constant=no_constants)
    checked(entry)
    assert [segment["rudiment"] for segment in entry["segments"]] == list(wanted)
    assert np.median(np.abs([segment["end_s"] for segment in entry["segments"]] - ends[:3])) <= 0.5
