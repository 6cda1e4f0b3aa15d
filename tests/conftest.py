"""Fixtures shared by the tests: the toy Wan folder, written once per test process."""

from pathlib import Path

import pytest
import torch

from models.flowrvs import FlowRVS
from models.toy import write_toy_wan
from models.weights import load_flowrvs

torch.set_num_threads(1)  # test processes share two cores


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
