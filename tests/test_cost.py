"""What a run cost is counted once, however often it was interrupted."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sousa_jax import cost
from sousa_jax.frontends import FrontendSpec


@pytest.fixture
def clock(monkeypatch):
    """Seconds that `time.perf_counter` says, to be set by `clock[0]`."""
    now = [100.0]
    monkeypatch.setattr(cost.time, "perf_counter", lambda: now[0])
    return now


def test_seconds_of_several_calls_add_up_without_what_was_lost(tmp_path, clock):
    """Kept at 10 s, killed at 25 s, which is done again: 10 + 20, not 25 + 20."""
    watch = cost.Stopwatch(tmp_path, fresh=True)
    clock[0] += 10
    watch.keep()
    clock[0] += 15
    assert watch.seconds() == 25
    again = cost.Stopwatch(tmp_path, fresh=False)
    assert again.kept == 10
    clock[0] += 20
    again.keep()
    assert again.kept == 30
    assert [path.name for path in tmp_path.iterdir()] == [cost.Stopwatch.NAME]


def test_a_run_that_came_to_nothing_took_no_time(tmp_path, clock):
    watch = cost.Stopwatch(tmp_path, fresh=True)
    clock[0] += 10
    watch.keep()
    assert cost.Stopwatch(tmp_path, fresh=True).kept == 0


def test_a_run_of_before_has_no_seconds(tmp_path):
    assert cost.Stopwatch(tmp_path, fresh=False).kept == 0


def test_multiply_adds_of_a_matrix_product():
    """(1, 300) times (300, 7): 2,100 of them, and nothing else."""
    spec = FrontendSpec(sample_rate=300, window_s=1.0)
    step = jax.jit(lambda params, stats, batch: batch["waveform"] @ params["kernel"])
    params = {"kernel": jnp.zeros((300, 7))}
    assert cost.multiply_adds(step, params, {}, spec) == pytest.approx(2100, rel=0.01)


def test_what_is_no_number_is_null(tmp_path):
    cost.write(tmp_path, multiply_adds=math.nan, parameters=np.int64(3).item(), device="cpu")
    written = json.loads((tmp_path / cost.COST_JSON).read_text())
    assert written == {"multiply_adds": None, "parameters": 3, "device": "cpu"}
