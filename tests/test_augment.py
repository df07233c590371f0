"""Each augmentation does what its name says and nothing to what it should leave alone."""

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest

from configs import efficientat_scratch
from sousa_jax import augment, contact_sheet
from sousa_jax.errors import InputError
from sousa_jax.frontends import FrontendSpec, spectrogram

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (8, 16, 50))
SPEC = FrontendSpec(n_mels=32)
BATCH = {
    "waveform": 0.1 * jax.random.normal(jax.random.key(2), (4, 8_000)) * jnp.array([[1.0], [0.1], [0.0], [2.0]]),
    "label": jnp.array([3, 0, 39, 7], jnp.int32),
}
OFF = {stage.switch: type(stage.usual)() for stage in augment.STAGES}
USUAL = {stage.switch: stage.usual for stage in augment.STAGES}


def _config(**settings):
    config = efficientat_scratch.get_config("smoke")
    config.augment.noise_snr_db = ()
    config.augment.update(OFF | settings)
    return config


def _augmented(rng=KEY, **settings):
    return augment.features_and_targets(rng, BATCH, 40, SPEC, _config(**settings))


# ------------------------------------------------------------------------------------------------- one by one


def test_noise_is_as_loud_as_asked_beside_each_clip():
    wave = 0.1 * jax.random.normal(KEY, (64, 4_001)) * jnp.geomspace(1e-4, 10, 64)[:, None]
    added = np.asarray(augment.noise(KEY, wave, (20.0, 50.0)) - wave, np.float64)
    ratio = 10 * np.log10(np.mean(np.square(wave), 1) / np.mean(added**2, 1))
    drawn = np.asarray(augment._noise_draws(KEY, 64, (20.0, 50.0))[0])
    np.testing.assert_allclose(ratio, drawn, atol=0.2)  # the difference of float32s knows noise at -50 dB that well
    assert drawn.min() < 25
    assert drawn.max() > 45
    same = augment.noise(KEY, wave, (30, 30))  # as a command line gives them
    ratio = 10 * np.log10(np.mean(np.square(wave), 1) / np.mean(np.square(same - wave), 1))
    np.testing.assert_allclose(ratio, 30, atol=0.02)
    assert same.dtype == wave.dtype == jnp.float32


def test_noise_has_the_colour_that_was_drawn():
    """The slope of each clip's power spectrum above its flat foot, by octaves."""
    n = 2**15
    wave = jnp.ones((32, n))  # its own spectrum is the bin at zero
    power = np.abs(np.fft.rfft(augment.noise(KEY, wave, (0.0, 0.0)) - wave)) ** 2
    octaves = 2 ** np.arange(8, 15)  # 128 and more bins of n / 500 = 65
    level = np.stack([power[:, low : 2 * low].mean(1) for low in octaves[:-1]], 1)
    slope = np.polyfit(np.log2(octaves[:-1]), np.log2(level).T, 1)[0]
    np.testing.assert_allclose(slope, augment._noise_draws(KEY, 32, (0.0, 0.0))[1], atol=0.05)
    assert slope.min() < -1.8
    assert slope.max() > -0.2
    distribution = np.asarray(augment.noise(KEY, wave, (0.0, 0.0)) - wave)[slope.argmax()]
    assert abs(np.mean(distribution**4) / np.mean(distribution**2) ** 2 - 3) < 0.2  # Gaussian


def test_noise_leaves_silence_and_differs_between_clips():
    wave = jnp.ones((3, 1_000)).at[0].set(0.0)
    noisy = np.asarray(augment.noise(KEY, wave, (20.0, 50.0)))
    assert (noisy[0] == 0).all()
    assert np.isfinite(noisy).all()
    assert abs(np.corrcoef(noisy[1], noisy[2])[0, 1]) < 0.5


@pytest.mark.parametrize("wrong", [(20.0,), (50.0, 20.0), (1.0, 2.0, 3.0)])
def test_noise_refuses_what_is_no_range(wrong):
    with pytest.raises(InputError, match=r"noise_snr_db=.* \(lowest, highest\)"):
        augment.noise(KEY, jnp.ones((1, 100)), wrong)


def test_tempo_stretch_moves_an_onset_in_time_only():
    clicks = jnp.zeros((64, 4, 200)).at[:, 2, 100].set(1.0)
    out = np.asarray(augment.tempo_stretch(KEY, clicks, 0.1))
    assert (out[:, [0, 1, 3]] == 0).all()
    place = out[:, 2].argmax(1)
    assert place.min() >= 90
    assert place.max() <= 112  # 100 / 0.9
    assert len(np.unique(place)) > 10


