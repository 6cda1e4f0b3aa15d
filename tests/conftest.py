"""Fixtures shared by the tests: the toy Wan folder, written once per test process."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from datasets.toy import write_toy_mevis
from models.flowrvs import FlowRVS
from models.toy_wan import write_toy_wan
from models.weights import load_flowrvs

torch.set_num_threads(1)  # test processes share two cores


@pytest.fixture(autouse=True, scope="session")
def cache_of_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test, and no program that it starts, reads or writes the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wan") / "toy"
    write_toy_wan(folder)
    return folder


@pytest.fixture(scope="session")
def toy_pipeline(toy_folder: Path) -> FlowRVS:
    """The toy model, read-only: tests that change weights load their own."""
    pipeline = load_flowrvs(str(toy_folder)).pipeline
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def pipeline(toy_folder: Path) -> FlowRVS:
    """A toy model that the test may change."""
    return load_flowrvs(str(toy_folder)).pipeline


@pytest.fixture(scope="session")
def small_toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy MeViS of three training videos, read-only."""
    root = tmp_path_factory.mktemp("data") / "toy"
    write_toy_mevis(root, 5, num_train=3, num_valid_u=1, num_valid=1)
    return root
