"""What makes the DiT faster at inference without another answer: changes to an instance of the library's class.

``prepare_for_inference`` makes all of them. docs/performance.md has what each is worth, and what was measured and left
out.
"""

from types import MethodType
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.attention_dispatch import attention_backend
from diffusers.models.transformers.transformer_wan import WanAttention
from diffusers.utils.constants import DIFFUSERS_ATTN_BACKEND
from torch import Tensor, nn

NATIVE = "native"  # torch's scaled_dot_product_attention
# The library's names, by the major compute capability that each was written for; each needs a package. Without it, and
# on other GPUs, torch's attention runs, which has flash kernels too, and on later GPUs cuDNN's.
FLASH_BACKENDS = {8: "flash", 9: "_flash_3"}
TABLES = ("freqs_cos", "freqs_sin")


def prepare_for_inference(dit: WanTransformer3DModel, compile_blocks: bool = False) -> str:
    """Changes a DiT in place, once it is on its device; it may still be saved, moved and trained.

    Args:
        compile_blocks: see ``compile_for_any_length``.

    Returns:
        The attention backend, by the library's name.
    """
    keep_rotary_float32(dit)
    share_first_attention(dit)
    if compile_blocks:
        compile_for_any_length(dit)
    return use_fast_attention(dit)


# -- rotary tables -----------------------------------------------------------------------------------------------


def keep_rotary_float32(dit: WanTransformer3DModel) -> None:
    """Gives the rotary tables their float32 values again, if a cast has rounded them, and keeps them from casts.

    ``.to(torch.bfloat16)`` of a model casts its buffers: sines and cosines would be wrong by up to 2e-3.
    """
    rope = dit.rope
    if rope.freqs_cos.dtype != torch.float32:
        fresh = type(rope)(rope.attention_head_dim, rope.patch_size, rope.max_seq_len)
        for name in TABLES:
            setattr(rope, name, getattr(fresh, name).to(getattr(rope, name).device))
    rope._apply = MethodType(_move_without_cast, rope)  # a bound method, so that a copy of the model has its own


def _move_without_cast(rope: nn.Module, change: Any, recurse: bool = True) -> nn.Module:
    """``nn.Module._apply``, which carries out ``.to`` and its kin, for devices alone."""

    def move(tensor: Tensor) -> Tensor:
        changed = change(tensor)
        return changed if changed.dtype == tensor.dtype else tensor.to(changed.device)

    return type(rope)._apply(rope, move, recurse)


# -- what prompts of one video share -----------------------------------------------------------------------------


def is_one_row(batch: Tensor) -> bool:
    """Whether all rows of [B, ...] are views of one, as ``expand`` makes them."""
    return len(batch) == 1 or batch.stride(0) == 0


def share_first_attention(dit: WanTransformer3DModel) -> None:
    """Computes patch embedding and first self-attention once for a batch of one row, expanded.

    Until the first cross-attention nothing depends on the caption, so at the first step, where all prompts of a video
    start from the same latents, their rows are equal. They stay one row until captions make them differ; with one
    timestep for all (``predict_velocity`` gives one) the library's own code broadcasts the rest.
    """
    _add_once(dit.patch_embedding, _keep_one_row)
    _add_once(dit.blocks[0].attn2, _expand_to_captions)


def stop_sharing(dit: WanTransformer3DModel) -> None:
    """Undoes ``share_first_attention``."""
    for module, hook in ((dit.patch_embedding, _keep_one_row), (dit.blocks[0].attn2, _expand_to_captions)):
        for number in [number for number, added in module._forward_pre_hooks.items() if added is hook]:
            del module._forward_pre_hooks[number]


