"""Writes an official PyTorch checkpoint as a model folder of ours.

    python -m ports.convert --model=efficientat --checkpoint=mn10_as_mAP_471.pt --out=DIR
    python -m ports.convert --model=beats --download --out=DIR

By default the body is kept and the class layer is replaced by a fresh one for the 40 rudiments;
`--num_classes=527`, the file's own number, keeps all of it.
"""

import argparse
import dataclasses
import pathlib
from typing import Any

from ports import sources
from ports.port import PORTS, Ported, port
from sousa_jax import checkpoint, rudiments
from sousa_jax.errors import InputError, one_line_errors


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=PORTS, required=True)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--checkpoint", help="official file: .pt, .pth, .ckpt or .safetensors")
    where.add_argument(
        "--download",
        nargs="?",
        const="",
        metavar="NAME",
        help=f"official file to fetch into {sources.CACHE}, by its name in ports/sources.toml; none: the model's first",
    )
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder to write; must not exist")
    parser.add_argument("--variant", help="as in mn10_hop_5, where neither shapes nor file name tell it")
    parser.add_argument(
        "--num_classes", type=int, default=rudiments.NUM_CLASSES, help="other than the file's: fresh class layer"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the fresh class layer")
    args = parser.parse_args(argv)
    with one_line_errors():
        file = args.checkpoint or sources.download(args.model, args.download)
        convert(args.model, file, args.out, args.variant, args.num_classes, args.seed)


def convert(
    model: str, file: str | pathlib.Path, out: pathlib.Path, variant: str | None, num_classes: int, seed: int
) -> None:
    """Reads, ports, writes and prints the report. `InputError` leaves nothing behind."""
    if num_classes < 1:
        raise InputError(f"--num_classes={num_classes} must be at least 1")
    ported = port(model, file, variant=variant, num_classes=num_classes, seed=seed)
    try:
        checkpoint.save_model(
            out, checkpoint.Model(model, ported.config, ported.params, ported.stats, provenance(model, ported))
        )
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}") from error
    print(f"{model} {ported.variant} from {file}\nconfig   {ported.evidence}\n{ported.report}\nwritten  {out}")


def provenance(model: str, ported: Ported) -> dict[str, Any]:
    """What a model folder records of its origin."""
    source = sources.source_of(model, ported.checkpoint.path.name, ported.checkpoint.sha256)
    report = dataclasses.asdict(ported.report)
    return {
        "file": ported.checkpoint.path.name,
        "sha256": report.pop("sha256"),
        "variant": ported.variant,
        "evidence": ported.evidence,
        **({"source": source} if source else {}),
        "report": report,
    }


if __name__ == "__main__":
    main()
