"""Makes a DiT faster at inference with equal results, by changes to an instance of the library's class.

``prepare_for_inference`` makes all changes. docs/performance.md shows what each saves, and what was tried and left out.
"""

from types import MethodType
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.attention_dispatch import attention_backend
from diffusers.utils.constants import DIFFUSERS_ATTN_BACKEND
from torch import Tensor, nn

NATIVE = "native"  # torch's scaled_dot_product_attention
# Attention backends of the library, by the major compute capability that each was written for. Each needs a package.
# Without it, and on other GPUs, torch's attention runs, which has flash kernels too, and on later GPUs cuDNN's.
FLASH_BACKENDS = {8: "flash", 9: "_flash_3"}
TABLES = ("freqs_cos", "freqs_sin")


def prepare_for_inference(dit: WanTransformer3DModel, compile_blocks: bool = False) -> str:
    """Changes a DiT in place, after it was moved to its device; it can still be saved, moved and trained.

    Args:
        compile_blocks: see ``compile_for_any_length``.

    Returns:
        The name of the attention backend in the library.
    """
    keep_rotary_float32(dit)
    share_first_attention(dit)
    if compile_blocks:
        compile_for_any_length(dit)
    return use_fast_attention(dit)


# -- rotary tables -----------------------------------------------------------------------------------------------


def keep_rotary_float32(dit: WanTransformer3DModel) -> None:
    """Restores the float32 values of the rotary tables and protects them from casts.

    ``.to(torch.bfloat16)`` casts the buffers of a model: sines and cosines would be wrong by up to 2e-3.
    """
    rope = dit.rope
    if rope.freqs_cos.dtype != torch.float32:
        fresh = type(rope)(rope.attention_head_dim, rope.patch_size, rope.max_seq_len)
        for name in TABLES:
            setattr(rope, name, getattr(fresh, name).to(getattr(rope, name).device))
    rope._apply = MethodType(_move_without_cast, rope)  # a bound method: a copy of the model gets its own


def _move_without_cast(rope: nn.Module, change: Any, recurse: bool = True) -> nn.Module:
    """Replaces ``nn.Module._apply``, which ``.to`` calls: moves to a device, but never casts."""

    def move(tensor: Tensor) -> Tensor:
        changed = change(tensor)
        return changed if changed.dtype == tensor.dtype else tensor.to(changed.device)

    return type(rope)._apply(rope, move, recurse)


# -- work that the prompts of one video share --------------------------------------------------------------------


def is_one_row(batch: Tensor) -> bool:
    """Whether all rows of [B, ...] are views of the same one, as ``expand`` makes them."""
    return len(batch) == 1 or batch.stride(0) == 0


def share_first_attention(dit: WanTransformer3DModel) -> None:
    """Computes patch embedding and first self-attention once for all prompts of a video.

    At the first solver step all prompts start from the same latents, and nothing depends on the caption before the
    first cross-attention. So a batch that is one row, expanded, stays one row until then. ``predict_velocity`` passes
    one timestep for all rows, and the library's code broadcasts the rest.
    """
    _add_once(dit.patch_embedding, _keep_one_row)
    _add_once(dit.blocks[0].attn2, _expand_to_captions)


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
    """Chooses attention kernels written for the GPU if they are installed and fit the dtype, otherwise torch's.

    The library's environment variable ``DIFFUSERS_ATTN_BACKEND`` has priority.

    Returns:
        The name of the backend in the library.
    """
    if DIFFUSERS_ATTN_BACKEND != NATIVE:
        return DIFFUSERS_ATTN_BACKEND
    device, dtype = _place(dit)
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return NATIVE
    name = FLASH_BACKENDS.get(torch.cuda.get_device_capability(device)[0], NATIVE)
    if name == NATIVE or not is_usable(name):
        return NATIVE
    with attention_backend(NATIVE):  # the library makes it the default of all models; leaving the block restores that
        dit.set_attention_backend(name)
    return name


def _place(dit: WanTransformer3DModel) -> tuple[torch.device, torch.dtype]:
    return dit.patch_embedding.weight.device, dit.patch_embedding.weight.dtype


def is_usable(backend: str) -> bool:
    """Whether the library finds the package that an attention backend needs."""
    try:
        with attention_backend(backend):
            return True
    except RuntimeError:
        return False


def compile_for_any_length(dit: WanTransformer3DModel, backend: Any = "inductor") -> None:
    """Compiles the blocks at their first use, for any number of tokens, prompts and text tokens.

    Only the blocks: they are alike, so one compilation serves all but the first, whose input may be one row.

    Args:
        backend: passed to ``torch.compile``.
    """
    if _without_base not in dit.rope._forward_hooks.values():
        dit.rope.register_forward_hook(_without_base)
    dit.compile_repeated_blocks(dynamic=True, backend=backend)


def _without_base(_rope: nn.Module, _inputs: Any, tables: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Clones the rotary tables of a clip.

    The library returns views of [T, H, W, D]. Where two of these sizes are equal by chance, the compiler would assume
    that they always are, and compile again when they are not.
    """
    return tuple(table.clone() for table in tables)
