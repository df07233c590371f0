"""Safe reading of official checkpoint files into plain arrays: tensors only, never code."""

import collections
import dataclasses
import hashlib
import pathlib
import pickle
import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from sousa_jax.errors import InputError

# Where files keep their weights, if not at the top: Lightning (HTS-AT), {cfg, model} (BEATs).
_CONTAINERS = ("state_dict", "model")

# What training frameworks leave in a checkpoint beside the weights (Lightning: callbacks, hyperparameters). Nothing of
# it is imported: what has such a name becomes an `_Inert`. Any other name that is no tensor refuses the file.
_FRAMEWORKS = (
    "pytorch_lightning.", "lightning.", "lightning_fabric.", "torchmetrics.", "numpy.", "argparse.Namespace",
    "_codecs.encode",
)  # fmt: skip

# Keys that only one architecture has.
_SIGNATURES = {
    "efficientat": r"features\.\d+\.block\.\d+\.\d+\.weight",
    "EfficientAT's dynamic MobileNets (dymn)": r"layers\.\d+\.(exp_conv|context_gen)\..*",
    "htsat": r"(sed_model\.)?(tscam_conv|layers\.\d+\.blocks\.\d+\.attn)\..*",
    "beats": r"(encoder\.layers\.\d+\.self_attn\.grep_a|post_extract_proj\.weight)",
    "ast": r"((module\.)?v\.(cls_token|dist_token)|audio_spectrogram_transformer\..*)",
}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """An official file. `state`: key to array, as in the file; `sha256`: of the file, hexadecimal; `cfg`: the
    settings that BEATs' files hold beside their weights."""

    path: pathlib.Path
    sha256: str
    state: dict[str, np.ndarray]
    cfg: dict[str, Any] = dataclasses.field(default_factory=dict)


def read(path: str | pathlib.Path) -> Checkpoint:
    """Reads `.pt`, `.pth`, `.ckpt` (only tensors and plain containers) or `.safetensors`.

    `InputError` if the file is missing, truncated, no checkpoint, or a pickle that holds anything with code.
    """
    path = pathlib.Path(path)
    readers = {".pt": _read_torch, ".pth": _read_torch, ".ckpt": _read_torch, ".safetensors": _read_safetensors}
    if path.suffix not in readers:
        raise InputError(f"{path} does not end in {', '.join(readers)}: which format is it?")
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    return Checkpoint(path, sha256, *readers[path.suffix](path))


def looks_like(state: Mapping[str, Any]) -> str | None:
    """The model whose keys these are, None if of none that is known."""
    return next((name for name, key in _SIGNATURES.items() if any(re.fullmatch(key, k) for k in state)), None)


def fingerprint(state: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over keys in alphabetical order and bytes: the weights' identity, whatever the file format."""
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode())
        digest.update(np.ascontiguousarray(state[key]).tobytes())
    return digest.hexdigest()


def _read_torch(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The state dict, and the settings beside it."""
    try:
        import torch
    except ImportError as error:
        raise InputError(f"{path.suffix} files need PyTorch: pip install 'sousa-jax[ports]'") from error
    try:
        content = _unpickled(path)
    except pickle.UnpicklingError as error:
        if match := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise InputError(f"{path} holds {match[1]}, not only tensors: refused, nothing in it was run") from error
        raise InputError(f"{path} is no PyTorch checkpoint, or a pickle that is not safe to load: refused") from error
    except Exception as error:  # torch has no common type for damaged files: EOFError, RuntimeError, KeyError, ...
        raise InputError(f"{path} is truncated or no PyTorch checkpoint ({_first_sentence(error)})") from error
    for candidate in [content] + [content.get(key) for key in _CONTAINERS if isinstance(content, dict)]:
        if isinstance(candidate, dict) and candidate and all(isinstance(v, torch.Tensor) for v in candidate.values()):
            state = {str(key): _to_numpy(path, key, tensor) for key, tensor in candidate.items()}
            cfg = content.get("cfg")
            return state, {str(key): value for key, value in cfg.items()} if isinstance(cfg, dict) else {}
    raise InputError(f"{path} holds no state dict, neither at the top nor under {' or '.join(_CONTAINERS)}")


class _Inert:
    """Stands for something that is not looked at: takes whatever a pickle gives it and keeps nothing."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass


def _unpickled(path: pathlib.Path) -> Any:
    """The file's content by PyTorch's restricted unpickler, which knows tensors and plain containers."""
    import torch

    inert: dict[str, type] = {}
    while True:
        try:
            allowed = [(stand_in, name) for name, stand_in in inert.items()]
            with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # on pickle protocols; what follows says all that matters
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            match = re.search(r"GLOBAL ([\w.]+)", str(error))
            if not match or match[1] in inert or not match[1].startswith(_FRAMEWORKS):
                raise
            # The unpickler names one at a time. It fills dictionaries only if they are of a type that it knows.
            inert[match[1]] = collections.OrderedDict if match[1].endswith("Dict") else _Inert


def _to_numpy(path: pathlib.Path, key: str, tensor: Any) -> np.ndarray:
    try:
        return tensor.detach().numpy()
    except (TypeError, RuntimeError) as error:
        raise InputError(f"{path}: {key} is {tensor.dtype} ({tensor.layout}), expected plain float32") from error


def _read_safetensors(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError as error:
        raise InputError("safetensors files need safetensors: pip install 'sousa-jax[ports]'") from error
    try:
        return load_file(path), {}
    except (SafetensorError, KeyError, TypeError) as error:  # the latter two: a type that NumPy lacks
        raise InputError(f"{path} is truncated or no safetensors file ({_first_sentence(error)})") from error


def _first_sentence(error: Exception) -> str:
    return str(error).strip().split("\n")[0].split(". ")[0] or type(error).__name__
