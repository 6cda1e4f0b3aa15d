"""Low-rank adaptation of the DiT: small matrices beside its linear layers train, the rest stays frozen.

Source: Hu et al., LoRA (arXiv 2106.09685), by peft through diffusers' adapter mixin.
"""

from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from peft import LoraConfig
from safetensors.torch import load_file
from torch import Tensor

from util.checkpoint import ADAPTER_NAME, read_json
from util.errors import UserError

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")
RANK_ENTRY = "flowrvs_lora_rank"  # in the config of a DiT with adapters


def add_lora(dit: WanTransformer3DModel, rank: int, seed: int = 0) -> None:
    """Puts adapters beside all linear layers of the blocks, in place; the network's function does not change.

    They train in float32, and with them the patch embedding: its channels for the injected video start at zero.

    Args:
        rank: of the products of two matrices that are added to the layers' weights.
        seed: of the first of each two; the second starts at zero.
    """
    _add_adapters(dit, rank, seed)
    dit.register_to_config(**{RANK_ENTRY: rank})


def has_lora(dit: WanTransformer3DModel) -> bool:
    """Whether the DiT holds adapters."""
    return RANK_ENTRY in dit.config


def trained(dit: WanTransformer3DModel) -> dict[str, Tensor]:
    """The adapters and the patch embedding, by name: what a checkpoint of such a run holds."""
    return {name: parameter for name, parameter in dit.named_parameters() if parameter.requires_grad}


def merge_adapter(dit: WanTransformer3DModel, folder: Path, source: str) -> None:
    """Adds what a run trained to the weights it started from, in place; the DiT is then like any other.

    Args:
        dit: the base, with direct video injection if the run had it.
        folder: of a checkpoint, with the adapter and its config.
        source: how errors call it.

    Raises:
        UserError: if the adapter is of another network.
    """
    _add_adapters(dit, int(read_json(folder / "config.json")[RANK_ENTRY]), seed=0)
    tensors, own = load_file(folder / ADAPTER_NAME), trained(dit)
    if {name: value.shape for name, value in tensors.items()} != {name: value.shape for name, value in own.items()}:
        raise UserError(f"{source}: its adapter is of another network than the base; give the base of the run")
    for name, parameter in own.items():
        parameter.data.copy_(tensors[name])
    dit.fuse_lora()
    dit.unload_lora()
    dit.requires_grad_(False)


def _add_adapters(dit: WanTransformer3DModel, rank: int, seed: int) -> None:
    dit.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(TARGETS))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        dit.add_adapter(config)
    dit.patch_embedding.requires_grad_(True)
    for parameter in trained(dit).values():
        parameter.data = parameter.data.float()
