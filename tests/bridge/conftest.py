"""The bridge's tests need PyTorch and coremltools; without them they are skipped, in CI they must run."""

import importlib.util
import os

import pytest

MISSING = [name for name in ("torch", "coremltools") if importlib.util.find_spec(name) is None]


class WithoutBridge(pytest.Module):
    def collect(self):
        pytest.skip(f"the bridge needs {' and '.join(MISSING)}: pip install -e '.[bridge]'", allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    if MISSING and not os.environ.get("CI"):
        return WithoutBridge.from_parent(parent, path=module_path)
    return None
