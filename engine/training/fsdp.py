"""Shards a DiT that does not fit one GPU: each process holds a slice of every weight, gradient and moment.

Each block is sharded on its own (``fully_shard``, FSDP2), so that at most two blocks are whole at a time. Weights are
kept and gathered in float32; autocast rounds them only inside multiplications, as it does without sharding.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer


def shard_network(dit: WanTransformer3DModel, device_type: str) -> None:
    """Shards a DiT over all processes, in place, and moves it to this process's device.

    Args:
        device_type: ``cuda``; tests use ``cpu``.
    """
    mesh = init_device_mesh(device_type, (torch.distributed.get_world_size(),))
    for block in dit.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(dit, mesh=mesh)


def is_sharded(tensors: Iterable[Tensor]) -> bool:
    """Returns whether any of the tensors is sharded."""
    return any(isinstance(tensor, DTensor) for tensor in tensors)


@contextmanager
def no_sync(network: FSDPModule) -> Iterator[None]:
    """Accumulates gradients without sharing them between processes until the block ends.

    ``Accelerator.no_sync`` does this only for networks that accelerate itself has sharded.
    """
    network.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        network.set_requires_gradient_sync(True)


def whole(tensor: Tensor) -> Tensor:
    """Gathers a sharded tensor, on every process; returns any other tensor as it is. Every process must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(tensors: Iterable[tuple[str, Tensor]], keep: bool) -> Iterator[tuple[str, Tensor]]:
    """Gathers named tensors on the CPU, one at a time; every process must iterate over all of them.

    Args:
        keep: yield the gathered tensors; False on processes that only take part.
    """
    for name, tensor in tensors:
        gathered = whole(tensor.detach())
        if keep:
            # A gathered tensor may be a view of a padded one, which safetensors refuses to save.
            yield name, gathered.to("cpu", copy=is_sharded([tensor]), memory_format=torch.contiguous_format)


def copy_whole(target: Tensor, value: Tensor) -> None:
    """Copies a whole tensor into one that may be sharded: each process, which has all of ``value``, takes its slice."""
    if isinstance(target, DTensor):
        value = distribute_tensor(
            value.to(target.device, target.dtype), target.device_mesh, target.placements, src_data_rank=None
        )
    target.data.copy_(value)


def whole_optimizer_state(network: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Gathers a sharded optimizer's state on the main process, tensor by tensor; every process must call it.

    Returns:
        On the main process what ``state_dict()`` of an unsharded optimizer returns, on the CPU; elsewhere ``{}``.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    gathered: dict[str, Any] = get_optimizer_state_dict(network, optimizer, options=options)
    if not gathered:
        return {}
    return _with_keys(gathered, {name: number for number, name in enumerate(_names_in_order(network, optimizer))})


def load_whole_optimizer_state(network: nn.Module, optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Loads what ``whole_optimizer_state`` returned, on any number of processes; every process must call it.

    Args:
        state: read on the main process alone, which sends each tensor to the others; ``{}`` elsewhere.
    """
    has_moments = [bool(state.get("state"))]
    torch.distributed.broadcast_object_list(has_moments, src=0)
    if not has_moments[0]:  # of a run that skipped every step so far; the library would refuse it
        return
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    if state:
        state = _with_keys(state, dict(enumerate(_names_in_order(network, optimizer))))
    set_optimizer_state_dict(network, optimizer, optim_state_dict=state, options=options)
    for group in optimizer.param_groups:
        group["betas"] = tuple(group["betas"])  # the library turns it into a list


def _names_in_order(network: nn.Module, optimizer: Optimizer) -> list[str]:
    """Returns the parameters' names in the order in which ``Optimizer.state_dict`` numbers them."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def _with_keys(state: dict[str, Any], new: Mapping[Any, Any]) -> dict[str, Any]:
    """Replaces the keys by which an optimizer's state refers to parameters."""
    return {
        "state": {new[key]: state["state"][key] for key in sorted(state["state"], key=new.__getitem__)},
        "param_groups": [group | {"params": [new[key] for key in group["params"]]} for group in state["param_groups"]],
    }


def load_slices(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Loads the optimizer state that this process alone saved, in the layout used until November 2026.

    Args:
        state: ``Optimizer.state_dict`` with this process's slices in place of the sharded tensors.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    sharded = {
        key: {name: _like_parameter(value, parameters[key]) for name, value in entries.items()}
        for key, entries in state["state"].items()
    }
    optimizer.load_state_dict(state | {"state": sharded})


def _like_parameter(value: Any, parameter: Tensor) -> Any:
    if not (isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.ndim):
        return value
    return DTensor.from_local(
        value.to(parameter.device), parameter.device_mesh, parameter.placements,
        run_check=False, shape=parameter.shape, stride=parameter.stride(),
    )  # fmt: skip
