"""Low-rank adaptation of the DiT: small matrices beside its linear layers train, the rest stays frozen.

Source: Hu et al., LoRA (arXiv 2106.09685), by peft through diffusers' adapter mixin.
"""

import torch
from diffusers import WanTransformer3DModel
from peft import LoraConfig
from torch import Tensor

from util.errors import UserError

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")
RANK_ENTRY = "flowrvs_lora_rank"  # in the config of a DiT with adapters
BASE_ENTRY = "flowrvs_lora_base"  # beside it: the file or folder of the weights that were adapted
FIRST, SECOND = ".lora_A.default", ".lora_B.default"  # as peft names the two matrices beside a layer


def add_lora(dit: WanTransformer3DModel, rank: int, seed: int = 0, base: str = "") -> None:
    """Puts adapters beside all linear layers of the blocks, in place; the network's function does not change.

    They train in float32, and with them the patch embedding: its channels for the injected video start at zero.

    Args:
        rank: of the products of two matrices that are added to the layers' weights.
        seed: of the first of each two; the second starts at zero.
        base: file or folder of the DiT's weights, which whoever reads the adapter alone will need.
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
    """Whether the DiT holds adapters beside its weights."""
    return RANK_ENTRY in dit.config


def trained(dit: WanTransformer3DModel) -> dict[str, Tensor]:
    """The adapters and the patch embedding, by name: what a checkpoint of such a run holds."""
    return {name: parameter for name, parameter in dit.named_parameters() if parameter.requires_grad}


def merge_adapter(base: dict[str, Tensor], adapter: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """The weights of the base with what a run of adapters added to them: a DiT like any other.

    Args:
        base: state dict that the run started from, with or without direct video injection.
        adapter: of ``trained``.
        source: how errors call the adapter.

    Raises:
        UserError: if the adapter is of another network.
    """
    merged = dict(base)
    for name, value in adapter.items():
        if FIRST not in name and SECOND not in name:  # trained whole
            merged[name] = value
        if FIRST in name:
            target, second = name.replace(FIRST, ""), adapter.get(name.replace(FIRST, SECOND))
            if target not in base or second is None or base[target].shape != (len(second), value.shape[1]):
                raise UserError(f"{source}: its adapter does not fit {target} of its base; restore the run's own base")
            merged[target] = (base[target].float() + second.float() @ value.float()).to(base[target].dtype)
    return merged
