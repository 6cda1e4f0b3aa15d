"""How a demo run fits into a GPU's memory: presets by the size of the card, and one retry with less.

The arithmetic, for Wan2.1-T2V-1.3B in bf16 at 480 x 832, in GiB. Weights: DiT 2.65, VAE 0.24, text encoder 10.6, of
which its table of words is 1.96. The text encoder runs first and is gone before the others come. Beside the weights,
live tensors of the library's plain classes at their real sizes, counted with fake tensors (kernels' workspaces are not
in it, nor is a GPU's own share of some tenths):

                                    window of 49    81    161 (twice the tokens of 81)
    DiT, one prompt                         1.13    1.70   3.3
    DiT, four prompts                               6.11   12
    VAE encode                              2.88    2.95
    VAE decode, one prompt at a time        3.80    3.83

So the peaks, of text encoder, DiT and decoder in turn: with text_on gpu 11, else 2.4; four prompts of 161 frames 15,
of 81 frames 9.0; two 6.1; one 4.6; encoder 5.8; decoder 6.7, in tiles of 256 x 256, by their area, 3.6. Nothing of
this was run on a GPU.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from engine.captions import IN_LAYERS, ON_GPU
from util.errors import TooLittleMemoryError, UserError
from util.memory import naming_what_saves_memory

Result = TypeVar("Result")

GIB = 2**30
AUTO = "auto"
TILE = (256, 256)  # of the VAE, in pixels


@dataclass(frozen=True)
class Preset:
    """What to do within some memory.

    Attributes:
        name: as --vram has it: the size of a card in GB.
        needs: GiB that must be free for ``auto`` to take it.
        text_on: where the text encoder computes.
        window: frames, see ``models.windows``; 0 is the whole video.
        tiling: whether the VAE decodes in tiles.
        prompt_batch: prompts that run together.
    """

    name: str
    needs: float
    text_on: str
    window: int
    tiling: bool
    prompt_batch: int


# The first is how the weights are evaluated: ``auto`` changes nothing where there is room (400 frames of four prompts),
# nor on a CPU. The others take the longest windows that fit: more context, and fewer overlaps. ``needs`` is the peak
# and a tenth, and half a GiB for what was not counted.
PRESETS = (
    Preset("whole", 36, ON_GPU, 0, False, 4),
    Preset("24", 17, ON_GPU, 161, False, 4),
    Preset("16", 12.6, ON_GPU, 81, False, 4),
    Preset("12", 7.9, IN_LAYERS, 81, False, 2),
    Preset("8", 0, IN_LAYERS, 81, True, 1),
)
CHOSEN_BY_FLAG = ("text_on", "window", "tiling", "prompt_batch")


def choose_preset(vram: str, device: torch.device) -> Preset:
    """The preset of ``--vram``: of that name, or for ``auto`` the largest that fits into the GPU's free memory."""
    if vram != AUTO:
        return preset_named(vram)
    if device.type != "cuda":
        return PRESETS[0]
    free = torch.cuda.mem_get_info(device)[0] / GIB
    return next(preset for preset in PRESETS if preset.needs <= free)


def preset_named(name: str) -> Preset:
    """One of ``PRESETS``."""
    return next(preset for preset in PRESETS if preset.name == name)


def with_flags(preset: Preset, flags: Any) -> Preset:
    """The preset with what flags say instead; those that were not given are None."""
    given = {name: getattr(flags, name) for name in CHOSEN_BY_FLAG}
    return replace(preset, **{name: value for name, value in given.items() if value is not None})


def next_smaller(preset: Preset, flags: Any) -> Preset | None:
    """The next preset after which something is smaller, whatever the flags hold fast; None if there is none."""
    now = with_flags(preset, flags)
    for smaller in PRESETS[PRESETS.index(preset) + 1 :]:
        then = with_flags(smaller, flags)
        if any(getattr(then, name) != getattr(now, name) for name in CHOSEN_BY_FLAG):
            return smaller
    return None


def run_within_memory(
    run: Callable[[Preset], Result], preset: Preset, flags: Any, on_retry: Callable[[Preset], None]
) -> Result:
    """``run`` with a preset, and if the memory does not hold it once more with the next smaller one.

    Args:
        on_retry: is told the preset of the second try before it begins.

    Raises:
        TooLittleMemoryError: if that is too much as well, or there is no smaller one.
    """
    try:
        with naming_what_saves_memory():
            return run(preset)
    except TooLittleMemoryError as error:
        smaller = next_smaller(preset, flags)
        if smaller is None:
            raise
        reason = str(error)
    # Out of the except block: the error's traceback would keep the tensors of the first try alive.
    on_retry(smaller)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        with naming_what_saves_memory():
            return run(smaller)
    except TooLittleMemoryError as error:
        raise UserError(f"{error}; so it was before, with more: {reason}") from error


def describe(preset: Preset) -> str:
    """``--text_on gpu --window 81 --prompt_batch 4``: the flags that do the same."""
    tiling = "--tiling" if preset.tiling else "--no-tiling"
    return f"--text_on {preset.text_on} --window {preset.window} {tiling} --prompt_batch {preset.prompt_batch}"
