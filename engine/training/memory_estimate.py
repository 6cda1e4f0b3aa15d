"""How much GPU memory a training run takes, by arithmetic: counted where it can be, estimated for activations."""

import weakref
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GIB = 2**30
# Bytes that one of Wan's blocks keeps for its backward pass under bfloat16 autocast, counted by saved-tensor hooks: per
# video token and unit of width, per token and unit of the feed-forward width, per text token and unit of width. The
# first is 68 and what each token has once: statistics of norms and attention.
PER_WIDTH, PER_FEED_FORWARD, PER_TEXT_WIDTH = 69, 4, 12
HIDDEN_BYTES = 2  # of a checkpointed block only its input is kept, in bfloat16
MOMENT_BYTES = {"adamw": 8, "adamw8bit": 2}
# One after the other in a step: never two of them at once.
PHASES = ("while the VAE encodes", "while the DiT runs, estimated", "while averaging")


@dataclass(frozen=True)
class Network:
    """The sizes of a DiT.

    Attributes:
        weight_bytes: of all weights as they are kept; ``trained_bytes`` of those that train.
        num_trained: parameters that train.
        block_parameters: of one block; ``outer_parameters`` of what is in none.
        width, feed_forward_width: of the blocks.
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
    """What one step sees: clips, video tokens of each, text tokens of each; bytes that encoding them takes."""

    batch_size: int
    num_tokens: int
    num_text_tokens: int
    encoding_bytes: int


@dataclass(frozen=True)
class Choices:
    """What the flags of ``main.py`` say about memory; ``num_shards`` is 1 without --fsdp."""

    has_float32_weights: bool
    optimizer: str
    average_on_gpu: bool
    checkpoint_every: int
    num_shards: int


def saved_by_block(network: Network, clips: Clips, has_float32_weights: bool) -> int:
    """Bytes that one block keeps for its backward pass; float32 weights are kept in bfloat16 once more.

    With adapters (LoRA) it is less: the inputs of frozen layers are not kept.
    """
    per_token = PER_WIDTH * network.width + PER_FEED_FORWARD * network.feed_forward_width
    text = PER_TEXT_WIDTH * network.width * clips.num_text_tokens
    copies = 2 * network.block_parameters if has_float32_weights else 0
    return clips.batch_size * (clips.num_tokens * per_token + text) + copies


def training_memory(network: Network, clips: Clips, choices: Choices, vae_parameters: int) -> dict[str, int]:
    """Bytes on each GPU, by what they are for; ``peak`` sums them up.

    Args:
        vae_parameters: of the frozen VAE, in bfloat16.
    """
    shards = choices.num_shards
    every = choices.checkpoint_every
    num_recomputed = -(-network.num_blocks // every) if every else 0
    hidden = HIDDEN_BYTES * clips.batch_size * clips.num_tokens * network.width
    whole = network.num_blocks - num_recomputed + (1 if num_recomputed else 0)  # one at a time comes back
    # In float32: what is in no block stays whole during a step, as weights and gradients, and so do two blocks.
    gathered = 2 * 4 * (network.outer_parameters + 2 * network.block_parameters) if shards > 1 else 0
    average = network.num_trained * 4 // shards if choices.average_on_gpu else 0
    return {
        "weights": network.weight_bytes // shards,
        "gradients": network.trained_bytes // shards,
        "moments": network.num_trained * MOMENT_BYTES[choices.optimizer] // shards,
        "average": average,
        "gathered by --fsdp": gathered,
        "VAE": 2 * vae_parameters,
        "while the VAE encodes": clips.encoding_bytes,
        "while the DiT runs, estimated": num_recomputed * hidden
        + whole * saved_by_block(network, clips, choices.has_float32_weights),
        "while averaging": average,  # EMAModel makes the differences of all weights before it adds them
    }


def peak(memory: dict[str, int]) -> int:
    """Bytes that are in use at most: all that stays, and the largest of what comes one after the other."""
    return sum(size for name, size in memory.items() if name not in PHASES) + max(memory[name] for name in PHASES)


class LiveBytes(TorchDispatchMode):
    """Within the block, ``peak`` is the most bytes that tensors made there held at once.

    What a library's kernels take for themselves, cuDNN's workspace say, comes on top.
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
        if storage._cdata in self._alive:  # a view, or written in place
            return
        self._alive.add(storage._cdata)
        self._now += storage.nbytes()
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, address: int, size: int) -> None:
        self._alive.discard(address)
        self._now -= size
