"""A small interpreter of ML Programs: what a `.mlpackage` means, computed from its files, on any machine.

    program = mil.read("Student.mlpackage")
    outputs = mil.Evaluator(program)({"audioSamples": samples})

The package is read from disk (specification and weights) and evaluated operation by operation, in the order of the
file, with the weights as they are stored. What an operation computes stands in `bridge.mil_operations`; one that is
not there is an error, never skipped, and so is a result that has not the shape which the program declares.

Half precision is emulated at the boundaries of operations: what the program declares as fp16 is rounded to the nearest
fp16, inside an operation everything is float32. Hardware may add up in fp16, in another order, or flush what is
subnormal to zero, which the second way of rounding does.

So this proves what the file says. It does not prove what Apple's compiler, the GPU, the Neural Engine or SoundAnalysis
make of it; only Core ML on a device does.

Source of the format: coremltools `mlmodel/format/MIL.proto`, `Model.proto`.
"""

import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from bridge.mil_operations import OPERATIONS
from bridge.mil_values import Blobs, TensorType, from_message
from sousa_jax.errors import InputError

SMALLEST_NORMAL = 2.0**-14  # of fp16


class Name(NamedTuple):
    """An argument that is another operation's result, or an input of the program."""

    name: str


class Result(NamedTuple):
    """An output of an operation. Its type is None where that is no tensor: a classifier's dictionary."""

    name: str
    type: TensorType | None


class Operation(NamedTuple):
    """One operation. An argument is a `Name`, a value, or a list of these."""

    kind: str
    arguments: dict[str, Any]
    results: list[Result]


class Program(NamedTuple):
    """A package's ML Program.

    inputs: names and types. outputs: names of the results that it returns. metadata: what its writer noted
    (`userDefined`). labels: a classifier's classes in order, `[]` of anything else.
    """

    inputs: dict[str, TensorType]
    operations: list[Operation]
    outputs: list[str]
    metadata: dict[str, str]
    labels: list[str]


def read(package: str | os.PathLike) -> Program:
    """Reads a package.

    `InputError` if there is none, if it is damaged or no ML Program, or if it has several functions.
    """
    import coremltools

    package = pathlib.Path(package)
    if not (package / "Manifest.json").is_file():
        raise InputError(f"{package} is no Core ML package: expected a folder with a Manifest.json (X.mlpackage)")
    try:
        spec = coremltools.utils.load_spec(str(package))
    except Exception as error:  # protobuf's and the C++ reader's own
        problem = (str(error).splitlines() or [repr(error)])[0]
        raise InputError(f"{package} cannot be read: {problem}") from error
    if spec.WhichOneof("Type") != "mlProgram":
        raise InputError(f"{package} holds a {spec.WhichOneof('Type')}, expected an ML Program; convert it anew")
    functions = spec.mlProgram.functions
    if list(functions) != ["main"]:
        raise InputError(f"{package} has the functions {sorted(functions)}, expected just main")
    (main,) = functions.values()
    block = main.block_specializations[main.opset]
    blobs = Blobs(package / "Data" / "com.apple.CoreML" / "weights")
    operations = [_operation(message, blobs) for message in block.operations]
    labels = next((operation.arguments["classes"] for operation in operations if operation.kind == "classify"), [])
    return Program(
        {message.name: TensorType.of(message.type) for message in main.inputs},
        operations,
        list(block.outputs),
        dict(spec.description.metadata.userDefined),
        list(labels),
    )


def _operation(message: Any, blobs: Blobs) -> Operation:
    if message.blocks:
        raise InputError(f"the program has control flow ({message.type}), which is not known here")
    arguments = {key: from_message(value, blobs) for key, value in message.attributes.items() if key != "name"}
    for key, argument in message.inputs.items():
        values = [
            Name(binding.name) if binding.WhichOneof("binding") == "name" else from_message(binding.value, blobs)
            for binding in argument.arguments
        ]
        arguments[key] = values if key == "values" else values[0]
    return Operation(message.type, arguments, [Result(o.name, TensorType.of(o.type)) for o in message.outputs])


