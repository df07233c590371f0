"""Which clips calibrate, and that folding and 8-bit activations change little."""

import collections

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import HEAR_STROKES, clips, drawn_model, mn

from bridge import quantize, to_torch
from sousa_jax.errors import InputError
from sousa_jax.rudiments import NUM_CLASSES

TIERS = ("beginner", "intermediate", "advanced", "professional")


def table(counts):
    """Clips in random order, so many of each pair of class and tier."""
    rows = [pair for pair, count in counts.items() for _ in range(count)]
    order = np.random.default_rng(0).permutation(len(rows))
    return pd.DataFrame([rows[i] for i in order], columns=["label", "skill_tier"])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.integers(160, 400))
def test_calibration_covers_all_classes_and_tiers(seed, count):
    rng = np.random.default_rng(seed)
    counts = {(label, tier): int(rng.integers(1, 9)) for label in range(NUM_CLASSES) for tier in TIERS}
    clips = table(counts)
    rows = quantize.calibration_rows(clips, count, rng)
    assert len(rows) == len(set(rows)) == min(count, len(clips))
    found = collections.Counter(zip(clips.label[rows], clips.skill_tier[rows], strict=True))
    # As even as the clips allow: nobody has two more than another that had some left.
    most = max(found.values())
    assert all(found[pair] >= min(most - 1, counts[pair]) for pair in counts)


def test_calibration_refuses_what_covers_nothing():
    whole = table({(label, tier): 1 for label in range(NUM_CLASSES) for tier in TIERS})
    with pytest.raises(InputError, match="159 clips cannot cover 160 pairs"):
        quantize.calibration_rows(whole, 159, np.random.default_rng(0))
    with pytest.raises(InputError, match="1 of the 40 classes"):
        quantize.calibration_rows(whole[whole.label > 0], 500, np.random.default_rng(0))


@pytest.fixture(scope="module")
def model():
    return drawn_model("efficientat", mn(window_s=1.0))


def test_folding_batch_norm_changes_nothing(model):
    twin = to_torch.listener(model)
    folded = quantize.folded(twin.network)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    log_mel = twin.frontend(torch.from_numpy(clips(model.config.frontend)[0]))
    with torch.inference_mode():
        torch.testing.assert_close(folded(log_mel), twin.network(log_mel), rtol=1e-4, atol=1e-4)


def test_8_bit_activations_follow_the_network(model):
    windows = clips(model.config.frontend)
    twin = to_torch.listener(model)
    small = quantize.with_8_bit_activations(twin, windows)
    with torch.inference_mode():
        exact, rough = (np.concatenate([net(torch.from_numpy(x)) for x in windows]) for net in (twin, small))
    assert not np.array_equal(exact, rough)
    # Random weights are a hard case: what all clips have in common is large, and takes most of the 256 steps.
    assert np.corrcoef(exact.ravel(), rough.ravel())[0, 1] > 0.8


def test_what_tells_strokes_is_left_exact():
    """Eight bits of the pyramid's running sums cost more names than nearly all other layers together."""
    model = drawn_model("efficientat", mn(window_s=1.0, **HEAR_STROKES))
    twin = to_torch.listener(model)
    small = quantize.with_8_bit_activations(twin, clips(model.config.frontend)).network
    for name in ("pyramid", "strokes", "rhythm"):
        before, after = (dict(getattr(network, name).named_modules()) for network in (twin.network, small))
        assert {path: type(module) for path, module in after.items()} == {
            path: type(module) for path, module in before.items()
        }
        for path, weight in getattr(twin.network, name).named_parameters():
            assert torch.equal(getattr(small, name).get_parameter(path), weight)
    assert any("quantized" in type(module).__module__ for module in small.features.modules()), "the rest is in 8 bits"
