"""The synthesizer's command line: one clip, a data set, and one clear line for every mistake."""

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from sousa_jax.data.sousa import open_clips
from sousa_jax.data.synth.__main__ import main, split_counts
from sousa_jax.data.synth.request import Request, perform
from sousa_jax.errors import InputError


def test_one_clip_with_its_picture(tmp_path, capsys):
    out = tmp_path / "x.wav"
    main([
        "--rudiment=flam_tap", "--tempo=120", "--tier=beginner", f"--out={out}", "--sample_rate=16000",
        "--num_cycles=2", "--plot",
    ])  # fmt: skip
    wave, rate = soundfile.read(out)
    assert rate == 16_000
    # two cycles of four beats... as many as the pattern has, half a second a beat, and a second of silence
    assert 0.5 < len(wave) / rate < 6
    assert np.abs(wave).max() > 0.1
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.png", "x.wav"]
    assert "strokes" in capsys.readouterr().out


def test_a_clip_of_a_given_duration_is_full():
    import jax

    wave, strokes = perform(jax.random.key(0), Request("single_paradiddle", 100, duration_s=2.0), 8_000)
    assert len(wave) == 16_000
    assert strokes.time_s[strokes.valid].max() > 1.5
    assert strokes.time_s[strokes.valid].min() < 0.1


def test_the_seed_decides(tmp_path):
    import jax

    request = Request("drag", 150, "advanced", num_cycles=1)
    (a, _), (b, _), (c, _) = (perform(jax.random.key(seed), request, 8_000) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert len(a) != len(c) or not np.array_equal(a, c)


def test_a_data_set_that_our_reader_opens(tmp_path, capsys):
    out = tmp_path / "set"
    main([f"--out={out}", "--clips=12", "--seed=1", "--sample_rate=8000", "--num_cycles=1"])
    sizes = {split: len(open_clips(str(out), split)) for split in ("train", "validation", "test")}
    assert sizes == split_counts(12)
    assert sum(sizes.values()) == 12
    players = [set(open_clips(str(out), split).table["profile_id"]) for split in sizes]
    assert not players[0] & players[1] and not players[0] & players[2] and not players[1] & players[2]  # noqa: PT018
    assert "--seed=1" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rudiment=pataflaffla"], "pataflafla"),
        (["--rudiment=drag", "--tempo=59"], "60 to 180"),
        (["--rudiment=drag", "--tempo=181"], "60 to 180"),
        (["--rudiment=drag", "--tier=expert"], "professional"),
        (["--rudiment=drag", "--duration=-1"], "above 0"),
        (["--rudiment=drag", "--duration=nan"], "above 0"),
        (["--rudiment=drag", "--num_cycles=0"], "at least 1"),
        (["--rudiment=drag", "--dialect=swing"], "notated"),
        (["--rudiment=drag", "--preset=cave"], "clean_studio"),
        (["--rudiment=drag", "--sample_rate=100"], "8000"),
        (["--rudiment=drag", "--out=x.mp3"], ".wav"),
        (["--rudiment=drag", "--out=nowhere/x.wav"], "nowhere"),
        (["--clips=3"], "at least 5"),
        (["--seed=-1", "--clips=20", "--out=set"], "negative"),
        (["--clips=20", "--out=x.wav"], "--rudiment"),
        (["--clips=20", "--out=set", "--num_cycles=0"], "at least 1"),
        (["--rudiment=drag", "--drums_of=sousa_mini"], "give one of them"),
    ],
)
def test_mistakes_are_one_line(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    out = (
        []
        if any(a.startswith("--out") for a in arguments)
        else ["--out=x.wav" if "--rud" in arguments[0] else "--out=d"]
    )
    with pytest.raises(SystemExit) as stop:
        main([*arguments, *out])
    assert stop.value.code not in (0, None)
    error = capsys.readouterr().err or str(stop.value.code)
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_requests_name_what_is_known():
    with pytest.raises(InputError, match="did you mean 'intermediate'"):
        Request("drag", tier="intermediat")


def test_as_a_module(tmp_path):
    help_text = subprocess.run(
        [sys.executable, "-m", "sousa_jax.data.synth", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert "--rudiment" in help_text
    assert json.dumps("--plot")[1:-1] in help_text
