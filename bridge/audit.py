"""What a Core ML package computes, in which precision, and what is known to leave Apple's Neural Engine.

    python bridge/audit.py RudimentClassifier.mlpackage

Nothing here was seen on a device: which unit runs an operation is Core ML's own decision (Xcode's performance report
shows it). The reasons are other people's:

    typed        the Neural Engine takes float 16 alone; float 32 goes to the GPU or CPU
                 https://apple.github.io/coremltools/docs-guides/source/typed-execution.html
    hollance     layers seen to fall back: recurrent ones, gather, dilated convolutions, custom ones; "some of these are
                 guesses", and of 2020
                 https://github.com/hollance/neural-engine/blob/master/docs/unsupported-layers.md
    transformers layout (batch, channels, 1, sequence), few reshapes and transposes, which copy memory
                 https://machinelearning.apple.com/research/neural-engine-transformers
"""

import argparse
import collections
import pathlib
import sys
from typing import NamedTuple

if __package__ in (None, ""):  # run as a file: the packages lie beside its folder
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from sousa_jax.errors import InputError, one_line_errors

FALLS_BACK = {"gather", "gather_along_axis", "gather_nd", "lstm", "gru", "rnn", "while_loop", "custom_layer"}
COPIES = {"reshape", "transpose", "expand_dims", "squeeze", "reverse"}
ELSEWHERE = {"classify": "no tensor operation: Core ML makes the dictionary of it on the CPU"}


class Operation(NamedTuple):
    """One operation of a program. shape: of its first output. dilated: a convolution that leaves samples out."""

    name: str
    type: str
    precision: str
    shape: tuple[int, ...]
    dilated: bool

    @property
    def remark(self) -> str:
        """Why it is known to leave the Neural Engine, or to cost there; `""` if nothing is known."""
        if self.type in ELSEWHERE:
            return ELSEWHERE[self.type]
        if self.precision == "float32":
            return "leaves: float 32 (typed)"
        if self.type in FALLS_BACK or self.dilated:
            return f"may leave: {'dilated ' if self.dilated else ''}{self.type} (hollance)"
        if self.type in COPIES:
            return "copies memory (transformers)"
        return ""


def operations(package: pathlib.Path) -> list[Operation]:
    """Every operation of a package but constants, in order. `InputError` if it is no ML program."""
    import coremltools as ct

    try:
        spec = ct.models.MLModel(str(package), skip_model_load=True).get_spec()
        function = spec.mlProgram.functions["main"]
    except Exception as error:  # coremltools raises bare ones
        raise InputError(f"{package} cannot be read as a Core ML package: {error}") from error
    block = function.block_specializations[function.opset]
    values = {op.outputs[0].name: op.attributes["val"] for op in block.operations if op.type == "const"}
    return [_operation(op, values) for op in block.operations if op.type != "const"]


def _operation(op, constants) -> Operation:
    import coremltools as ct

    output = op.outputs[0]
    tensor = output.type.tensorType
    shape = tuple(dimension.constant.size for dimension in tensor.dimensions)
    precision = ct.proto.MIL_pb2.DataType.Name(tensor.dataType).lower()
    dilated = False
    if op.type == "conv" and "dilations" in op.inputs:
        dilations = constants[op.inputs["dilations"].arguments[0].name].immediateValue.tensor.ints.values
        dilated = any(value > 1 for value in dilations)
    return Operation(output.name, op.type, precision, shape, dilated)


def report(found: list[Operation]) -> str:
    """A line for every operation, then how many of each kind there are, and how many are known to leave."""
    lines = [
        f"{op.type:28}{op.precision:10}{' '.join(map(str, op.shape)):>20}  {op.remark or 'stays, as far as is known'}"
        for op in found
    ]
    counts = collections.Counter((op.type, op.precision, op.remark) for op in found)
    lines.append("")
    for (kind, precision, remark), count in sorted(counts.items()):
        lines.append(f"{count:5} {kind:28}{precision:10}{remark}")
    leaving = sum(op.remark.startswith(("leaves", "may leave")) for op in found)
    lines.append(f"{len(found)} operations, {leaving} of them known or reported to leave the Neural Engine")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=pathlib.Path)
    args = parser.parse_args(argv)
    with one_line_errors():
        if not args.package.is_dir():
            raise InputError(f"{args.package} is not there; expected a package that bridge/to_coreml.py wrote")
        print(report(operations(args.package)))


if __name__ == "__main__":
    main()
