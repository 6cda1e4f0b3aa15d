"""Low-rank adaptation of the DiT: trains small matrices beside its linear layers, the rest stays frozen.

Source: Hu et al., LoRA (arXiv 2106.09685); implemented by peft through diffusers' adapter mixin.
"""

import torch
from diffusers import WanTransformer3DModel
from peft import LoraConfig
from torch import Tensor

from util.errors import UserError

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")
RANK_ENTRY = "flowrvs_lora_rank"  # entry in the config of a DiT with adapters
BASE_ENTRY = "flowrvs_lora_base"  # entry with the file or folder of the adapted weights
FIRST, SECOND = ".lora_A.default", ".lora_B.default"  # peft's names for the two matrices of a layer


def add_lora(dit: WanTransformer3DModel, rank: int, seed: int = 0, base: str = "") -> None:
    """Adds adapters to all linear layers of the blocks, in place; the DiT computes the same as before.

    The adapters train in float32, and so does the patch embedding: its channels for the injected video start at zero.

    Args:
        rank: rank of the two matrices whose product is added to a layer's weights.
        seed: random seed of the first matrix; the second starts at zero.
        base: file or folder of the DiT's weights, which a checkpoint of adapters names.
    """
    dit.requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        dit.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(TARGETS)))
    dit.patch_embedding.requires_grad_(True)
    for parameter in trained(dit).values():
        parameter.data = parameter.data.float()
    dit.register_to_config(**{RANK_ENTRY: rank, BASE_ENTRY: base})


def has_lora(dit: WanTransformer3DModel) -> bool:
    """Whether the DiT has adapters."""
    return RANK_ENTRY in dit.config


def trained(dit: WanTransformer3DModel) -> dict[str, Tensor]:
    """Returns the adapters and the patch embedding by name: the content of a checkpoint."""
    return {name: parameter for name, parameter in dit.named_parameters() if parameter.requires_grad}


def merge_adapter(base: dict[str, Tensor], adapter: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Merges adapters into the weights that they were trained on; returns the weights of a plain DiT.

    Args:
        base: state dict that the run started from, with or without direct video injection.
        adapter: the tensors of ``trained``.
        source: name of the adapter, for errors.

    Raises:
        UserError: if the adapter belongs to another network.
    """
    merged = dict(base)
    for name, value in adapter.items():
        if FIRST not in name and SECOND not in name:  # all of it is trained
            merged[name] = value
        if FIRST in name:
            target, second = name.replace(FIRST, ""), adapter.get(name.replace(FIRST, SECOND))
            if target not in base or second is None or base[target].shape != (len(second), value.shape[1]):
                raise UserError(f"{source}: the adapter does not fit {target} of its base; restore the base of the run")
            merged[target] = (base[target].float() + second.float() @ value.float()).to(base[target].dtype)
    return merged
