"""Computes how much GPU memory a training run takes; activations are estimated."""

import weakref
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GIB = 2**30
# Bytes that a block of Wan's DiT keeps for its backward pass under bfloat16 autocast, counted by saved-tensor hooks:
# per video token and unit of width, per video token and unit of feed-forward width, per text token and unit of width.
# The first is 68, rounded up for what each token has only once: statistics of norms and attention.
PER_WIDTH, PER_FEED_FORWARD, PER_TEXT_WIDTH = 69, 4, 12
HIDDEN_BYTES = 2  # a checkpointed block keeps only its input, in bfloat16
MOMENT_BYTES = {"adamw": 8, "adamw8bit": 2}
# Phases of a step, which need their memory one after the other.
PHASES = ENCODE, RUN_DIT, UPDATE_EMA = "phase: VAE encodes", "phase: DiT runs (estimated)", "phase: EMA update"


@dataclass(frozen=True)
class DiTSize:
    """How large a DiT is.

    Attributes:
        weight_bytes: size of all weights in their dtypes.
        trained_bytes: size of the weights that train.
        num_trained: number of parameters that train.
        block_parameters: number of parameters in each block.
        outer_parameters: number of parameters outside the blocks.
        width, feed_forward_width: channels of the blocks and of their feed-forward layers.
    """

    weight_bytes: int
    trained_bytes: int
    num_trained: int
    block_parameters: int
    outer_parameters: int
    num_blocks: int
    width: int
    feed_forward_width: int


@dataclass(frozen=True)
class Clips:
    """The clips of a step.

    Attributes:
        num_tokens, num_text_tokens: of each clip.
        encoding_bytes: peak memory of the VAE while it encodes them.
    """

    batch_size: int
    num_tokens: int
    num_text_tokens: int
    encoding_bytes: int


@dataclass(frozen=True)
class Choices:
    """Flags of ``main.py`` that change the memory; ``num_shards`` is 1 without ``--fsdp``."""

    has_float32_weights: bool
    optimizer: str
    ema_on_gpu: bool
    checkpoint_every: int
    num_shards: int


def saved_by_block(dit: DiTSize, clips: Clips, has_float32_weights: bool) -> int:
    """Returns the bytes that a block keeps for its backward pass, with a bfloat16 copy of its float32 weights.

    With adapters (LoRA) a block keeps less, since the inputs of frozen layers are not needed.
    """
    per_token = PER_WIDTH * dit.width + PER_FEED_FORWARD * dit.feed_forward_width
    text = PER_TEXT_WIDTH * dit.width * clips.num_text_tokens
    copies = 2 * dit.block_parameters if has_float32_weights else 0
    return clips.batch_size * (clips.num_tokens * per_token + text) + copies


def training_memory(dit: DiTSize, clips: Clips, choices: Choices, vae_parameters: int) -> dict[str, int]:
    """Returns the bytes on each GPU by their use; ``peak`` adds them up.

    Args:
        vae_parameters: number of parameters of the frozen VAE, which is bfloat16.
    """
    shards = choices.num_shards
    every = choices.checkpoint_every
    num_recomputed = -(-dit.num_blocks // every) if every else 0
    hidden = HIDDEN_BYTES * clips.batch_size * clips.num_tokens * dit.width
    whole = (
        dit.num_blocks - num_recomputed + (1 if num_recomputed else 0)
    )  # the backward pass recomputes one block at a time
    # During a step weights and gradients of two blocks, and of all outside the blocks, are gathered in float32.
    gathered = 2 * 4 * (dit.outer_parameters + 2 * dit.block_parameters) if shards > 1 else 0
    ema = dit.num_trained * 4 // shards if choices.ema_on_gpu else 0
    return {
        "weights": dit.weight_bytes // shards,
        "gradients": dit.trained_bytes // shards,
        "moments": dit.num_trained * MOMENT_BYTES[choices.optimizer] // shards,
        "EMA weights": ema,
        "gathered by --fsdp": gathered,
        "VAE": 2 * vae_parameters,
        ENCODE: clips.encoding_bytes,
        RUN_DIT: num_recomputed * hidden + whole * saved_by_block(dit, clips, choices.has_float32_weights),
        UPDATE_EMA: ema,  # EMAModel computes the differences of all weights before it adds them
    }


def peak(memory: dict[str, int]) -> int:
    """Returns the most bytes in use at once: what stays during a step, and its largest phase."""
    return sum(size for name, size in memory.items() if name not in PHASES) + max(memory[name] for name in PHASES)


class LiveBytes(TorchDispatchMode):
    """Measures, until the block ends, the most bytes that tensors created in it hold at once: ``peak``.

    Memory that kernels allocate for themselves, such as cuDNN's workspace, is not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._now = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        if storage._cdata in self._alive:  # a view, or the result of an in-place operation
            return
        self._alive.add(storage._cdata)
        self._now += storage.nbytes()
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, address: int, size: int) -> None:
        self._alive.discard(address)
        self._now -= size
