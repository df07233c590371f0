"""An onset detector that owes nothing to this project: librosa's rise in level, and peaks of it."""

import librosa
import numpy as np
import scipy.ndimage
import scipy.signal


def onset_times(wave: np.ndarray, rate: int, hop: int, *, delta: float, wait_s: float, **rise) -> np.ndarray:
    """Seconds of the peaks that stand `delta` of the highest one above the mean of 0.1 s to either side.

    `librosa.onset.onset_detect` picks them much so, in code that numba compiles; beside JAX in one process that crashed
    now and then, with a segmentation fault.
    """
    x = librosa.onset.onset_strength(y=wave, sr=rate, hop_length=hop, n_fft=512, **rise)
    x = (x - x.min()) / np.ptp(x)
    mean = scipy.ndimage.uniform_filter1d(x, 1 + 2 * round(0.1 * rate / hop), mode="nearest")
    frames, _ = scipy.signal.find_peaks(x - mean, height=delta, distance=max(1, round(wait_s * rate / hop)))
    return frames * hop / rate
