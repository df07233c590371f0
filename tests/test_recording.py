"""Sound from anywhere: every format becomes one channel at the network's rate, in pieces; bad files are one line."""

import sys
import types

import numpy as np
import pytest
import soundfile
import soxr

from sousa_jax import recording
from sousa_jax.errors import InputError
from sousa_jax.recording import BLOCK_S, blocks, microphone, read_audio

RATE = 16_000


def tone(rate, seconds=1.5, level=0.5):
    return level * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)


@pytest.mark.parametrize(
    ("name", "rate", "subtype", "channels", "tolerance"),
    [
        ("a.wav", 16_000, "PCM_16", 1, 1e-4),
        ("a.wav", 44_100, "PCM_U8", 1, 0.02),
        ("a.wav", 48_000, "PCM_24", 2, 1e-4),
        ("a.wav", 96_000, "FLOAT", 6, 1e-4),
        ("a.flac", 96_000, "PCM_24", 2, 1e-4),
        ("a.flac", 8_000, "PCM_S8", 1, 0.02),
        ("a.ogg", 44_100, "VORBIS", 2, 0.05),
        ("a.mp3", 44_100, "MPEG_LAYER_III", 1, 0.05),
        ("a.aiff", 22_050, "PCM_16", 1, 1e-4),
    ],
)
def test_any_format_is_one_channel_at_the_models_rate(tmp_path, name, rate, subtype, channels, tolerance):
    """Two channels are averaged: here the second half of them is silent."""
    channel = tone(rate)
    silent = channels // 2
    wave = np.stack([channel] * (channels - silent) + [0 * channel] * silent, 1)
    soundfile.write(tmp_path / name, wave, rate, subtype=subtype)
    heard = read_audio(tmp_path / name, RATE)
    assert heard.dtype == np.float32
    assert abs(len(heard) - 1.5 * RATE) <= 0.1 * RATE  # a lossy coder fills up its last frame
    expected = tone(RATE) * (channels - silent) / channels
    middle = slice(2000, 20_000)
    if name.endswith(("ogg", "mp3")):  # may be a little late: only its level is compared
        assert heard[middle].std() == pytest.approx(expected[middle].std(), rel=tolerance)
    else:
        assert np.abs(heard[middle] - expected[middle]).max() < tolerance


def test_pieces_are_short_and_together_the_whole(tmp_path):
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, round(3.3 * BLOCK_S * 44_100)).astype(np.float32)
    soundfile.write(tmp_path / "long.wav", wave, 44_100, subtype="FLOAT")
    pieces = list(blocks(tmp_path / "long.wav", RATE))
    assert len(pieces) == 4
    assert max(map(len, pieces)) <= BLOCK_S * RATE + 0.1 * RATE, "and what the resampler held back"
    np.testing.assert_allclose(np.concatenate(pieces), soxr.resample(wave, 44_100, RATE, quality="HQ"), atol=1e-6)


def test_a_clipped_recording_is_heard_as_it_is(tmp_path):
    soundfile.write(tmp_path / "clipped.wav", np.clip(tone(RATE, level=5.0), -1, 1), RATE, subtype="PCM_16")
    assert np.abs(read_audio(tmp_path / "clipped.wav", RATE)).max() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nothing.wav", None, "no such file; expected a recording"),
        ("folder.wav", "folder", "a folder; expected a recording"),
        ("text.wav", b"not a sound", "expected a recording that libsndfile reads"),
        ("empty.wav", b"", "expected a recording that libsndfile reads"),
        ("no_samples.wav", np.zeros(0), "empty, 0 samples"),
        ("not_finite.wav", np.array([0.0, np.nan]), "not finite"),
        ("cut.wav", "cut", "expected a recording that libsndfile reads"),
        ("cut.flac", "cut", ""),
    ],
)
def test_what_is_no_recording_is_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, np.ndarray):
        soundfile.write(path, content, RATE, subtype="FLOAT")
    elif content == "folder":
        path.mkdir()
    elif content == "cut":
        soundfile.write(path, tone(RATE), RATE)
        path.write_bytes(path.read_bytes()[: 30 if name == "cut.wav" else 9000])
    with pytest.raises(InputError) as error:
        read_audio(path, RATE)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_wav_that_lost_its_end_is_heard_as_far_as_it_goes(tmp_path):
    """Its header promises more; libsndfile tells what is there, as after a recorder that was switched off."""
    soundfile.write(tmp_path / "cut.wav", tone(RATE), RATE)
    content = (tmp_path / "cut.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(content[: len(content) // 2])
    assert len(read_audio(tmp_path / "cut.wav", RATE)) == pytest.approx(0.75 * RATE, abs=100)


# ------------------------------------------------------------------------------------------------------ the microphone


def test_without_sounddevice_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(InputError, match=r"--mic needs sounddevice .*pip install 'sousa-jax\[mic\]'"), microphone():
        pass


class FakeDevice:
    """A microphone that hears three pieces at once when it is opened."""

    def __init__(self, callback, **settings):
        self.callback, self.settings = callback, settings

    def __enter__(self):
        for i in range(3):
            self.callback(np.full((self.settings["blocksize"], 1), i, np.float32), None, None, None)

    def __exit__(self, *_):
        pass


def fake_sounddevice(**attributes):
    return types.SimpleNamespace(
        PortAudioError=type("PortAudioError", (Exception,), {}),
        query_devices=lambda kind: {"default_samplerate": 44_100.0},
        **attributes,
    )


def test_a_microphone_is_heard_in_short_pieces(monkeypatch):
    """A stand-in for the device: no microphone was at hand."""
    monkeypatch.setitem(sys.modules, "sounddevice", fake_sounddevice(InputStream=FakeDevice))
    with microphone() as (rate_hz, pieces):
        heard = [next(pieces) for _ in range(3)]
    assert rate_hz == 44_100
    assert [piece.shape for piece in heard] == [(round(recording.MICROPHONE_BLOCK_S * 44_100),)] * 3
    assert [piece[0] for piece in heard] == [0, 1, 2]


def test_a_microphone_that_cannot_be_used_is_one_line(monkeypatch):
    sounddevice = fake_sounddevice()

    def refuse(**settings):
        raise sounddevice.PortAudioError("Error opening\nInputStream")

    sounddevice.InputStream = refuse
    monkeypatch.setitem(sys.modules, "sounddevice", sounddevice)
    with pytest.raises(InputError, match="the microphone cannot be used: Error opening InputStream"), microphone():
        pass
