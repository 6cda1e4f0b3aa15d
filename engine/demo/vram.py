"""Fits a demo run into a GPU's memory: presets by the size of the card, and one retry with a smaller one.

The numbers below are for Wan2.1-T2V-1.3B in bf16 at 480 x 832, in GiB. Weights: DiT 2.65, VAE 0.24, text encoder
10.6,
of which its embedding table is 1.96. The text encoder runs first and is freed before the other networks are loaded.
Live tensors of the library's classes at real sizes, counted with fake tensors, without the workspace of kernels and
without the GPU's own share of some tenths:

                                    window of 49    81    161 (twice the tokens of 81)
    DiT, one prompt                         1.13    1.70   3.3
    DiT, four prompts                               6.11   12
    VAE encode                              2.88    2.95
    VAE decode, one prompt at a time        3.80    3.83

Peaks with weights: text encoder 11 on the GPU, else 2.4; DiT with four prompts 15 at 161 frames, 9.0 at 81, with two
prompts 6.1, with one 4.6; VAE encoder 5.8; VAE decoder 6.7, in tiles of 256 x 256 (by area) 3.6. None of this was
measured on a GPU.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from engine.captions import IN_LAYERS, ON_GPU
from util.errors import TooLittleMemoryError, TooLittleToLoadError, UserError
from util.memory import naming_what_saves_memory

Result = TypeVar("Result")

GIB = 2**30
AUTO = "auto"
TILE = (256, 256)  # height and width of a VAE tile, in pixels


@dataclass(frozen=True)
class Preset:
    """Settings that fit into some memory.

    Attributes:
        name: value of --vram, the size of a card in GB.
        needs: GiB that must be free for ``auto`` to choose it.
        text_on: where the text encoder runs.
        window: frames, see ``models.windows``; 0 is the whole video.
        tiling: decode in tiles.
        prompt_batch: prompts that run together.
    """

    name: str
    needs: float
    text_on: str
    window: int
    tiling: bool
    prompt_batch: int


# The first is the paper's setting; ``auto`` chooses it if there is room (400 frames of four prompts), and on a CPU. The
# others have the longest windows that fit: more context, fewer overlaps. ``needs`` is the peak, a tenth of it, and half
# a GiB for what was not counted.
PRESETS = (
    Preset("whole", 36, ON_GPU, 0, False, 4),
    Preset("24", 17, ON_GPU, 161, False, 4),
    Preset("16", 12.6, ON_GPU, 81, False, 4),
    Preset("12", 7.9, IN_LAYERS, 81, False, 2),
    Preset("8", 0, IN_LAYERS, 81, True, 1),
)
CHOSEN_BY_FLAG = ("text_on", "window", "tiling", "prompt_batch")


def choose_preset(vram: str, device: torch.device) -> Preset:
    """Returns the preset of ``--vram``; for ``auto`` the largest that fits into the GPU's free memory."""
    if vram != AUTO:
        return preset_named(vram)
    if device.type != "cuda":
        return PRESETS[0]
    free = torch.cuda.mem_get_info(device)[0] / GIB
    return next(preset for preset in PRESETS if preset.needs <= free)


def preset_named(name: str) -> Preset:
    """Returns the preset of this name."""
    return next(preset for preset in PRESETS if preset.name == name)


def with_flags(preset: Preset, flags: Any) -> Preset:
    """Replaces values of the preset by the flags that were given (not None)."""
    given = {name: getattr(flags, name) for name in CHOSEN_BY_FLAG}
    return replace(preset, **{name: value for name, value in given.items() if value is not None})


def next_smaller(preset: Preset, flags: Any) -> Preset | None:
    """Returns the next preset that lowers a value which the flags leave open; None if there is none."""
    now = with_flags(preset, flags)
    for smaller in PRESETS[PRESETS.index(preset) + 1 :]:
        then = with_flags(smaller, flags)
        if any(getattr(then, name) != getattr(now, name) for name in CHOSEN_BY_FLAG):
            return smaller
    return None


def run_within_memory(
    run: Callable[[Preset], Result], preset: Preset, flags: Any, on_retry: Callable[[Preset], None]
) -> Result:
    """Calls ``run`` with a preset; if memory is too small, calls it once more with the next smaller one.

    Args:
        on_retry: called with the smaller preset before the second try.

    Raises:
        TooLittleMemoryError: if the second try fails too, or there is no smaller preset.
    """
    try:
        with naming_what_saves_memory():
            return run(preset)
    except TooLittleToLoadError:
        raise
    except TooLittleMemoryError as error:
        smaller = next_smaller(preset, flags)
        if smaller is None:
            raise
        reason = str(error)
    # Outside the except block: there the error's traceback would keep the tensors of the first try alive.
    on_retry(smaller)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        with naming_what_saves_memory():
            return run(smaller)
    except TooLittleMemoryError as error:
        raise UserError(
            f"{error}; the first attempt, with the larger preset, ran out of memory too: {reason}"
        ) from error


def describe(preset: Preset) -> str:
    """Returns the flags of a preset: ``--text_on gpu --window 81 --prompt_batch 4``."""
    tiling = "--tiling" if preset.tiling else "--no-tiling"
    return f"--text_on {preset.text_on} --window {preset.window} {tiling} --prompt_batch {preset.prompt_batch}"
