"""Official checkpoints for the port's tests, in the released files' own form, with synthetic weights."""

import numpy as np
import pytest


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
