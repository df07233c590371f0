"""The bridge's tests need PyTorch; those of packages ask for coremltools themselves."""

import pytest

pytest.importorskip("torch", reason="the bridge needs PyTorch: pip install -e '.[bridge]'")
