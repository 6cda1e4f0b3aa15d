"""Networks too large for one GPU: each process holds a slice of every weight, gradient and moment.

The DiT's blocks are sharded one by one (``fully_shard``, FSDP2), so that at most two of them are whole at a time.
Weights stay float32 and are gathered as such: autocast rounds them in the multiplications alone, as without sharding.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard_network(dit: WanTransformer3DModel, device_type: str) -> None:
    """Shards a DiT over all processes, in place; it moves to this process's device.

    Args:
        device_type: ``cuda``, or ``cpu`` in tests.
    """
    mesh = init_device_mesh(device_type, (torch.distributed.get_world_size(),))
    for block in dit.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(dit, mesh=mesh)


def is_sharded(tensors: Iterable[Tensor]) -> bool:
    """Whether any of them is a slice of a larger one."""
    return any(isinstance(tensor, DTensor) for tensor in tensors)


def whole(tensor: Tensor) -> Tensor:
    """The tensor gathered from all processes, which must all call this; itself where it is not sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(tensors: Iterable[tuple[str, Tensor]], keep: bool) -> Iterator[tuple[str, Tensor]]:
    """Whole tensors on the CPU, one after the other; every process iterates, only those that keep them yield."""
    for name, tensor in tensors:
        gathered = whole(tensor.detach())
        if keep:
            # A gathered tensor may be a part of a padded one, which files refuse.
            yield name, gathered.to("cpu", copy=is_sharded([tensor]), memory_format=torch.contiguous_format)


def copy_whole(target: Tensor, value: Tensor) -> None:
    """Copies a whole tensor into one that may be sharded; each process has the whole one and takes its slice."""
    if isinstance(target, DTensor):
        value = distribute_tensor(
            value.to(target.device, target.dtype), target.device_mesh, target.placements, src_data_rank=None
        )
    target.data.copy_(value)


def own_slices(optimizer_state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's ``state_dict`` with this process's slices in place of sharded tensors."""
    return {
        **optimizer_state,
        "state": {
            key: {name: value.to_local() if isinstance(value, DTensor) else value for name, value in entries.items()}
            for key, entries in optimizer_state["state"].items()
        },
    }


def from_own_slices(optimizer_state: dict[str, Any], parameters: list[Tensor]) -> dict[str, Any]:
    """The reverse of ``own_slices``.

    Args:
        parameters: in the order of the optimizer's groups.
    """
    return {
        **optimizer_state,
        "state": {
            key: {name: _like_parameter(value, parameters[key]) for name, value in entries.items()}
            for key, entries in optimizer_state["state"].items()
        },
    }


def _like_parameter(value: Any, parameter: Tensor) -> Any:
    if not (isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.ndim):
        return value
    return DTensor.from_local(
        value.to(parameter.device), parameter.device_mesh, parameter.placements,
        run_check=False, shape=parameter.shape, stride=parameter.stride(),
    )  # fmt: skip
