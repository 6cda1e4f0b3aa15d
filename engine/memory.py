"""How much GPU memory a training run takes, by arithmetic: counted where it can be, estimated for activations."""

from dataclasses import dataclass

GIB = 2**30
# Bytes that one of Wan's blocks keeps for its backward pass under bfloat16 autocast, counted by saved-tensor hooks: per
# video token and unit of width, per token and unit of the feed-forward width, per text token and unit of width.
PER_WIDTH, PER_FEED_FORWARD, PER_TEXT_WIDTH = 69, 4, 12
HIDDEN_BYTES = 2  # of a checkpointed block only its input is kept, in bfloat16
MOMENT_BYTES = {"adamw": 8, "adamw8bit": 2}
VAE_TENSORS = 8  # of the encoder's widest layer that live at once; a guess


@dataclass(frozen=True)
class Network:
    """The sizes of a DiT: numbers of parameters in all and in one block, widths, and how many parameters train."""

    num_parameters: int
    num_trained: int
    block_parameters: int
    num_blocks: int
    width: int
    feed_forward_width: int


@dataclass(frozen=True)
class Clips:
    """What one step sees: clips, video tokens of each, text tokens of each, and values of the VAE's widest layer."""

    batch_size: int
    num_tokens: int
    num_text_tokens: int
    vae_values: int


@dataclass(frozen=True)
class Choices:
    """What the flags of ``main.py`` say about memory; ``num_shards`` is 1 without --fsdp."""

    weights_bytes: int
    optimizer: str
    average_on_gpu: bool
    checkpoint_every: int
    num_shards: int


def saved_by_block(network: Network, clips: Clips) -> int:
    """Bytes that one block keeps for its backward pass, its own weights in bfloat16 among them."""
    per_token = PER_WIDTH * network.width + PER_FEED_FORWARD * network.feed_forward_width
    text = PER_TEXT_WIDTH * network.width * clips.num_text_tokens
    return clips.batch_size * (clips.num_tokens * per_token + text) + 2 * network.block_parameters


def training_memory(network: Network, clips: Clips, choices: Choices, vae_parameters: int) -> dict[str, int]:
    """Bytes on each GPU, by what they are for; the peak is at most their sum.

    Args:
        vae_parameters: of the frozen VAE, in bfloat16.
    """
    shards = choices.num_shards
    every = choices.checkpoint_every
    num_recomputed = -(-network.num_blocks // every) if every else 0
    hidden = HIDDEN_BYTES * clips.batch_size * clips.num_tokens * network.width
    whole = network.num_blocks - num_recomputed + (1 if num_recomputed else 0)  # one at a time comes back
    gathered = 2 * 4 * network.block_parameters if shards > 1 else 0
    return {
        "weights": network.num_parameters * choices.weights_bytes // shards + gathered,
        "gradients": network.num_trained * choices.weights_bytes // shards,
        "moments": network.num_trained * MOMENT_BYTES[choices.optimizer] // shards,
        "average": network.num_trained * 4 // shards if choices.average_on_gpu else 0,
        "VAE": 2 * vae_parameters,
        "activations, estimated": num_recomputed * hidden + whole * saved_by_block(network, clips),
        "VAE encoding, a guess": 2 * VAE_TENSORS * clips.vae_values,
    }
