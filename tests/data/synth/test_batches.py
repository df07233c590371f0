"""Batches made on the device: reproducible without state, cut by the length policy, labelled stroke by stroke."""

import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sousa_jax.data.clips import trim_tail
from sousa_jax.data.synth import Source, SynthBatches
from sousa_jax.data.synth.batches import _sounding
from sousa_jax.data.synth.strokes import BUZZ, GRACE, Strokes
from sousa_jax.data.synth.targets import around_the_loop, frame_targets
from sousa_jax.errors import InputError

RATE = 8_000
SHAPE = dict(sample_rate=RATE, window_s=3.0, seed=4, strokes_per_second=100)


@pytest.fixture(scope="module")
def batches() -> list[tuple[dict, dict]]:
    """Two batches of eight."""
    made = SynthBatches(Source(), batch_size=8, **SHAPE)
    return [jax.device_get(next(made)) for _ in range(2)]


def test_shapes(batches):
    for batch, _ in batches:
        assert batch["waveform"].shape == (8, 3 * RATE)
        assert batch["waveform"].dtype == np.float32
        assert batch["label"].shape == (8,)
        assert batch["label"].dtype == np.int32
        assert np.isfinite(batch["waveform"]).all()
        assert (np.abs(batch["waveform"]).max(1) > 0.05).all()
    assert batches[1][1] == {"sample": 16}


def test_no_clip_comes_twice(batches):
    waves = np.concatenate([batch["waveform"] for batch, _ in batches])
    assert len({wave.tobytes() for wave in waves}) == 16


def test_a_run_resumes_where_it_stopped(batches):
    resumed = SynthBatches(Source(), batch_size=8, position={"sample": 8}, **SHAPE)
    batch = jax.device_get(next(resumed)[0])
    jax.tree.map(np.testing.assert_array_equal, batch, batches[1][0])


def test_the_batch_size_does_not_change_the_rows(batches):
    whole = jax.device_get(next(SynthBatches(Source(), batch_size=16, **SHAPE))[0])
    for name in ("label", "tier", "tempo_bpm"):
        np.testing.assert_array_equal(whole[name], np.concatenate([b[name] for b, _ in batches]))
    waves = np.concatenate([batch["waveform"] for batch, _ in batches])
    np.testing.assert_allclose(whole["waveform"], waves, atol=1e-5)


def test_forty_rows_hold_every_class_once():
    made = SynthBatches(Source(), batch_size=40, sample_rate=RATE, window_s=0.1, seed=0)
    for _ in range(2):
        batch, _ = next(made)
        assert sorted(np.asarray(batch["label"])) == list(range(40))
        assert "stroke_targets" not in batch, "only if asked for"


def test_strokes_are_where_the_sound_begins(batches):
    """The loudest stroke of a clip lies where its level jumps, in looped clips too."""
    hop = RATE // 200
    rises = []
    for batch, _ in batches:
        for wave, *columns in zip(batch["waveform"], *batch["strokes"], strict=True):
            strokes = Strokes(*columns)
            assert strokes.valid.any()
            level = np.sqrt((wave.reshape(-1, hop) ** 2).mean(1))
            for time_s in strokes.time_s[strokes.valid & (strokes.velocity > 100)]:
                frame = int(time_s * 200)
                if 4 <= frame < len(level) - 4:
                    rises.append(level[frame : frame + 3].max() / (level[frame - 3 : frame].min() + 1e-4))
    assert len(rises) > 50
    assert np.median(rises) > 2


def test_endless_clips_are_full_of_strokes():
    made = SynthBatches(Source("mixed", 0, 3.0), batch_size=16, **SHAPE)
    strokes = jax.device_get(next(made)[0]["strokes"])
    last = np.where(strokes.valid, strokes.time_s, 0).max(1)
    assert (last > 0.6).all()
    assert np.median(last) > 2
    assert strokes.time_s[strokes.valid].max() < 3


# ------------------------------------------------------------------------------------------------------- without sound


