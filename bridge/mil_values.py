"""Values of an ML Program as its files store them: protobuf messages and `weights/weight.bin`.

Own code on purpose: what proves a package should not be what wrote it. Of coremltools only the protobuf classes are
used, elsewhere.

Sources: coremltools `mlmodel/format/MIL.proto`; `mlmodel/src/MILBlob/Blob/StorageFormat.hpp` (the layout of
`weight.bin`, format 2: everything little-endian and aligned to 64 bytes).
"""

import pathlib
import struct
from typing import Any, NamedTuple

import numpy as np

from sousa_jax.errors import InputError

SENTINEL = 0xDEADBEEF  # begins the record of every blob


class DataType(NamedTuple):
    """How an element is stored and what it becomes here. `bits` below 8: packed, the first in the lowest bits."""

    name: str
    dtype: np.dtype | type
    bits: int


# By the numbers of MIL.proto's enum DataType.
DATA_TYPES = {
    1: DataType("bool", np.bool_, 8),
    2: DataType("string", object, 0),
    10: DataType("fp16", np.float16, 16),
    11: DataType("fp32", np.float32, 32),
    21: DataType("int8", np.int8, 8),
    22: DataType("int16", np.int16, 16),
    23: DataType("int32", np.int32, 32),
    24: DataType("int64", np.int64, 64),
    25: DataType("int4", np.int8, 4),
    31: DataType("uint8", np.uint8, 8),
    32: DataType("uint16", np.uint16, 16),
    33: DataType("uint32", np.uint32, 32),
    34: DataType("uint64", np.uint64, 64),
    35: DataType("uint4", np.uint8, 4),
    36: DataType("uint2", np.uint8, 2),
    37: DataType("uint1", np.uint8, 1),
    38: DataType("uint6", np.uint8, 6),
    39: DataType("uint3", np.uint8, 3),
}


class TensorType(NamedTuple):
    """Element type and shape; None is a dimension that the program leaves open."""

    data: DataType
    shape: tuple[int | None, ...]

    @classmethod
    def of(cls, message: Any) -> "TensorType | None":
        """Of a `ValueType` message; None for what is no tensor (a classifier's dictionary)."""
        if message.WhichOneof("type") != "tensorType":
            return None
        tensor = message.tensorType
        if tensor.dataType not in DATA_TYPES:
            raise InputError(f"the program has values of MIL data type {tensor.dataType}, which is not known here")
        known = [dimension.WhichOneof("dimension") == "constant" for dimension in tensor.dimensions]
        sizes = zip(known, tensor.dimensions, strict=True)
        return cls(DATA_TYPES[tensor.dataType], tuple(d.constant.size if fixed else None for fixed, d in sizes))

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of this shape is of this type."""
        return len(shape) == len(self.shape) and all(
            want in (None, have) for want, have in zip(self.shape, shape, strict=True)
        )

    def __str__(self) -> str:
        return f"{self.data.name}({', '.join('?' if size is None else str(size) for size in self.shape)})"


class Blobs:
    """The blobs of a `weight.bin`, mapped into memory.

    Raises:
      InputError: from `read`, when there is no such file, or no blob of that size at the offset.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._files: dict[str, np.ndarray] = {}

    def read(self, name: str, offset: int, n_bytes: int) -> bytes:
        """The data of the blob whose record lies at `offset` of the file."""
        if name not in self._files:
            path = self._folder / name
            if not path.is_file():
                raise InputError(f"{path} is missing, and the program has weights in it")
            self._files[name] = np.memmap(path, np.uint8, "r")
        file = self._files[name]
        record = file[offset : offset + 24].tobytes()
        sentinel, _, size, start = struct.unpack("<IIQQ", record) if len(record) == 24 else (0, 0, 0, 0)
        if sentinel != SENTINEL or size != n_bytes or start + size > len(file):
            raise InputError(f"{self._folder / name} holds no blob of {n_bytes} bytes at {offset}: cut off or damaged")
        return file[start : start + size].tobytes()


def unpack_bits(packed: bytes, bits: int, count: int, *, signed: bool = False) -> np.ndarray:
    """`count` numbers of `bits` bits each, the first in the lowest bits of the first byte: `(count,)` uint8 or int8."""
    stream = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")[: count * bits]
    numbers = np.packbits(stream.reshape(count, bits), axis=1, bitorder="little")[:, 0]
    if signed:
        return np.where(numbers >= 1 << (bits - 1), numbers.astype(np.int16) - (1 << bits), numbers).astype(np.int8)
    return numbers


def from_message(message: Any, blobs: Blobs) -> Any:
    """What a `Value` message holds: an array of the stored dtype, a plain `int`, `bool`, `float` or `str` where it has
    no dimensions, or a list.

    `InputError` for kinds of values that no program of ours has.
    """
    if message.WhichOneof("value") == "immediateValue" and message.immediateValue.WhichOneof("value") == "list":
        return [from_message(value, blobs) for value in message.immediateValue.list.values]
    kind = TensorType.of(message.type)
    if kind is None:
        raise InputError(f"the program has a constant of type {message.type.WhichOneof('type')}, not known here")
    name, dtype, bits = kind.data
    count = int(np.prod(kind.shape, dtype=np.int64))
    if message.WhichOneof("value") == "blobFileValue":
        file = message.blobFileValue
        stored = blobs.read(pathlib.PurePosixPath(file.fileName).name, file.offset, -(-count * bits // 8))
    else:
        tensor = message.immediateValue.tensor
        field = tensor.WhichOneof("value")
        stored = getattr(tensor, field).values if field else b""
    if not isinstance(stored, bytes):
        flat = np.array(stored, dtype)
    elif bits < 8:
        flat = unpack_bits(stored, bits, count, signed=name == "int4")
    else:
        flat = np.frombuffer(stored, dtype).copy()  # PyTorch takes no read-only memory
    if flat.size != count:
        raise InputError(f"the program has a constant of {flat.size} elements that should be {kind}")
    return flat.reshape(kind.shape) if kind.shape else flat.item()
