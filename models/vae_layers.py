"""Faster versions of diffusers' Wan VAE layers that can be swapped into a loaded VAE and back.

Every layer keeps its parameters, their names and the library's causal cache, so weights load and save as before, and
the library's encode, decode and tiling run on these layers. What is faster:

- Convolutions pad height and width themselves. Only the two frames before a chunk are concatenated to it, in the
buffer
  into which norm and SiLU write.
- Activations stay channels last. The norm runs along memory, in blocks that stay in the processor's cache.
- Nearest upsampling and the 3 x 3 convolution after it are one 2 x 2 convolution of the smaller frame (float32).
- float32 on a CPU always runs in oneDNN. Torch chooses a path that is several times slower where activations are
small.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanCausalConv3d,
    WanResample,
    WanResidualBlock,
    WanRMS_norm,
)
from torch import Tensor, nn

Cache: TypeAlias = list[Any]  # of the library: per causal convolution None, the cached frames, or FIRST_SEEN
PAST = 2  # frames before a chunk that a causal convolution of size 3 sees
FIRST_SEEN = "Rep"  # the library's mark that an upsampler has seen the first frame, which is not doubled
BLOCK_BYTES = 2**19  # float32 activations that norm and SiLU process at once on a CPU; half of a usual L2 cache
MOST_VARIANTS = 32  # variants of the compiled kernel; with torch's limit of 8 it would stop compiling within a video
SMALLEST_NORM = 1e-12  # as in F.normalize, which the library calls
# Rows of a 3-tap kernel that fall on the same row of the frame before doubling: [output parity, tap of 2, tap of 3].
FOLDING = (((1.0, 0.0, 0.0), (0.0, 1.0, 1.0)), ((1.0, 1.0, 0.0), (0.0, 0.0, 1.0)))


def use_fast_layers(vae: AutoencoderKLWan) -> None:
    """Swaps the layers of this module into ``vae``, in place. Parameters and their names stay.

    Results differ from the library's by rounding: a relative error of float32 logits of about 1e-6.
    """
    for module in vae.modules():
        fast = FAST.get(type(module))
        if fast is not None:
            module.__class__ = fast
    use_channels_last(vae)


def use_library_layers(vae: AutoencoderKLWan) -> None:
    """Undoes ``use_fast_layers``, except the memory layout of the weights."""
    for module in vae.modules():
        if type(module) in LIBRARY:
            module.__class__ = LIBRARY[type(module)]


def use_channels_last(vae: AutoencoderKLWan) -> None:
    """Converts the convolution weights to channels last, in place: faster, with equal results up to rounding."""
    for module in vae.modules():
        if isinstance(module, nn.Conv3d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
        elif isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)


def compile_layers(vae: AutoencoderKLWan, enabled: bool = True) -> None:
    """Compiles norm, SiLU and the concatenation with cached frames of every residual block into one kernel.

    Convolutions stay those of the libraries. Sizes are symbolic, so other lengths and frame sizes do not compile
    again. A
    dozen variants do: one frame or several, one clip or several. Calls ``use_fast_layers``.
    """
    use_fast_layers(vae)
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, MOST_VARIANTS)
    for module in vae.modules():
        if isinstance(module, ResidualBlock):
            module.compiled = enabled


class CausalConv(WanCausalConv3d):
    """The library's causal convolution, but only time is padded by hand."""

    def forward(self, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        if self.kernel_size[0] > 1 and self._padding[4] > 0:
            x = torch.cat([_past(x, cache_x), x], dim=2)
        return self.of_joined(x)

    def of_joined(self, x: Tensor) -> Tensor:
        """Convolves frames that already begin with the cached ones."""
        return _convolve(x, self.weight, self.bias, self.stride, (0, self._padding[2], self._padding[0]))


class RMSNorm(WanRMS_norm):
    """The library's norm over channels, ``x / |x| * sqrt(C) * gamma``."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or not self.channel_first:
            return super().forward(x)
        normed = torch.empty_like(x, memory_format=_channels_last(x))
        _normalise_into(normed, x, self.gamma, silu=False)
        return normed


class ResidualBlock(WanResidualBlock):
    """Norm, SiLU and causal convolution, twice, plus the shortcut."""

    compiled = False

    def forward(self, x: Tensor, feat_cache: Cache | None = None, feat_idx: list[int] | None = None) -> Tensor:
        shortcut = self.conv_shortcut(x)
        hidden = self._half(self.norm1, self.conv1, x, feat_cache, feat_idx)
        hidden = self._half(self.norm2, self.conv2, self.dropout(hidden), feat_cache, feat_idx)
        return hidden + shortcut if torch.is_grad_enabled() else hidden.add_(shortcut)

    def _half(
        self, norm: RMSNorm, conv: CausalConv, x: Tensor, feat_cache: Cache | None, feat_idx: list[int] | None
    ) -> Tensor:
        cached = feat_cache[feat_idx[0]] if feat_cache is not None and feat_idx is not None else None
        joined = _joined(_past(x, cached), x, norm, self.compiled)  # [B, C, 2 + T, H, W]
        if feat_cache is not None and feat_idx is not None:
            _store(feat_cache, feat_idx, joined)
        return conv.of_joined(joined)


class Resample(WanResample):
    """Down- and upsampling in space; the 3d modes also in time."""

    def forward(self, x: Tensor, feat_cache: Cache | None = None, feat_idx: list[int] | None = None) -> Tensor:
        batch = len(x)
        if self.mode == "upsample3d" and feat_cache is not None and feat_idx is not None:
            x = self._double_frames(x, feat_cache, feat_idx)
        frames = x.transpose(1, 2).flatten(0, 1)  # [B T, C, H, W]
        frames = self._halve(frames) if self.mode.startswith("down") else self._double(frames)
        x = frames.unflatten(0, (batch, -1)).transpose(1, 2)
        if self.mode == "downsample3d" and feat_cache is not None and feat_idx is not None:
            x = self._halve_frames(x, feat_cache, feat_idx)
        return x

    def _double_frames(self, x: Tensor, feat_cache: Cache, feat_idx: list[int]) -> Tensor:
        cached = feat_cache[feat_idx[0]]
        if cached is None:
            feat_cache[feat_idx[0]] = FIRST_SEEN
            feat_idx[0] += 1
            return x
        joined = torch.cat([_past(x, cached), x], dim=2)
        _store(feat_cache, feat_idx, joined)
        pairs = self.time_conv.of_joined(joined).unflatten(1, (2, -1))  # [B, 2, C, T, H, W]
        return pairs.permute(0, 3, 1, 4, 5, 2).flatten(1, 2).movedim(-1, 1)

    def _halve_frames(self, x: Tensor, feat_cache: Cache, feat_idx: list[int]) -> Tensor:
        cached = feat_cache[feat_idx[0]]
        feat_cache[feat_idx[0]] = x[:, :, -1:].clone()
        feat_idx[0] += 1
        return x if cached is None else self.time_conv.of_joined(torch.cat([cached, x], dim=2))

    def _halve(self, frames: Tensor) -> Tensor:
        conv = self.resample[1]
        return _convolve(F.pad(frames, (0, 1, 0, 1)), conv.weight, conv.bias, conv.stride, (0, 0))

    def _double(self, frames: Tensor) -> Tensor:
        conv = self.resample[1]
        if conv.weight.dtype != torch.float32:  # bfloat16 would round the sums of weights once more
            doubled = F.interpolate(frames, scale_factor=2.0, mode="nearest-exact")
            return _convolve(doubled, conv.weight, conv.bias, conv.stride, conv.padding)
        return _double_and_convolve(frames, conv.weight, conv.bias)


FAST: dict[type[nn.Module], type[nn.Module]] = {
    WanCausalConv3d: CausalConv,
    WanRMS_norm: RMSNorm,
    WanResidualBlock: ResidualBlock,
    WanResample: Resample,
}
LIBRARY = {fast: library for library, fast in FAST.items()}


def _past(x: Tensor, cached: Tensor | str | None) -> Tensor:
    """Returns the two frames before ``x``: from the cache, or zeros at the start."""
    if not isinstance(cached, Tensor):
        return x.new_zeros(1).expand(*x.shape[:2], PAST, *x.shape[3:])
    return F.pad(cached, (0, 0, 0, 0, PAST - cached.shape[2], 0)) if cached.shape[2] < PAST else cached


def _store(feat_cache: Cache, feat_idx: list[int], joined: Tensor) -> None:
    # A view would keep the whole buffer.
    feat_cache[feat_idx[0]] = joined[:, :, -PAST:].clone()
    feat_idx[0] += 1


def _joined(past: Tensor, x: Tensor, norm: RMSNorm, compiled: bool) -> Tensor:
    """Concatenates ``past`` and SiLU(norm(``x``)) in time."""
    if compiled:
        # Flattened: the compiler treats the sizes of a parameter as constants.
        return _compiled_join()(past, x, norm.gamma.flatten())
    if torch.is_grad_enabled():
        return torch.cat([past, F.silu(norm(x))], dim=2)
    batch, channels, num_frames, height, width = x.shape
    joined = x.new_empty(batch, PAST + num_frames, height, width, channels).movedim(-1, 1)
    joined[:, :, :PAST] = past
    _normalise_into(joined[:, :, PAST:], x, norm.gamma, silu=True)
    return joined


@functools.cache
def _compiled_join() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return torch.compile(_join, dynamic=True)


def _join(past: Tensor, x: Tensor, gamma: Tensor) -> Tensor:
    """The same as ``_joined``, as one expression for the compiler; channels last."""
    rows = x.movedim(1, -1)
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=_norm_dtype(x)).clamp_min(SMALLEST_NORM)
    normed = (rows * (x.shape[1] ** 0.5 / norm)).to(x.dtype) * gamma
    return torch.cat([past.movedim(1, -1), F.silu(normed)], dim=1).movedim(-1, 1)


def _normalise_into(out: Tensor, x: Tensor, gamma: Tensor, silu: bool) -> None:
    """Writes ``x / |x| * sqrt(C) * gamma``, or its SiLU, into ``out``; both [B, C, ...]."""
    num_channels, weights = x.shape[1], gamma.flatten()
    piece = x[0, 0].numel() if x.device.type != "cpu" else max(1, BLOCK_BYTES // (4 * num_channels))
    for rows, out_rows in zip(x.movedim(1, -1), out.movedim(1, -1), strict=True):
        pieces = rows.reshape(-1, num_channels).split(piece)
        for source, target in zip(pieces, out_rows.view(-1, num_channels).split(piece), strict=True):
            norm = torch.linalg.vector_norm(source, dim=-1, keepdim=True, dtype=_norm_dtype(source))
            scale = norm.clamp_min_(SMALLEST_NORM).reciprocal_().mul_(num_channels**0.5)
            torch.mul(source, scale, out=target)
            target.mul_(weights)
            if silu:
                F.silu(target, inplace=True)


def _norm_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _double_and_convolve(frames: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Doubles [N, C, H, W] by repetition and convolves with [O, C, 3, 3], padding 1, to [N, O, 2 H, 2 W].

    Each output pixel sees 2 x 2 different input pixels; which ones depends on its parity. So four small kernels do
    it, with
    16 / 36 of the multiplications.
    """
    folding = torch.tensor(FOLDING, dtype=weight.dtype, device=weight.device)
    folded = torch.einsum("pik,qjl,ockl->pqocij", folding, folding, weight).flatten(0, 2)
    folded = folded.contiguous(memory_format=torch.channels_last)
    num, _, height, width = frames.shape
    by_parity = _convolve(frames, folded, bias.repeat(4), (1, 1), (1, 1)).unflatten(1, (2, 2, -1))
    out = frames.new_empty(num, 2 * height, 2 * width, len(bias)).movedim(-1, 1)
    for row in range(2):
        for column in range(2):
            rows = by_parity[:, row, column, :, row : row + height, column : column + width]
            out[:, :, row::2, column::2] = rows
    return out


def _convolve(x: Tensor, weight: Tensor, bias: Tensor, stride: tuple[int, ...], padding: tuple[int, ...]) -> Tensor:
    if x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        return torch.mkldnn_convolution(x, weight, bias, padding, stride, (1,) * len(stride), 1)
    return F.conv3d(x, weight, bias, stride, padding) if x.ndim == 5 else F.conv2d(x, weight, bias, stride, padding)


def _channels_last(x: Tensor) -> torch.memory_format:
    return torch.channels_last_3d if x.ndim == 5 else torch.channels_last
