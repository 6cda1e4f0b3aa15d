"""Devices and number formats; a GPU of a Mac by what the programs would ask of one, since there is none here."""

import argparse

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.flow import sigma_schedule
from util.device import select_device, select_dtype
from util.errors import UserError
from util.flags import device_name
from util.memory import return_gpu_memory
from util.stopwatch import Stopwatch

MPS = torch.device("mps")


@pytest.fixture
def mac(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


@pytest.mark.parametrize("text", ["auto", "cpu", "cuda", "cuda:1", "mps"])
def test_devices_that_exist_somewhere_are_flags(text):
    assert device_name(text) == text


@pytest.mark.parametrize("text", ["mps:0", "metal", "cuda:", "gpu", ""])
def test_others_are_not(text):
    with pytest.raises(argparse.ArgumentTypeError, match="must be auto, cpu, cuda, cuda:N or mps"):
        device_name(text)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="a Mac")
def test_mps_is_refused_where_there_is_none():
    with pytest.raises(UserError, match=r"--device mps: .*use cpu or auto"):
        select_device("mps")


def test_auto_takes_cuda_then_mps_then_the_cpu(mac, monkeypatch):
    assert select_device("auto") == select_device("mps") == MPS
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert select_device("auto").type == "cuda"
    monkeypatch.undo()
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        assert select_device("auto").type == "cpu"


def test_auto_is_bf16_on_mps_if_torch_can_make_such_a_tensor_there(monkeypatch):
    for failure in (None, TypeError, RuntimeError):

        def zeros(*_, dtype, device, failure=failure):
            assert (dtype, device) == (torch.bfloat16, MPS)
            if failure:
                raise failure("BFloat16 is not supported on MPS")

        monkeypatch.setattr(torch, "zeros", zeros)
        assert select_dtype("auto", MPS) == (torch.float32 if failure else torch.bfloat16)
    assert select_dtype("fp32", MPS) == torch.float32


def test_time_and_memory_are_those_of_the_gpu_of_a_mac(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: calls.append("synchronize"))
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: calls.append("empty_cache"))
    with Stopwatch(MPS).stage("text"):
        pass
    return_gpu_memory(MPS)
    return_gpu_memory(torch.device("cpu"))
    assert calls == ["synchronize", "empty_cache"]


class _NoDoubles(TorchDispatchMode):
    """Refuses every operation that makes a float64 tensor: MPS has none."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        doubles = [
            leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float64
        ]
        assert not doubles, f"{func} makes float64"
        return result


@pytest.mark.parametrize("num_steps", [1, 2])
def test_segmenting_makes_no_float64_but_the_schedule_which_arrives_as_float32(toy_pipeline, monkeypatch, num_steps):
    schedule = sigma_schedule(num_steps)
    assert schedule.dtype == torch.float32
    monkeypatch.setattr("models.flowrvs.sigma_schedule", lambda _: schedule)
    frames = torch.randint(256, (9, 3, 64, 96), dtype=torch.uint8)
    with _NoDoubles():
        result = toy_pipeline(frames, ["a dog", "a cat"], num_steps=num_steps, window=5)
        assert result.masks.shape == (2, 9, 64, 96)


def test_the_networks_hold_no_float64(toy_pipeline):
    for network in (toy_pipeline.transformer, toy_pipeline.vae, toy_pipeline.text_encoder):
        assert torch.float64 not in {tensor.dtype for tensor in [*network.parameters(), *network.buffers()]}
