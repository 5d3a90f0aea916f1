"""Real folders of small pictures, made anew for each test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from data_pictures import save_pictures

from hfgen.data import DataConfig


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """20 RGB pictures of 16 x 16 in one folder."""
    save_pictures(tmp_path / "pictures", 20)
    return tmp_path / "pictures"


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., DataConfig]:
    """A ``data`` section whose caches are thrown away with the test."""

    def make(path: object = "mnist", **options) -> DataConfig:
        return DataConfig(path=str(path), cache_dir=str(tmp_path / "cache"), **options)

    return make


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory) -> str:
    """One cache for the bundled sets, which are decoded once for all tests."""
    return str(tmp_path_factory.mktemp("bundled"))