def test_tempo_stretch_of_zero_is_the_identity():
    np.testing.assert_allclose(augment.tempo_stretch(KEY, X, 0.0), X, atol=1e-6)


def test_gain_equals_a_louder_waveform():
    """An offset of the log-mel is what a gain of the waveform does, but for the floor under the logarithm."""
    spec = FrontendSpec()
    wave = jax.random.normal(KEY, (1, 16_000)) * 0.3
    plain = spectrogram(wave, spec)
    shift = augment.gain(jax.random.key(5), plain, 6.0, spec) - plain
    db = float(shift[0, 0, 0] * spec.std * 10 / np.log(10))
    assert abs(db) <= 6
    assert float(jnp.ptp(shift)) < 1e-5
    louder = spectrogram(wave * 10 ** (db / 20), spec)
    well_above = plain > 0  # far from the 1e-5 that is added to the power
    np.testing.assert_allclose((plain + shift)[well_above], louder[well_above], atol=1e-4)


def test_the_equalizer_is_one_curve_for_all_of_a_clip():
    """Straight between five points, within its limits, another for each clip, and the same at all times."""
    spec = FrontendSpec()
    added = np.asarray(augment.equalizer(jax.random.key(5), X, 6.0, spec) - X) * spec.std * 10 / np.log(10)
    np.testing.assert_allclose(added, np.broadcast_to(added[..., :1], added.shape), atol=1e-4)
    curve = added[..., 0]  # (8, 16)
    assert 4 < np.abs(curve).max() <= 6.001
    assert len(np.unique(curve[:, 0])) == 8
    bends = np.abs(np.diff(curve, 2)) > 1e-3  # between them it is straight
    assert bends.any(0).sum() <= 2 * 3


@pytest.mark.parametrize("axis", [1, 2])
def test_masks_cover_whole_stripes_of_bounded_width(axis):
    out = np.asarray(augment.mask(KEY, jnp.ones((200, 16, 50)), axis, 2, 5, FrontendSpec()))
    other = 3 - axis
    assert (out.min(other) == out.max(other)).all()  # a stripe goes through the whole other axis
    covered = (out.max(other) == 0).sum(1)
    assert covered.max() <= 10
    assert covered.max() > 5
    assert covered.min() == 0


def test_masks_in_decibels_are_as_loud_as_the_clip():
    """Zero decibels would be the loudest thing in a spectrogram of HTS-AT's."""
    decibels = jnp.stack([jnp.full((16, 50), -40.0), jnp.full((16, 50), -60.0).at[3, 7].set(-10.0)])
    out = np.asarray(augment.mask(KEY, decibels, 2, 2, 20, FrontendSpec.htsat()))
    assert (out[0] == -40).all()
    covered = (out[1] != decibels[1]).all(0)
    assert covered.any()
    np.testing.assert_allclose(out[1][:, covered], decibels[1].mean(), rtol=1e-6)
    assert [spec.normalized for spec in (FrontendSpec(), FrontendSpec.ast(), FrontendSpec.beats())] == [True] * 3


def test_mixup_mixes_inputs_and_targets_alike():
    targets = jax.nn.one_hot(jnp.arange(8), 8)
    inputs = jnp.broadcast_to(targets[:, :, None], (8, 8, 5))
    mixed, mixed_targets = augment.mixup(KEY, inputs, targets, alpha=0.5)
    np.testing.assert_allclose(mixed[:, :, 0], mixed_targets, atol=1e-6)
    np.testing.assert_allclose(mixed_targets.sum(1), 1.0, rtol=1e-5)
    assert (mixed_targets.argmax(1) == jnp.arange(8)).all()  # the clip itself keeps the larger share


# ------------------------------------------------------------------------------------------------- the pipeline


def test_without_augmentation_it_is_the_frontend_and_smoothed_labels():
    x, targets = _augmented()
    np.testing.assert_array_equal(x, spectrogram(BATCH["waveform"], SPEC))
    assert x.dtype == targets.dtype == jnp.float32
    smoothing = _config().train.label_smoothing
    expected = np.full((4, 40), smoothing / 40)
    expected[np.arange(4), BATCH["label"]] += 1 - smoothing
    np.testing.assert_allclose(targets, expected, atol=1e-6)


def test_the_table_names_every_setting_once():
    settings = _config().augment
    switches = [stage.switch for stage in augment.STAGES]
    widths = {"freq_mask_bins", "time_mask_frames"}  # of stages that another field turns on
    assert sorted(switches) == sorted(set(settings) - widths)
    assert len({stage.key for stage in augment.STAGES}) == len(augment.STAGES)
    for stage in augment.STAGES:
        assert type(stage.usual) is type(settings[stage.switch])
    assert [stage.name for stage in augment.STAGES if stage.apply is None] == ["mel jitter"]


