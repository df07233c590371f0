"""Reading what training frameworks wrote: weights and settings come out, nothing else is looked at or run."""

import argparse
import collections
import os
import sys
import types

import numpy as np
import pytest
import torch

from ports import checkpoints
from sousa_jax.errors import InputError


@pytest.fixture
def lightning(monkeypatch):
    """Two classes that pickle under the names of PyTorch Lightning's, which is not installed."""
    classes = {}
    for name, bases in (("callbacks.ModelCheckpoint", (object,)), ("utilities.parsing.AttributeDict", (dict,))):
        module = types.ModuleType("pytorch_lightning." + name.rsplit(".", 1)[0])
        cls = type(name.rsplit(".", 1)[1], bases, {"__module__": module.__name__})
        setattr(module, cls.__name__, cls)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        classes[cls.__name__] = cls
    for name in ("pytorch_lightning", "pytorch_lightning.utilities"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    return classes


@pytest.mark.parametrize("zipped", [True, False])
def test_a_lightning_checkpoint_with_all_its_luggage(lightning, tmp_path, monkeypatch, zipped):
    callback = lightning["ModelCheckpoint"]()
    callback.best_model_score = torch.ones(1)
    content = {
        "epoch": 3,
        "callbacks": {lightning["ModelCheckpoint"]: {"best": np.float64(0.47), "callback": callback}},
        "hyper_parameters": lightning["AttributeDict"](lr=1e-3, args=argparse.Namespace(seed=1), order=np.arange(3)),
        "state_dict": collections.OrderedDict({"sed_model.bn0.weight": torch.arange(3.0)}),
    }
    file = tmp_path / "l-epoch=3.ckpt"
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    for name in [name for name in sys.modules if name.startswith("pytorch_lightning")]:
        monkeypatch.delitem(sys.modules, name)  # the reader has no Lightning
    read = checkpoints.read(file)
    assert list(read.state) == ["sed_model.bn0.weight"]
    np.testing.assert_array_equal(read.state["sed_model.bn0.weight"], [0, 1, 2])
    assert not [name for name in sys.modules if name.startswith("pytorch_lightning")]


class Attack:
    def __reduce__(self):
        return os.mkdir, (os.environ["ATTACKED"],)


def test_code_among_the_luggage_is_refused(lightning, tmp_path, monkeypatch):
    monkeypatch.setenv("ATTACKED", str(tmp_path / "attacked"))
    content = {
        "hyper_parameters": lightning["AttributeDict"](bait=1, attack=Attack()),
        "state_dict": {"sed_model.bn0.weight": torch.ones(3)},
    }
    torch.save(content, tmp_path / "evil.ckpt")
    with pytest.raises(InputError, match=r"holds \w+\.mkdir, not only tensors: refused, nothing in it was run"):
        checkpoints.read(tmp_path / "evil.ckpt")
    assert not (tmp_path / "attacked").exists()


def test_settings_beside_the_weights(tmp_path):
    """BEATs' container."""
    cfg = {"encoder_layers": 12, "deep_norm": True, "activation_fn": "gelu", "dropout": 0.0}
    torch.save({"cfg": cfg, "model": {"a": torch.ones(2)}, "label_dict": {0: "/m/0"}}, tmp_path / "beats.pt")
    read = checkpoints.read(tmp_path / "beats.pt")
    assert read.cfg == cfg
    assert list(read.state) == ["a"]
    torch.save({"a": torch.ones(2)}, tmp_path / "bare.pt")
    assert checkpoints.read(tmp_path / "bare.pt").cfg == {}
