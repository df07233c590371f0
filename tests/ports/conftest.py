"""Official checkpoints for the port's tests, in the released files' own form, with synthetic weights."""

import sys

import numpy as np
import pytest


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


@pytest.fixture
def official_state(fixture_code):
    """`official_state("mn01_as", seed)`: the same checkpoint as a dictionary that a test may spoil."""

    def state(section, seed=0):
        return {key: np.array(value) for key, value in fixture_code[0].arrays("efficientat", section, seed)[0].items()}

    return state


@pytest.fixture
def save(tmp_path):
    """`save(state, name)`: writes a state dict as the released files are."""
    import torch

    def write(state, name="mn01_as_mAP_298.pt"):
        path = tmp_path / name
        torch.save({key: torch.from_numpy(np.array(value)) for key, value in state.items()}, path)
        return path

    return write


@pytest.fixture
def run(capsys):
    """`run(main, flags)`: `(exit code, stdout, stderr)` of a program's main."""

    def call(main, *flags):
        code = 0
        try:
            main([str(flag) for flag in flags])
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return call
