"""Fixtures. Material that does not ship with the repository lies beside it in `shared/`; without it
(a user's clone) the tests that need it are skipped with the reason, in CI they must run."""

import os
import pathlib
import shutil
import sys

os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import pytest

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"

# One JAX compile takes seconds: tests of one run, and runs one after another, share them.
jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax"))


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_functions():
    """Hundreds of compiled functions, kept to the end of the run, would take several gigabytes."""
    yield
    jax.clear_caches()


def _shared(name: str) -> pathlib.Path:
    path = SHARED / name
    if not path.exists():
        if os.environ.get("CI"):
            pytest.fail(f"{path} is missing, and in CI it must be there")
        pytest.skip(f"needs {path}, which does not ship with the repository")
    return path


@pytest.fixture(scope="session")
def parity() -> pathlib.Path:
    """Reference activations of the official models."""
    return _shared("parity")


@pytest.fixture(scope="session")
def sousa_mini() -> pathlib.Path:
    """Real SOUSA clips in the Hub's layout: 1,450 / 200 / 400."""
    return _shared("sousa_mini")


@pytest.fixture(scope="session")
def sousa_formats() -> pathlib.Path:
    """Nine clips in the Hub's exact layout (`hub/`) and in the generator's local one (`local/`)."""
    return _shared("sousa_hub_format")


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a browser; where none is installed the tests that need it are skipped, in CI they must run."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("chromium is missing, and in CI it must be there (apt-get install chromium)")
        pytest.skip("needs chromium (apt-get install chromium)")
    return path


@pytest.fixture(scope="session")
def fixture_code(parity):
    """The fixtures' own writer and rule: `(make_checkpoint, synthetic_weights)`."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # the fixtures' folder stays as it is
    sys.path.insert(0, str(parity))
    try:
        import make_checkpoint
        import synthetic_weights
    finally:
        sys.path.remove(str(parity))
        sys.dont_write_bytecode = before
    return make_checkpoint, synthetic_weights


@pytest.fixture(scope="session")
def official_file(fixture_code, tmp_path_factory):
    """`official_file("mn01_as", seed)`: path of a checkpoint as released, written once."""
    folder = tmp_path_factory.mktemp("official")

    def write(section, seed=0):
        path = folder / f"{section}_seed{seed}.pt"
        if not path.exists():
            fixture_code[0].write("efficientat", section, seed, path)
        return path

    return write
