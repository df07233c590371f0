"""The test clips are the fixture's, bit for bit."""

import numpy as np
import pytest

from ports import synthetic


@pytest.mark.parametrize(
    ("seed", "sample_rate", "num_samples"),
    [(0, 32_000, 48_000), (1, 32_000, 83_200), (7, 16_000, 9_999), (3, 8_000, 1)],
)
def test_equals_the_fixtures_rule(fixture_code, seed, sample_rate, num_samples):
    theirs = fixture_code[1].test_batch(seed, sample_rate, num_samples, batch=3)
    np.testing.assert_array_equal(synthetic.test_batch(seed, sample_rate, num_samples, batch=3), theirs)


def test_clips_are_16_bit_audio():
    clips = synthetic.test_batch(0, 16_000, 16_000, batch=2)
    assert clips.shape == (2, 16_000)
    assert clips.dtype == np.float32
    assert np.abs(clips).max() <= 1.0
    np.testing.assert_array_equal(clips * 32768, np.round(clips * 32768))
    assert clips[0, -1000:].any()
    assert not clips[1, -1000:].any()  # odd clips end in silence
