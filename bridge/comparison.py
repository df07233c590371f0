"""How two of those who hear the same clips differ, and what of that is allowed."""

import dataclasses
from typing import Any

import numpy as np

from bridge.listeners import Heard
from sousa_jax.rudiments import SLUGS


@dataclasses.dataclass(frozen=True)
class Limits:
    """What is allowed.

    error: largest of any logit or stroke probability; None: any. agreement: least share of clips with the same name.
    confidence: largest mean difference of a clip's highest probability.
    """

    error: float | None
    agreement: float
    confidence: float


# Of the normalized spectrogram, in every package: it stays in float32.
LOG_MEL_LIMIT = 1e-4


class Comparison:
    """How two of those who hear differ, over all clips.

    Args:
      name: of whom.
      limits: what is allowed.
      temperature: by which logits are divided before they are read as probabilities.
      centred: logits are known but for a constant.
    """

    def __init__(self, name: str, limits: Limits, temperature: float = 1.0, *, centred: bool = False):
        self.name, self.limits, self._temperature, self._centred = name, limits, temperature, centred
        self.n_clips = self._agree = 0
        self._sum = self._confidence = 0.0
        self.max_error = 0.0
        self.strokes_error: float | None = None
        self.log_mel_error: float | None = None

    def add(self, expected: Heard, found: Heard) -> None:
        """Counts a clip."""
        pair = [heard.logits - heard.logits.mean() if self._centred else heard.logits for heard in (expected, found)]
        error = np.abs(pair[1] - pair[0])
        self.n_clips += 1
        self._agree += name_of(expected) == name_of(found)
        self.max_error = _larger(self.max_error, error.max())
        self._sum += float(error.mean())
        self._confidence += abs(self._highest(pair[1]) - self._highest(pair[0]))
        if expected.strokes is not None and found.strokes is not None:
            self.strokes_error = _larger(self.strokes_error, np.abs(found.strokes - expected.strokes).max())
        if expected.log_mel is not None and found.log_mel is not None:
            self.log_mel_error = _larger(self.log_mel_error, np.abs(found.log_mel - expected.log_mel).max())

    def _highest(self, logits: np.ndarray) -> float:
        """The highest probability."""
        return float(1 / np.exp((logits - logits.max()) / self._temperature).sum())

    @property
    def agreement(self) -> float:
        return self._agree / self.n_clips

    def problems(self) -> list[str]:
        """What is beyond the limits, one line each. NaN is within none."""
        found = []
        if self.limits.error is not None and not self.max_error <= self.limits.error:
            found.append(f"a logit differs by {self.max_error:.2g}, allowed is {self.limits.error:g}")
        if self.limits.error is not None and not (self.strokes_error or 0.0) <= self.limits.error:
            found.append(f"a stroke probability differs by {self.strokes_error:.2g}, allowed is {self.limits.error:g}")
        if not self.agreement >= self.limits.agreement:
            found.append(f"{self.agreement:.2%} of the clips get the same name, at least {self.limits.agreement:.1%}")
        if not self._confidence / self.n_clips <= self.limits.confidence:
            mean = self._confidence / self.n_clips
            found.append(f"the highest probability differs by {mean:.2g}, allowed is {self.limits.confidence:g}")
        if self.log_mel_error is not None and not self.log_mel_error <= LOG_MEL_LIMIT:
            found.append(f"the spectrogram differs by {self.log_mel_error:.2g}, allowed is {LOG_MEL_LIMIT:g}")
        return found

    def to_json(self) -> dict[str, Any]:
        return {
            "compared": self.name,
            "n_clips": self.n_clips,
            "logits": {"max_abs_error": self.max_error, "mean_abs_error": self._sum / self.n_clips},
            "top1_agreement": self.agreement,
            "mean_confidence_error": self._confidence / self.n_clips,
            "strokes_max_abs_error": self.strokes_error,
            "log_mel_max_abs_error": self.log_mel_error,
            "allowed": dataclasses.asdict(self.limits) | {"log_mel": LOG_MEL_LIMIT},
            "problems": self.problems(),
        }


def _larger(before: float | None, error: float) -> float:
    """The larger one, NaN above all."""
    return float(error) if before is None else float(np.maximum(before, error))


def name_of(heard: Heard) -> str:
    """The rudiment: as a classifier names it, else by the highest logit."""
    return SLUGS[int(heard.logits.argmax())] if heard.label is None else heard.label