def silent(source, n=1, **changes):
    """The first batches without sound."""
    made = SynthBatches(source, sound=False, **{"batch_size": 8, **SHAPE, **changes})
    return [jax.device_get(next(made)) for _ in range(n)]


def test_performances_without_sound_are_those_that_would_sound(batches):
    """The same players play the same; only where a short clip goes round nobody can know how long it would ring."""
    for (quiet, position), (loud, same) in zip(silent(Source(), 2), batches, strict=True):
        assert position == same
        assert set(loud) - set(quiet) == {"waveform"}
        for name in ("label", "tier", "tempo_bpm"):
            np.testing.assert_array_equal(quiet[name], loud[name])
        loops = 0
        for row in range(8):
            times = [np.sort(b["strokes"].time_s[row][b["strokes"].valid[row]]) for b in (quiet, loud)]
            onsets = [b["stroke_targets"].onset[row].sum() for b in (quiet, loud)]
            if len(times[0]) == len(times[1]) and np.allclose(*times, atol=1e-5):
                assert onsets[0] == onsets[1]
            else:
                loops += 1
                assert onsets[0] == pytest.approx(onsets[1], rel=0.5, abs=3)
        assert loops < 8


def test_endless_performances_are_equal_with_sound_and_without():
    """They never go round: every stroke and every target is the same."""
    source = Source("mixed", 0, 3.0)
    ((quiet, _),) = silent(source, batch_size=16)
    loud = jax.device_get(next(SynthBatches(source, batch_size=16, **SHAPE))[0])
    for part in ("strokes", "stroke_targets"):
        for name, ours, theirs in zip(quiet[part]._fields, quiet[part], loud[part], strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5, err_msg=name)


def test_short_clips_without_sound_fill_the_window():
    """They go round as the loud ones do: of a class that is played in a second, too, the last stroke is late."""
    ((quiet, _),) = silent(Source(), batch_size=16)
    last_s = np.where(quiet["strokes"].valid, quiet["strokes"].time_s, 0).max(1)
    assert last_s.min() > 1.5
    assert last_s.max() < 3


def test_a_silent_run_resumes_whatever_the_batch_size():
    (_, position), (second, _) = silent(Source(), 2)
    ((resumed, _),) = silent(Source(), position=position)
    ((whole, _),) = silent(Source(), batch_size=16)
    jax.tree.map(np.testing.assert_array_equal, resumed, second)
    for name in ("label", "tier"):
        np.testing.assert_array_equal(whole[name][8:], second[name])
    for ours, theirs in zip(whole["stroke_targets"], second["stroke_targets"], strict=True):
        assert (np.abs(ours[8:] - theirs) > 1e-5).mean() < 0.002, "but for strokes on the edge of a frame"


def test_each_device_makes_its_own_rows():
    """Four devices give what one gives. In a process of its own: devices are counted when JAX starts."""
    program = f"""
        import jax, numpy as np
        from sousa_jax.data.synth import Source, SynthBatches
        from sousa_jax.devices import Layout
        from sousa_jax.errors import InputError
        layout = Layout()
        assert layout.rows.num_devices == 4
        shape = dict(batch_size=8, sample_rate={RATE}, window_s=0.5, seed=0)
        batch, _ = next(SynthBatches(Source(), layout=layout, **shape))
        assert all(leaf.sharding.is_equivalent_to(layout.rows, leaf.ndim) for leaf in jax.tree.leaves(batch))
        alone, _ = next(SynthBatches(Source(), **shape))
        for name in ("label", "tier", "tempo_bpm"):
            np.testing.assert_array_equal(batch[name], alone[name])
        np.testing.assert_allclose(batch["waveform"], alone["waveform"], atol=1e-3)
        try:
            SynthBatches(Source(), layout=layout, **shape | dict(batch_size=6))
        except InputError as error:
            assert "a batch of 6 rows does not divide among 4 devices" in str(error)
        else:
            raise AssertionError("six rows among four devices")
        """
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, env=os.environ | flags, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_bad_arguments_are_refused():
    for bad in ({"batch_size": 0}, {"window_s": 0.0}, {"window_s": -1.0}, {"sample_rate": 100}, {"split": "val"}):
        with pytest.raises(InputError) as error:
            next(SynthBatches(Source(), **{"batch_size": 4, "sample_rate": RATE, "window_s": 1.0, "seed": 0} | bad))
        assert "\n" not in str(error.value)


