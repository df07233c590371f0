"""The bridge's tests need PyTorch and coremltools; without them they are skipped, in CI they must run."""

import os

import pytest

if not os.environ.get("CI"):
    for package in ("torch", "coremltools"):
        pytest.importorskip(package, reason=f"the bridge needs {package}: pip install -e '.[bridge]'")
