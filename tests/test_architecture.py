"""The arrows between packages, and what the core may not load."""

import ast
import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ("sousa_jax", "ports", "bridge", "configs", "benchmarks")


def _imports(path: pathlib.Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("package", PACKAGES)
def test_arrows_point_one_way(package):
    forbidden = {
        "sousa_jax": {"torch", "coremltools", "transformers", "ports", "bridge", "configs", "benchmarks"},
        "ports": {"bridge", "coremltools", "benchmarks"},
        "bridge": {"benchmarks"},
        "configs": {"torch", "ports", "bridge", "benchmarks"},
        "benchmarks": set(),
    }[package]
    for path in (ROOT / package).rglob("*.py"):
        assert not _imports(path) & forbidden, path


def test_core_loads_no_torch():
    """Every module of sousa_jax, imported in a fresh interpreter, leaves torch and coremltools unloaded."""
    modules = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "sousa_jax").rglob("*.py")
    )
    code = (
        "import importlib, json, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(json.dumps([m for m in ('torch', 'coremltools', 'transformers') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_no_file_is_too_long():
    """Small drawers: 500 lines are the limit of the house."""
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            assert len(path.read_text("utf-8").splitlines()) <= 500, path