def test_the_silent_tail_is_cut_as_on_the_host():
    rng = np.random.default_rng(0)
    for end in (1_000, 7_777, 23_990):
        wave = np.zeros(3 * RATE, np.float32)
        wave[:end] = rng.standard_normal(end) * np.linspace(1, 0.02, end)
        ours = int(_sounding(jnp.asarray(wave), RATE))
        assert abs(ours - len(trim_tail(wave, RATE))) <= RATE // 100  # the host also drops digital silence in a frame


# ------------------------------------------------------------------------------------------------------- frame targets


def hand_made(*rows: tuple[float, float, bool]) -> Strokes:
    """Strokes from (time, velocity, is_grace)."""
    time_s, velocity, grace = (np.array(column) for column in zip(*rows, strict=True))
    n, zero = len(rows), np.zeros(len(rows), np.int32)
    return Strokes(
        time_s.astype(np.float32), time_s.astype(np.float32), velocity.astype(np.float32), velocity, zero,
        np.where(grace, GRACE, zero), grace, zero, np.full(n, -1), np.ones(n, bool),
    )  # fmt: skip


def test_frames_name_the_strokes_in_them():
    strokes = hand_made((0.0, 127, False), (0.101, 40, True), (0.104, 80, False), (0.2, 60, True), (5.0, 127, False))
    targets = frame_targets(strokes, 30, 100)
    np.testing.assert_array_equal(np.flatnonzero(targets.onset), [0, 10, 20])
    np.testing.assert_allclose(targets.velocity[jnp.array([0, 10, 20])], np.array([127, 80, 60]) / 127, rtol=1e-6)
    np.testing.assert_array_equal(targets.grace[jnp.array([0, 10, 20])], [0, 0, 1])  # the hardest in a frame counts
    assert targets.onset.shape == targets.velocity.shape == targets.grace.shape == (30,)


def test_the_bounces_of_a_buzz_are_heard_as_density_alone():
    strokes = hand_made((0.1, 60, False), (0.103, 100, True), (0.106, 50, True), (0.2, 60, True))
    bounced = strokes._replace(kind=np.array([BUZZ, BUZZ, BUZZ, GRACE]))
    targets = frame_targets(bounced, 30, 100)
    np.testing.assert_array_equal(np.flatnonzero(targets.onset), [10, 20])
    np.testing.assert_array_equal(np.flatnonzero(targets.grace), [20])
    assert targets.velocity[10] == pytest.approx(60 / 127)
    np.testing.assert_allclose(targets.density[jnp.array([9, 10, 15, 20])], np.array([3, 3, 0, 1]) / 20, rtol=1e-6)


def test_batches_carry_the_targets_of_their_strokes(batches):
    batch, _ = batches[0]
    for column in batch["stroke_targets"]:
        assert column.shape == (8, 300)
        assert column.dtype == np.float32
    for row in range(8):
        strokes = Strokes(*(column[row] for column in batch["strokes"]))
        counted = strokes.valid & (~strokes.is_grace | (strokes.kind == GRACE))
        frames = np.unique(np.round(strokes.time_s[counted] * np.float32(100)))
        np.testing.assert_array_equal(np.flatnonzero(batch["stroke_targets"].onset[row]), frames[frames < 300])


def test_strokes_go_round_with_a_short_clip():
    strokes = hand_made((0.1, 100, False), (0.6, 50, False))
    looped = around_the_loop(strokes, start_s=0.5, length_s=1.0, window_s=2.2, max_rounds=4)
    np.testing.assert_allclose(np.sort(looped.time_s[looped.valid]), [0.1, 0.6, 1.1, 1.6, 2.1], atol=1e-6)
