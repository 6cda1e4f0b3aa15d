"""Encodes and decodes a video chunk by chunk with diffusers' Wan VAE, in memory that does not grow with its length.

The library's encode and decode run the same networks on the same causal cache, but keep every chunk and copy all of
them for each new one. Here a chunk is yielded as soon as it is done, several latent frames may run at once, and each
pass has its own cache, so passes may interleave.
"""

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, patchify, unpatchify
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from util.errors import UserError

FRAMES_PER_CHUNK = 4  # the library encodes 1 + 4 + 4 + ... frames, whatever the temporal stride
# Video pixels, over the batch, in one pass. Small frames are faster together, by a sixth at 64 x 96; from 240 x 416 on
# they only take more memory.
PIXELS_AT_ONCE = FRAMES_PER_CHUNK * 240 * 416


@apply_forward_hook  # moves an offloaded VAE to its device, as for the library's encode
def encode_chunks(
    vae: AutoencoderKLWan, frames: Iterable[Tensor], chunks_at_once: int | None = None
) -> Iterator[Tensor]:
    """Encodes a video that comes in pieces; yields the parameters of its posterior in pieces.

    Args:
        frames: pieces of any length in time, each [B, 3, t, H, W] in [-1, 1]; together 4n + 1 frames.
        chunks_at_once: chunks of four frames that run together; by default as many as ``PIXELS_AT_ONCE`` allows.

    Yields:
        [B, 2 C, t', H / stride, W / stride]: raw mean and log-variance. Concatenated, they equal ``vae.encode`` up to
        rounding.

    Raises:
        ValueError: at the end, unless there were 4n + 1 frames.
    """

    def num_frames(piece: Tensor) -> int:
        at_once = chunks_at_once or _chunks_at_once(piece.shape, 1)
        return FRAMES_PER_CHUNK * at_once

    cache = _empty_cache(vae.encoder)
    for index, piece in enumerate(_recut(frames, num_frames)):
        if index and piece.shape[2] % FRAMES_PER_CHUNK:
            raise ValueError(
                f"frames must number 4n+1 for the Wan VAE, got {piece.shape[2] % FRAMES_PER_CHUNK} too many"
            )
        patches = patchify(piece.to(vae.dtype), vae.config.patch_size or 1)
        yield vae.quant_conv(vae.encoder(patches, feat_cache=cache, feat_idx=[0]))


@apply_forward_hook
def decode_chunks(
    vae: AutoencoderKLWan, latents: Iterable[Tensor], latents_at_once: int | None = None
) -> Iterator[Tensor]:
    """Decodes latents that come in pieces; yields frames in pieces.

    Args:
        latents: pieces of any length in time, each [B, C, t', H', W'].
        latents_at_once: latent frames that run together; by default as many as ``PIXELS_AT_ONCE`` allows.

    Yields:
        [B, out, t, H, W] in the VAE's dtype, not clamped; t is 1 at first, then ``latents_at_once`` times the
        temporal
        stride. Concatenated and clamped to [-1, 1], they equal ``vae.decode`` up to rounding.
    """

    def num_latents(piece: Tensor) -> int:
        return latents_at_once or _chunks_at_once(piece.shape, vae.config.scale_factor_spatial)

    cache = _empty_cache(vae.decoder)
    for index, piece in enumerate(_recut(latents, num_latents)):
        hidden = vae.post_quant_conv(piece.to(vae.dtype))
        decoded = vae.decoder(hidden, feat_cache=cache, feat_idx=[0], first_chunk=index == 0)
        yield unpatchify(decoded, vae.config.patch_size or 1)


def num_encoder_calls(shape: torch.Size) -> int:
    """Returns how often ``encode_posterior`` runs the encoder on [B, 3, T, H, W]: the length of a progress bar."""
    return 1 + math.ceil((shape[2] - 1) // FRAMES_PER_CHUNK / _chunks_at_once(shape, 1))


def num_decoder_calls(vae: AutoencoderKLWan, shape: torch.Size) -> int:
    """Returns how often ``decode_logits`` runs the decoder on latents [B, C, T', H', W']."""
    stride = vae.config.scale_factor_spatial
    size = (shape[-2] * stride, shape[-1] * stride)
    if is_tiled(vae, size):
        return _num_tiles(vae, size) * shape[2]
    return 1 + math.ceil((shape[2] - 1) / _chunks_at_once(shape, stride))


def set_tiling(vae: AutoencoderKLWan, tile: tuple[int, int] | None, overlap: int = 64) -> None:
    """Sets whether the VAE decodes large frames in tiles, with the library's tiling.

    Tiles need less memory and change the logits at their seams. A pass holds the activations of one tile, but the
    results
    of all tiles over all frames, so combine tiles with windows. A tile sees no other tile, and the attention of the
    middle
    block sees only the tile.

    Args:
        tile: (height, width) in pixels, multiples of the VAE's stride; smaller frames stay whole. None disables
            tiling.
        overlap: pixels that neighbouring tiles share and blend, a multiple of the stride.

    Raises:
        UserError: if the tiles do not fit the stride or do not exceed the overlap.
    """
    if tile is None:
        vae.disable_tiling()
        return
    stride = vae.config.scale_factor_spatial
    if any(side % stride for side in (*tile, overlap)) or not 0 <= overlap < min(tile):
        raise UserError(
            f"--tiling: tiles of the VAE must be multiples of {stride} and larger than their overlap, got "
            f"{tile[0]} x {tile[1]} and {overlap}"
        )
    vae.enable_tiling(
        tile_sample_min_height=tile[0],
        tile_sample_min_width=tile[1],
        tile_sample_stride_height=tile[0] - overlap,
        tile_sample_stride_width=tile[1] - overlap,
    )


def is_tiled(vae: AutoencoderKLWan, size: tuple[int, int] | torch.Size) -> bool:
    """Whether the VAE decodes frames of (height, width) in pixels in tiles."""
    return vae.use_tiling and (size[0] > vae.tile_sample_min_height or size[1] > vae.tile_sample_min_width)


def _num_tiles(vae: AutoencoderKLWan, size: tuple[int, int] | torch.Size) -> int:
    return math.ceil(size[0] / vae.tile_sample_stride_height) * math.ceil(size[1] / vae.tile_sample_stride_width)


def _chunks_at_once(shape: torch.Size, stride: int) -> int:
    """Returns how many chunks of [B, _, _, H, W] may run together; each position covers ``stride`` pixels per side."""
    return max(1, PIXELS_AT_ONCE // (FRAMES_PER_CHUNK * shape[0] * shape[-2] * shape[-1] * stride**2))


def _empty_cache(network: nn.Module) -> list[Tensor | None]:
    return [None] * sum(isinstance(module, WanCausalConv3d) for module in network.modules())


def _recut(pieces: Iterable[Tensor], length: Callable[[Tensor], int]) -> Iterator[Tensor]:
    """Yields the same frames (dimension 2) in other pieces: one frame, then ``length(piece)`` each, then the rest."""
    rest, wanted = None, 1
    for piece in pieces:
        rest = piece if rest is None or not rest.shape[2] else torch.cat([rest, piece], dim=2)
        while rest.shape[2] >= wanted:
            yield rest[:, :, :wanted]
            rest, wanted = rest[:, :, wanted:], length(piece)
    if rest is not None and rest.shape[2]:
        yield rest