def _keep_one_row(_module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
    (hidden,) = inputs  # [B, C, T, H, W]
    return (hidden[:1],) if is_one_row(hidden) else None


def _expand_to_captions(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    hidden, captions, *others = inputs  # [B or 1, N, D], [B, L, D]
    return (hidden.expand(len(captions), -1, -1), captions, *others) if len(hidden) < len(captions) else None


def _add_once(module: nn.Module, hook: Any) -> None:
    if hook not in module._forward_pre_hooks.values():
        module.register_forward_pre_hook(hook)


# -- attention and compilation -----------------------------------------------------------------------------------


def use_fast_attention(dit: WanTransformer3DModel) -> str:
    """Sets the attention kernels written for the GPU, where they are installed and fit the dtype; otherwise torch's.

    The library's environment variable ``DIFFUSERS_ATTN_BACKEND`` overrules it.

    Returns:
        The backend, by the library's name.
    """
    if DIFFUSERS_ATTN_BACKEND != NATIVE:
        return DIFFUSERS_ATTN_BACKEND
    device, dtype = _place(dit)
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return NATIVE
    name = FLASH_BACKENDS.get(torch.cuda.get_device_capability(device)[0], NATIVE)
    if name == NATIVE or not is_usable(name):
        return NATIVE
    with attention_backend(NATIVE):  # the library makes it the default of all models; leaving restores that
        dit.set_attention_backend(name)
    return name


def _place(dit: WanTransformer3DModel) -> tuple[torch.device, torch.dtype]:
    return dit.patch_embedding.weight.device, dit.patch_embedding.weight.dtype


def is_usable(backend: str) -> bool:
    """Whether the library finds what an attention backend needs."""
    try:
        with attention_backend(backend):
            return True
    except RuntimeError:
        return False


def compile_for_any_length(dit: WanTransformer3DModel, backend: Any = "inductor") -> None:
    """Compiles the blocks at their first use, for any number of tokens, prompts and rows of text.

    The blocks alone: they are alike, so one compilation serves all but the first, whose input may be one row.

    Args:
        backend: of ``torch.compile``.
    """
    if _without_base not in dit.rope._forward_hooks.values():
        dit.rope.register_forward_hook(_without_base)
    dit.compile_repeated_blocks(dynamic=True, backend=backend)


def _without_base(_rope: nn.Module, _inputs: Any, tables: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """The tables of a clip as tensors of their own.

    As the library gives them they are views of [T, H, W, D], and whenever two of these happen to be equal the compiler
    would take it for a rule, and compile anew once it is broken.
    """
    return tuple(table.clone() for table in tables)


# -- fused projections -------------------------------------------------------------------------------------------


def fuse_projections(dit: WanTransformer3DModel) -> None:
    """One product for queries, keys and values, by the library; the model may be saved, but no longer trained.

    The library keeps the parts beside the whole; here they become views of it, so that no memory is added as long as
    the model stays on its device. Saved are the parts alone, under the keys that every Wan has.

    Raises:
        ValueError: if there are adapters beside the projections, which the product would leave out.
    """
    if getattr(dit, "peft_config", None):
        raise ValueError("adapters must be merged into the weights before projections are fused")
    dit.fuse_qkv_projections()
    for module in dit.modules():
        if isinstance(module, WanAttention):
            whole, parts = _whole_and_parts(module)
            for kind in ("weight", "bias"):
                pieces = getattr(whole, kind).data.split([part.out_features for part in parts])
                for part, piece in zip(parts, pieces, strict=True):
                    getattr(part, kind).data = piece
    dit.requires_grad_(False)
    dit.register_state_dict_post_hook(_without_fused)


def _whole_and_parts(attention: WanAttention) -> tuple[nn.Linear, list[nn.Linear]]:
    if attention.is_cross_attention:
        return attention.to_kv, [attention.to_k, attention.to_v]
    return attention.to_qkv, [attention.to_q, attention.to_k, attention.to_v]


def _without_fused(_dit: nn.Module, state: dict[str, Tensor], prefix: str, _metadata: Any) -> None:
    for key in [key for key in state if key.startswith(prefix) and (".to_qkv." in key or ".to_kv." in key)]:
        del state[key]
