"""EfficientAT's frontend as slices and matrix products on real numbers, to lie inside an exported graph.

The twin of `sousa_jax.frontends` for the kind `efficientat`, in evaluation. It must stay in float32: mel powers span
more than half precision holds, from 1e-5 in silence, which is flushed to zero there, to over 65,504 in a loud clip.
"""

import dataclasses
import math

import numpy as np
import torch
from torch import nn

from sousa_jax.errors import InputError
from sousa_jax.frontends import FrontendSpec, analysis_window, mel_bank

# Settings in which a spec may differ from EfficientAT's; the strokes model uses this freedom.
_FREE = (
    "sample_rate", "n_fft", "win_length", "hop_length", "n_mels", "fmin_hz", "fmax_hz", "fmin_jitter_hz",
    "fmax_jitter_hz", "log_offset", "mean", "std", "window_s",
)  # fmt: skip


class LogMel(nn.Module):
    """Samples `(n_samples,)` float32 → normalized log-mel spectrogram `(1, 1, n_mels, n_frames)`.

    The Fourier transform's constants are most of a small network's file; two folds leave a third of them, and of its
    products. A power spectrum does not see a shift of its frame, and the window is symmetric: taken around its centre,
    a frame's cosines see only the sum of its halves, its sines only their difference. Of these 2 · quarter samples the
    far half is the near one's mirror image to every even bin, and minus that to every odd one, or the other way round.
    Bins that no mel band reads are left out.

    Raises `InputError` for a spec of another kind.
    """

    def __init__(self, spec: FrontendSpec):
        super().__init__()
        refuse_other_kinds(spec)
        self.hop, self.half, self.quarter = spec.hop_length, spec.win_length // 2, spec.n_fft // 4
        self.n_frames = spec.n_frames(spec.window_samples)
        self.block = math.gcd(self.hop, self.half)
        self.log_offset, self.mean, self.std = spec.log_offset, spec.mean, spec.std
        bank = mel_bank(spec)  # (n_fft / 2, n_mels)
        heard = np.flatnonzero(bank.any(1))
        bins = np.arange(heard[0], heard[-1] + 1)
        taps = np.arange(self.quarter) + 0.5  # distance from the centre, in samples
        for name, of in (("even", bins[bins % 2 == 0]), ("odd", bins[bins % 2 == 1])):
            angle = 2 * np.pi / spec.n_fft * np.outer(taps, of)
            for table, values in ((f"{name}_cosines", np.cos(angle)), (f"{name}_sines", np.sin(angle))):
                self._keep(table, values)  # (quarter, bins)
            self._keep(f"{name}_bank", bank[of].T)  # (n_mels, bins)
        self._keep("window", analysis_window(spec)[self.half :])

    def _keep(self, name: str, table: np.ndarray) -> None:
        self.register_buffer(name, torch.tensor(table, dtype=torch.float32), persistent=False)

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        x = samples.reshape(1, 1, 1, -1)
        x = x[..., 1:] - 0.97 * x[..., :-1]
        x = nn.functional.pad(x, (self.half, self.half, 0, 0), mode="reflect")
        before, after = self._halves(x)
        near_sum, far_sum = self._fold((after + before) * self.window)
        near_difference, far_difference = self._fold((after - before) * self.window)
        even = _power(
            (near_sum + far_sum).matmul(self.even_cosines), (near_difference - far_difference).matmul(self.even_sines)
        )
        odd = _power(
            (near_sum - far_sum).matmul(self.odd_cosines), (near_difference + far_difference).matmul(self.odd_sines)
        )
        log_mel = torch.log(self.even_bank.matmul(even) + self.odd_bank.matmul(odd) + self.log_offset)
        return (log_mel - self.mean) / self.std

    def _fold(self, half: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Half frames `(1, 1, T, half)`, from the centre outwards, as the part within `quarter` of the centre and the
        part beyond, backwards: `(1, 1, T, quarter)` each, zero where the window is over."""
        half = nn.functional.pad(half, (0, 2 * self.quarter - self.half))
        return half[..., : self.quarter], half[..., self.quarter :].flip(-1)

    def _halves(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The half frame before each centre, backwards in time, and the one after it: `(1, 1, n_frames, half)`.

        Put together of whole blocks, because strided slices are in every runtime, and framing is not.
        """
        per_hop, per_half = self.hop // self.block, self.half // self.block
        span = (self.n_frames - 1) * per_hop + 1
        n_blocks = span - 1 + 2 * per_half
        blocks = x[..., : n_blocks * self.block].reshape(1, 1, n_blocks, self.block)
        starts = [blocks[:, :, i : i + span : per_hop] for i in range(2 * per_half)]
        return torch.cat(starts[:per_half], -1).flip(-1), torch.cat(starts[per_half:], -1)


def _power(real: torch.Tensor, imaginary: torch.Tensor) -> torch.Tensor:
    """`(1, 1, T, bins)` to `(1, 1, bins, T)`."""
    return (real.square() + imaginary.square()).transpose(2, 3)


def refuse_other_kinds(spec: FrontendSpec) -> None:
    """`InputError` unless `LogMel` can do what the spec says."""
    like = dataclasses.replace(FrontendSpec(), **{name: getattr(spec, name) for name in _FREE})
    for field in dataclasses.fields(spec):
        found, expected = getattr(spec, field.name), getattr(like, field.name)
        if found != expected:
            raise InputError(
                f"the frontend has {field.name} {found!r}; bridge/ has a twin only of EfficientAT's, with {expected!r}"
            )
    if spec.win_length % 2:
        raise InputError(
            f"the frontend's window has {spec.win_length} samples; bridge/ folds it, expected an even number"
        )
    if spec.n_fft % 4 or spec.win_length > spec.n_fft:
        raise InputError(
            f"the frontend has n_fft {spec.n_fft} and a window of {spec.win_length}; bridge/ folds it, expected a "
            "multiple of 4 and no longer window"
        )