class Evaluator:
    """Computes a program.

    Args:
      program: as read.
      flush_subnormals: what fp16 can only hold with fewer digits, below 2⁻¹⁴, becomes zero, as on some hardware.

    Raises:
      InputError: an operation that is not known.
    """

    def __init__(self, program: Program, *, flush_subnormals: bool = False):
        self._program, self._flush = program, flush_subnormals
        unknown = {operation.kind for operation in program.operations} - OPERATIONS.keys() - {"const"}
        if unknown:
            raise InputError(f"the program has operations that bridge/mil_operations.py does not know: {unknown}")
        self._constants: dict[str, Any] = {}
        self._steps: list[Operation] = []
        for operation in program.operations:
            if operation.kind == "const":
                (result,) = operation.results
                self._constants[result.name] = self._stored(operation.arguments["val"], result.type)
            elif operation.kind.startswith("constexpr_"):
                self._run(operation, self._constants)
            else:
                self._steps.append(operation)
        self._last_use = {name: i for i, step in enumerate(self._steps) for name in _names(step)}

    def __call__(
        self, inputs: dict[str, np.ndarray], see: Callable[[Result, Any], None] | None = None
    ) -> dict[str, Any]:
        """The program's outputs by name: arrays (fp16 as float32), of a classifier also a `str` and a dictionary.

        `see` is called with every result on the way.

        Raises:
          InputError: inputs of other names or shapes.
          ValueError: an operation failed, or gave what the program does not declare; names the operation.
        """
        values = dict(self._constants)
        if inputs.keys() != self._program.inputs.keys():
            raise InputError(f"the program takes {sorted(self._program.inputs)}, not {sorted(inputs)}")
        for name, kind in self._program.inputs.items():
            if not kind.fits(np.shape(inputs[name])):
                raise InputError(f"the program's input {name} is {kind}, not {np.shape(inputs[name])}")
            values[name] = self._rounded(np.asarray(inputs[name]), kind)
        for i, step in enumerate(self._steps):
            self._run(step, values)
            if see is not None:
                for result in step.results:
                    see(result, values[result.name])
            for name in _names(step):
                if self._last_use[name] == i and name not in self._program.outputs:
                    del values[name]
        return {name: values[name] for name in self._program.outputs}

    def _run(self, operation: Operation, values: dict[str, Any]) -> None:
        """Adds an operation's results to the values."""
        arguments = {
            key: [_value(part, values) for part in argument] if key == "values" else _value(argument, values)
            for key, argument in operation.arguments.items()
        }
        where = f"{operation.kind} ({operation.results[0].name})"
        try:
            with np.errstate(all="ignore"):  # as on the device, where nobody is told of an overflow
                found = OPERATIONS[operation.kind](**arguments)
        except Exception as error:
            raise ValueError(f"{where} cannot be evaluated: {error}") from error
        found = found if isinstance(found, tuple) else (found,)
        for result, value in zip(operation.results, found, strict=True):
            if result.type is not None and result.type.data.name != "string":
                if not result.type.fits(np.shape(value)):
                    raise ValueError(f"{where} gave {np.shape(value)}, the program declares {result.type}")
                value = self._rounded(np.asarray(value), result.type)
            values[result.name] = value

    def _stored(self, value: Any, kind: TensorType) -> Any:
        """A constant: fp16 as float32."""
        return self._rounded(value, kind) if isinstance(value, np.ndarray) else value

    def _rounded(self, x: np.ndarray, kind: TensorType) -> np.ndarray:
        """To the declared type. What is fp16 is kept as float32 that fp16 can hold."""
        if kind.data.dtype is not np.float16:
            return x.astype(kind.data.dtype, copy=False)
        half = torch.from_numpy(np.ascontiguousarray(x, np.float32)).half()  # NumPy's is six times slower
        rounded = half.float().numpy().reshape(x.shape)
        return np.where(np.abs(rounded) < SMALLEST_NORMAL, np.float32(0), rounded) if self._flush else rounded


def _value(argument: Any, values: dict[str, Any]) -> Any:
    return values[argument.name] if isinstance(argument, Name) else argument


def _names(operation: Operation) -> set[str]:
    """What an operation reads."""
    parts = [part for argument in operation.arguments.values() for part in _parts(argument)]
    return {part.name for part in parts if isinstance(part, Name)}


def _parts(argument: Any) -> list[Any]:
    return argument if isinstance(argument, list) else [argument]
