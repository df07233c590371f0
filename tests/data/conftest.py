"""Fixtures of the data layer's tests."""

import pathlib

import pytest
from small_sousa import rows, write_hub


@pytest.fixture(scope="session", autouse=True)
def datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Arrow copies go to a temporary folder, not into the user's cache."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    datasets.disable_progress_bars()


@pytest.fixture
def small_hub(tmp_path: pathlib.Path) -> pathlib.Path:
    """Hub layout: train has 30 clips of 15 performances in shards of 10, 14 and 6 rows; validation and test have 4."""
    train = rows("train", 15)
    return write_hub(
        tmp_path / "small",
        {
            "train": [train[:10], train[10:24], train[24:]],
            "validation": [rows("validation", 2)],
            "test": [rows("test", 2)],
        },
    )
