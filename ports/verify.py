"""Replays reference activations of an official model through our port of its checkpoint.

    python -m ports.verify --model=efficientat --checkpoint=FILE.pt --golden=golden_seed0.npz

Prints for every stored tensor the largest absolute error, plain and as a fraction of the spread (the
standard deviation of the difference between the two clips): once with the stored frontend output as
input, once from the waveform. Exit code 1 if one is beyond tolerance, 2 if an input is unusable.

Every tensor is judged both ways, the frontend's own output by a tolerance of its own: its largest errors sit in
near-silent bins, where the reference's float32 Fourier transform has few correct digits itself.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np

from ports import golden, synthetic
from ports.port import PORTS, Ported, port
from sousa_jax.errors import InputError, one_line_errors
from sousa_jax.frontends import spectrogram

# How an error can arise: from the stored features or from the waveform through the network, or in the frontend.
KINDS = ("stored", "waveform", "frontend")
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Row:
    """Largest absolute errors of one tensor, by kind. One that is missing: not compared that way."""

    name: str
    spread: float
    errors: dict[str, float]

    def fraction(self, kind: str) -> float | None:
        """An error as a fraction of the spread."""
        error = self.errors.get(kind)
        return None if error is None else error / self.spread if self.spread else (np.inf if error else 0.0)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=PORTS, required=True)
    parser.add_argument("--checkpoint", required=True, help="official file: .pt, .pth, .ckpt or .safetensors")
    parser.add_argument("--golden", required=True, help="reference activations (.npz)")
    parser.add_argument("--variant", help="as in mn10_hop_5, where neither shapes nor file name tell it")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="that the network computes in")
    for kind in KINDS:
        parser.add_argument(f"--tolerance_{kind}", type=float, help="fraction of the spread; default: the model's")
    args = parser.parse_args(argv)
    given = {kind: getattr(args, f"tolerance_{kind}") for kind in KINDS}
    ours = PORTS[args.model]
    usual = ours.TOLERANCES | (dict.fromkeys(KINDS[:2], ours.TOLERANCE_BFLOAT16) if args.dtype == "bfloat16" else {})
    tolerances = {kind: usual[kind] if given[kind] is None else given[kind] for kind in KINDS}
    with one_line_errors():
        passed = verify(args.model, args.checkpoint, args.golden, tolerances, args.variant, args.dtype)
        sys.exit(0 if passed else 1)


def verify(
    model: str,
    file: str,
    golden_file: str,
    tolerances: dict[str, float],
    variant: str | None = None,
    dtype: str = "float32",
) -> bool:
    """Prints the table and a closing line; whether every error is within tolerance."""
    ours, reference = PORTS[model], golden.read(golden_file, model)
    ported = port(model, file, variant=variant)
    section, exact = ours.section(reference, ported.checkpoint, ported.config)
    print(f"{model} {ported.variant} from {file}\nconfig   {ported.evidence}\n{ported.report}")
    print(
        f"golden   {golden_file}, seed {reference.seed}, {f'section {section}' if section else 'one section'}: "
        + ("the fingerprint says these very weights" if exact else "chosen by size, THE WEIGHTS ARE NOT THE SAME")
    )
    print(f"\n{'':28s}{'':>11s}{'max-abs error':>22s}{'fraction of spread':>24s}")
    print(f"{'tensor':28s}{'spread':>11s}{'stored':>11s}{'waveform':>11s}{'stored':>13s}{'waveform':>11s}")
    rows = []
    with jax.default_matmul_precision("highest"):
        for row in replay(ours, ported, reference, section, dtype):
            rows.append(row)
            kinds = ("stored", "frontend" if "frontend" in row.errors else "waveform")
            errors = [row.errors.get(kind) for kind in kinds] + [row.fraction(kind) for kind in kinds]
            cells = ["-" if error is None else f"{error:.1e}" for error in errors]
            print(f"{row.name:28s}{row.spread:11.3g}{cells[0]:>11s}{cells[1]:>11s}{cells[2]:>13s}{cells[3]:>11s}")
    return _closing_line(rows, tolerances)


def replay(
    ours: ModuleType, ported: Ported, reference: golden.Golden, section: str, dtype: str = "float32"
) -> Iterator[Row]:
    """One row a stored tensor: the frontend first, then what the network makes of it, run by run."""
    spec = ported.config.frontend
    if reference.sample_rate != spec.sample_rate:
        raise InputError(f"the golden file is at {reference.sample_rate} Hz, the model at {spec.sample_rate} Hz")
    runs = list(ours.replays(ported.config, reference, section))
    if not any(run.outputs for run in runs):
        raise InputError(f"{reference.path} holds nothing of section {section}")
    for run in runs:
        clips = run.clips(synthetic.test_batch(reference.seed, spec.sample_rate, run.n_samples, batch=2))
        features = jax.jit(spectrogram, static_argnums=1)(clips, run.frontend)
        if run.stored is not None:
            error = run.stored.error(np.asarray(features.swapaxes(1, 2) if run.stored.frames_first else features))
            yield Row(run.stored.name, run.stored.spread, {"frontend": error})
        if not run.outputs:
            continue
        inputs = {"waveform": features} if run.features is None else {"stored": run.features, "waveform": features}
        given = {
            kind: run.network(ported.params, ported.stats, jnp.asarray(value, dtype)) for kind, value in inputs.items()
        }
        if unknown := sorted(run.outputs.keys() - given["waveform"].keys()):
            raise InputError(f"{reference.path} holds {', '.join(unknown)}, which {ours.__name__} does not give")
        for name, tensor in run.outputs.items():
            yield Row(tensor.name, tensor.spread, {kind: tensor.error(np.asarray(given[kind][name])) for kind in given})


def _closing_line(rows: list[Row], tolerances: dict[str, float]) -> bool:
    parts, passed = [], True
    for which, tolerance in tolerances.items():
        judged = [row for row in rows if row.fraction(which) is not None]
        # NaN is the worst of all, and within no tolerance.
        worst = max(judged, key=lambda row: np.nan_to_num(row.fraction(which), nan=np.inf), default=None)
        if worst is None:
            parts.append(f"{which}: nothing to judge")
            continue
        passed &= bool(worst.fraction(which) <= tolerance)
        parts.append(f"from {which} {worst.fraction(which):.1e} at {worst.name} (allowed {tolerance:.0e})")
    print(f"\n{'PASSED' if passed else 'FAILED'}: worst fraction of the spread {', '.join(parts)}")
    return passed


if __name__ == "__main__":
    main()
