"""The audit finds what it is for: float 32, gathers, dilated convolutions."""

import coremltools as ct
import numpy as np
import pytest

from bridge import audit
from sousa_jax.errors import InputError

mb = ct.converters.mil.Builder


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 4, 1, 16))], opset_version=ct.target.iOS17)
    def program(x):
        weight = np.ones((4, 4, 1, 3), np.float32)
        x = mb.conv(x=x, weight=weight, pad_type="same", name="plain")
        x = mb.conv(x=x, weight=weight, pad_type="same", dilations=[1, 2], name="dilated")
        x = mb.gather(x=x, indices=np.array([2, 1], np.int32), axis=3, name="picked")
        return mb.reshape(x=x, shape=[8], name="flat")

    package = ct.convert(program, minimum_deployment_target=ct.target.iOS17, skip_model_load=True)
    path = tmp_path_factory.mktemp("audit") / "A.mlpackage"
    package.save(str(path))
    return {op.name: op for op in audit.operations(path)}


@pytest.mark.parametrize(
    ("name", "remark"),
    [
        ("plain", ""),
        ("dilated", "may leave: dilated conv (hollance)"),
        ("picked", "may leave: gather (hollance)"),
        ("flat", "leaves: float 32 (typed)"),
    ],
)
def test_remarks(found, name, remark):
    """Names are kept but for the casts at the ends."""
    (op,) = (op for op in found.values() if op.name.startswith(name) and (name != "flat" or op.precision == "float32"))
    assert op.remark == remark


def test_every_operation_has_a_line_and_is_counted(found):
    lines = audit.report(list(found.values())).splitlines()
    assert lines.index("") == len(found)
    assert f"{len(found)} operations" in lines[-1]


def test_what_is_no_package_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read as a Core ML package"):
        audit.operations(tmp_path)