@pytest.mark.parametrize("stage", augment.STAGES, ids=lambda stage: stage.name)
def test_each_stage_alone_changes_something_and_stays_finite(stage):
    x, targets = _augmented(**{stage.switch: stage.usual})
    plain, plain_targets = _augmented()
    assert np.isfinite(x).all()
    assert not np.array_equal(x, plain)
    assert np.array_equal(targets, plain_targets) == (stage.name != "mixup")
    np.testing.assert_allclose(targets.sum(1), 1.0, rtol=1e-5)


def test_stages_draw_from_their_own_keys_as_they_always_did():
    """A run from before a stage was added goes on with the same draws, and one stage does not move another's."""
    keys = jax.random.split(KEY, 6)
    plain, _ = _augmented()
    np.testing.assert_array_equal(_augmented(gain_db=6.0)[0], augment.gain(keys[2], plain, 6.0, SPEC))
    np.testing.assert_array_equal(_augmented(tempo_stretch=0.1)[0], augment.tempo_stretch(keys[1], plain, 0.1))
    np.testing.assert_array_equal(_augmented(mel_jitter=True)[0], spectrogram(BATCH["waveform"], SPEC, rng=keys[0]))
    masked = augment.mask(keys[4], augment.mask(keys[3], plain, 1, 2, 20, SPEC), 2, 2, 30, SPEC)
    np.testing.assert_array_equal(_augmented(freq_masks=2, time_masks=2)[0], masked)
    noisy = augment.noise(augment.stage_key(KEY, augment.STAGES[0]), BATCH["waveform"], (20.0, 50.0))
    noisy = augment.gain(keys[2], spectrogram(noisy, SPEC), 6.0, SPEC)
    np.testing.assert_array_equal(_augmented(noise_snr_db=(20.0, 50.0), gain_db=6.0)[0], noisy)


def test_all_stages_are_a_function_of_the_key():
    step = jax.jit(lambda rng: augment.features_and_targets(rng, BATCH, 40, SPEC, _config(**USUAL)))
    rng = jax.random.key(11)
    for a, b, other in zip(step(rng), step(rng), step(jax.random.fold_in(rng, 1)), strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, other)


# ------------------------------------------------------------------------------------------------- the sheet


def test_sheet_has_a_row_for_every_stage():
    config = _config(**USUAL | {"time_masks": 0})
    rows = contact_sheet.augmented_rows(config, SPEC, BATCH["waveform"], BATCH["label"], seed=0)
    assert [row.title for row in rows] == ["before", *(stage.name for stage in augment.STAGES), "in training"]
    for row in rows[1:]:
        assert row.images.shape == rows[0].images.shape
        assert not np.array_equal(row.images, rows[0].images), row.title
    by_title = {row.title: row for row in rows}
    assert "off in this config" in by_title["time masks"].subtitle
    assert rows[-1].subtitle == "7 of 8 together"
    moved = by_title["gain"].images - rows[0].images
    decibels = moved.mean((1, 2)) * SPEC.std * 10 / np.log(10)
    assert by_title["gain"].notes == [f"{db:+.1f} dB" for db in decibels]
    assert any("%" in note for note in by_title["mixup"].notes)


def test_sheet_of_a_folder_is_a_picture(tmp_path, monkeypatch, capsys, sousa_formats):
    """The whole program, but for the noise that a config file need not have."""
    monkeypatch.setattr(contact_sheet, "_load_config", lambda _: _config(**USUAL))
    data = sousa_formats / "hub"
    contact_sheet.main([f"--plot={tmp_path / 'sheet.png'}", f"--data={data}", "--seed=3"])
    assert capsys.readouterr().out.strip() == str(tmp_path / "sheet.png")
    height, width, _ = matplotlib.image.imread(tmp_path / "sheet.png").shape
    assert 900 < height < 1400
    assert 700 < width < 1800
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--plot=x.jpg"], "ends in .png"),
        (["--plot=nowhere/x.png"], "no folder nowhere"),
        (["--plot=x.png", "--config=nothing.py:smoke"], "no config file 'nothing.py'"),
        (["--plot=x.png", "--seed=-1"], "must not be negative"),
        (["--plot=x.png", "--config=configs/efficientat_scratch.py:huge"], "unknown preset 'huge'"),
        (["--plot=x.png", "--data=nothing_here"], "nothing_here"),
    ],
)
def test_sheet_refuses_in_one_line(args, message, capsys, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    with pytest.raises(SystemExit) as stopped:
        contact_sheet.main(args)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
