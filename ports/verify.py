"""Replays reference activations of an official model through our port of its checkpoint.

    python -m ports.verify --model=efficientat --checkpoint=FILE.pt --golden=golden_seed0.npz

Prints for every stored tensor the largest absolute error, plain and as a fraction of the spread (the
standard deviation of the difference between the two clips): once with the stored frontend output as
input, once from the waveform. Exit code 1 if one is beyond tolerance, 2 if an input is unusable.

Every tensor is judged both ways. From the waveform the feature maps come nearest to the limit: the largest error
among their thousands of values follows the rounding of a single near-silent bin in the reference itself.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from types import ModuleType

import jax
import numpy as np

from ports import golden, synthetic
from ports.port import PORTS, Ported, port
from sousa_jax.errors import InputError, one_line_errors
from sousa_jax.frontends import spectrogram


@dataclasses.dataclass(frozen=True)
class Row:
    """Errors of one tensor. None: this tensor is not compared that way."""

    name: str
    spread: float
    stored: float | None
    waveform: float | None

    def fraction(self, which: str) -> float | None:
        """The error `stored` or `waveform` as a fraction of the spread."""
        error = getattr(self, which)
        return None if error is None else error / self.spread if self.spread else (np.inf if error else 0.0)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=PORTS, required=True)
    parser.add_argument("--checkpoint", required=True, help="official file: .pt, .pth, .ckpt or .safetensors")
    parser.add_argument("--golden", required=True, help="reference activations (.npz)")
    parser.add_argument("--variant", help="as in mn10_hop_5, where neither shapes nor file name tell it")
    parser.add_argument("--tolerance_stored", type=float, help="fraction of the spread; default: the model's")
    parser.add_argument("--tolerance_waveform", type=float, help="fraction of the spread; default: the model's")
    args = parser.parse_args(argv)
    ours = PORTS[args.model]
    tolerances = {
        "stored": ours.TOLERANCE_STORED if args.tolerance_stored is None else args.tolerance_stored,
        "waveform": ours.TOLERANCE_WAVEFORM if args.tolerance_waveform is None else args.tolerance_waveform,
    }
    with one_line_errors():
        passed = verify(args.model, args.checkpoint, args.golden, tolerances, args.variant)
        sys.exit(0 if passed else 1)


def verify(model: str, file: str, golden_file: str, tolerances: dict[str, float], variant: str | None = None) -> bool:
    """Prints the table and a closing line; whether every error is within tolerance."""
    reference = golden.read(golden_file, model)
    ported = port(model, file, variant=variant)
    section, exact = reference.section_of(ported.checkpoint.state, ported.stats, ported.config.num_classes)
    print(f"{model} {ported.variant} from {file}\nconfig   {ported.evidence}\n{ported.report}")
    print(
        f"golden   {golden_file}, seed {reference.seed}, section {section}: "
        + ("the fingerprint says these very weights" if exact else "chosen by size, THE WEIGHTS ARE NOT THE SAME")
    )
    print(f"\n{'':28s}{'':>11s}{'max-abs error':>22s}{'fraction of spread':>24s}")
    print(f"{'tensor':28s}{'spread':>11s}{'stored':>11s}{'waveform':>11s}{'stored':>13s}{'waveform':>11s}")
    rows = []
    with jax.default_matmul_precision("highest"):
        for row in replay(PORTS[model], ported, reference, section):
            rows.append(row)
            errors = [row.stored, row.waveform, row.fraction("stored"), row.fraction("waveform")]
            cells = ["-" if error is None else f"{error:.1e}" for error in errors]
            print(f"{row.name:28s}{row.spread:11.3g}{cells[0]:>11s}{cells[1]:>11s}{cells[2]:>13s}{cells[3]:>11s}")
    return _closing_line(rows, tolerances)


def replay(ours: ModuleType, ported: Ported, reference: golden.Golden, section: str) -> Iterator[Row]:
    """One row a stored tensor: the frontend first, then what the network makes of it, run by run."""
    spec = ported.config.frontend
    if reference.sample_rate != spec.sample_rate:
        raise InputError(f"the golden file is at {reference.sample_rate} Hz, the model at {spec.sample_rate} Hz")
    if not any(reference.outputs(run, section) for run in reference.runs):
        raise InputError(f"{reference.path} holds nothing of section {section}")
    network = ours.activations(ported.config)
    for run in reference.runs:
        stored = reference.reference(f"{run}/frontend")
        clips = synthetic.test_batch(
            reference.seed, spec.sample_rate, reference.clip_samples(run), batch=stored.shape[0]
        )
        features = jax.jit(spectrogram, static_argnums=1)(clips, spec)
        yield Row(stored.name, stored.spread, None, stored.error(np.asarray(features)))
        outputs = reference.outputs(run, section)
        from_waveform = network(ported.params, ported.stats, features)
        from_stored = None
        if stored.stride == 1:  # else the network's input is not there as a whole
            from_stored = network(ported.params, ported.stats, stored.values.reshape(stored.shape))
        if unknown := sorted(outputs.keys() - from_waveform.keys()):
            raise InputError(f"{reference.path} holds {', '.join(unknown)}, which {ours.__name__} does not give")
        for name, tensor in outputs.items():
            error = None if from_stored is None else tensor.error(np.asarray(from_stored[name]))
            yield Row(tensor.name, tensor.spread, error, tensor.error(np.asarray(from_waveform[name])))


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
