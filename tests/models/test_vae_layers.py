"""What makes the VAE sooner or smaller changes nothing else, or by how much."""

import copy
import itertools
import shutil

import pytest
import torch
from diffusers import AutoencoderKLWan

from models import vae_layers
from models.mask_vae import decode_logits, decode_unclamped, encode_posterior
from models.vae_layers import LIBRARY, MOST_VARIANTS, compile_layers, use_fast_layers, use_library_layers
from models.vae_stream import (
    decode_chunks,
    encode_chunks,
    is_tiled,
    num_decoder_calls,
    num_encoder_calls,
    set_tiling,
)
from util.errors import UserError

SMALL = {"base_dim": 4, "num_res_blocks": 1, "out_channels": 1}
LATER = {  # as Wan 2.2 has it: shortcuts around the resampling, and patches
    "base_dim": 4, "decoder_base_dim": 8, "num_res_blocks": 1, "z_dim": 4, "is_residual": True, "in_channels": 12,
    "out_channels": 12, "patch_size": 2, "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4,
    "temperal_downsample": [False, True, True], "scale_factor_spatial": 16,
}  # fmt: skip


def build(config=SMALL):
    torch.manual_seed(0)
    vae = AutoencoderKLWan(**config).eval().requires_grad_(False)
    for name, parameter in vae.named_parameters():
        if name.endswith("gamma"):
            parameter.uniform_(0.5, 1.5)
    return vae


def fast(vae):
    vae = copy.deepcopy(vae)
    use_fast_layers(vae)
    return vae


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def relative_error(value, reference):
    return ((value - reference).norm() / reference.norm()).item()


@pytest.mark.parametrize("config", [SMALL, LATER])
@pytest.mark.parametrize("batch", [1, 2])
@torch.no_grad()
def test_fast_layers_differ_by_rounding_from_the_library_s(config, batch):
    plain, ours = build(config), fast(build(config))
    side = config.get("scale_factor_spatial", 8)
    latents, video = draw(batch, plain.config.z_dim, 3, 2, 3), draw(batch, 3, 9, 2 * side, 3 * side).clamp(-1, 1)
    assert relative_error(ours.decode(latents).sample, plain.decode(latents).sample) < 1e-5
    ours_latents, theirs = (vae.encode(video).latent_dist.parameters for vae in (ours, plain))
    assert relative_error(ours_latents, theirs) < 1e-5


@torch.no_grad()
def test_a_norm_in_pieces_is_the_norm_at_once(monkeypatch):
    ours, latents = fast(build()), draw(2, 16, 2, 4, 6)
    at_once = ours.decode(latents).sample
    monkeypatch.setattr(vae_layers, "BLOCK_BYTES", 500)
    assert relative_error(ours.decode(latents).sample, at_once) < 1e-5


@torch.no_grad()
def test_fast_layers_in_bfloat16_err_no_more_than_the_library_s():
    latents = draw(1, 16, 3, 4, 6)
    exact = build().decode(latents).sample
    plain, ours = build().bfloat16(), fast(build().bfloat16())
    errors = [relative_error(vae.decode(latents.bfloat16()).sample.float(), exact) for vae in (ours, plain)]
    assert errors[0] < 1.2 * errors[1] < 0.1


def test_folded_upsampling_is_upsampling_then_convolution():
    pictures, weight, bias = draw(2, 3, 5, 4).double(), draw(6, 3, 3, 3).double(), draw(6).double()
    doubled = torch.nn.functional.interpolate(pictures, scale_factor=2.0, mode="nearest-exact")
    expected = torch.nn.functional.conv2d(doubled, weight, bias, padding=1)
    torch.testing.assert_close(vae_layers._double_and_convolve(pictures, weight, bias), expected)


def test_gradients_are_the_library_s():
    plain, ours, latents = build(), fast(build()), draw(1, 16, 2, 2, 3)
    gradients = []
    for vae in (plain, ours):
        vae.decoder.requires_grad_(True)
        loss = decode_unclamped(vae, latents).square().mean()
        gradients.append(torch.autograd.grad(loss, list(vae.decoder.parameters())))
    for theirs, own in zip(*gradients, strict=True):
        assert relative_error(own, theirs) < 1e-3


def test_fast_layers_leave_names_and_weights_and_can_be_taken_out(tmp_path):
    plain, ours = build(), fast(build())
    assert any(type(module) in LIBRARY for module in ours.modules())
    ours.save_pretrained(tmp_path)
    again = AutoencoderKLWan.from_pretrained(tmp_path)
    for weights in (ours.state_dict(), again.state_dict()):
        assert list(weights) == list(plain.state_dict())
        assert all(torch.equal(weights[name], tensor) for name, tensor in plain.state_dict().items())
    use_library_layers(ours)
    assert [type(module) for module in ours.modules()] == [type(module) for module in plain.modules()]


@pytest.mark.parametrize("layers", ["library", "fast"])
@torch.no_grad()
def test_one_chunk_at_once_is_bit_equal_and_more_differ_by_rounding(layers):
    vae = build() if layers == "library" else fast(build())
    latents, video = draw(1, 16, 5, 2, 3), draw(1, 3, 17, 16, 24).clamp(-1, 1)
    decoded, encoded = vae.decode(latents).sample, vae.encode(video).latent_dist.parameters
    for at_once in (1, 2, 3, 4):
        several = torch.cat(list(decode_chunks(vae, [latents], at_once)), dim=2).clamp(-1, 1)
        assert relative_error(several, decoded) < 1e-5
        assert relative_error(torch.cat(list(encode_chunks(vae, [video], at_once)), dim=2), encoded) < 1e-5
    # The library runs these 1 x 1 x 1 convolutions over the whole video at once, and some CPUs round a product of
    # another size differently. Without them one chunk at once is the same computation, bit for bit.
    vae.quant_conv = vae.post_quant_conv = torch.nn.Identity()
    decoded, encoded = vae.decode(latents).sample, vae.encode(video).latent_dist.parameters
    assert torch.equal(torch.cat(list(decode_chunks(vae, latents.split(2, dim=2), 1)), dim=2).clamp(-1, 1), decoded)
    assert torch.equal(torch.cat(list(encode_chunks(vae, video.split(3, dim=2), 1)), dim=2), encoded)


@torch.no_grad()
def test_several_latents_at_once_serve_wan_2_2_as_well():
    vae = fast(build(LATER))
    latents, video = draw(1, 4, 4, 2, 2), draw(1, 3, 13, 32, 32).clamp(-1, 1)
    decoded = torch.cat(list(decode_chunks(vae, [latents], 3)), dim=2).clamp(-1, 1)
    assert relative_error(decoded, vae.decode(latents).sample) < 1e-5
    encoded = torch.cat(list(encode_chunks(vae, [video], 3)), dim=2)
    assert relative_error(encoded, vae.encode(video).latent_dist.parameters) < 1e-5


@torch.no_grad()
def test_a_chunk_leaves_before_the_next_is_asked_for_and_passes_may_interleave():
    vae, asked = fast(build()), []

    def pieces():
        for index in range(10**6):  # a video that never ends
            asked.append(index)
            yield draw(1, 16, 1, 2, 3)

    endless = decode_chunks(vae, pieces(), 1)
    other = decode_chunks(vae, [draw(1, 16, 5, 2, 3)], 1)
    chunks = [next(endless) for _ in range(3) if next(other) is not None]
    assert [chunk.shape[2] for chunk in chunks] == [1, 4, 4]
    assert len(asked) == 3
    alone = decode_chunks(vae, itertools.repeat(draw(1, 16, 1, 2, 3)), 1)
    assert all(torch.equal(chunk, next(alone)) for chunk in chunks)


@torch.no_grad()
def test_what_a_stream_holds_does_not_grow():
    vae = fast(build())
    stream = decode_chunks(vae, itertools.repeat(draw(1, 16, 1, 2, 3)), 1)
    held = []
    for _ in range(6):
        next(stream)
        cache = stream.gi_frame.f_locals["cache"]
        held.append(sum(frames.untyped_storage().nbytes() for frames in cache if isinstance(frames, torch.Tensor)))
    assert held[0] < held[1]  # upsamplers begin to remember at the second
    assert len(set(held[1:])) == 1


@torch.no_grad()
def test_a_stream_of_a_length_the_library_would_cut_is_refused():
    with pytest.raises(ValueError, match=r"4n\+1 .* got 2 too many"):
        list(encode_chunks(build(), [draw(1, 3, 7, 8, 8)]))


@torch.no_grad()
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_progress_bars_know_how_often_the_networks_run(tile):
    vae, calls = fast(build()), []
    set_tiling(vae, tile, overlap=8)
    for network in (vae.encoder, vae.decoder):
        network.register_forward_hook(lambda module, *_: calls.append(module))
    video, latents = draw(1, 3, 9, 24, 32).clamp(-1, 1), draw(1, 16, 4, 3, 4)
    encode_posterior(vae, video)
    decode_logits(vae, latents)
    assert calls.count(vae.encoder) == num_encoder_calls(video.shape) > 1
    assert calls.count(vae.decoder) == num_decoder_calls(vae, latents.shape) > 1


@torch.no_grad()
def test_tiles_touch_only_what_is_larger_and_blend_into_the_whole_frame():
    vae, small, large = fast(build()), draw(1, 16, 2, 2, 2), draw(1, 16, 2, 4, 6)
    whole = decode_logits(vae, small), decode_logits(vae, large)
    set_tiling(vae, (16, 24), overlap=8)
    assert not is_tiled(vae, (16, 24))
    assert is_tiled(vae, (16, 32))
    assert torch.equal(decode_logits(vae, small), whole[0])
    tiled = decode_logits(vae, large)
    assert tiled.shape == whole[1].shape
    assert torch.equal(tiled, vae.decode(large).sample)
    assert 0 < relative_error(tiled, whole[1]) < 1
    set_tiling(vae, None)
    assert torch.equal(decode_logits(vae, large), whole[1])


@pytest.mark.parametrize(("tile", "overlap"), [((20, 16), 8), ((16, 16), 16), ((16, 16), 4)])
def test_tiles_that_do_not_fit_are_refused(tile, overlap):
    with pytest.raises(UserError, match="multiples of 8 and larger than their overlap"):
        set_tiling(build(), tile, overlap)


@torch.no_grad()
def test_compiled_layers_are_equal_and_serve_every_length(monkeypatch):
    """Traced, without generating code: further lengths and sizes add no graph, and no limit is why."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(vae_layers._join, dynamic=True, backend=backend)
    monkeypatch.setattr(vae_layers, "_compiled_join", lambda: compiled)
    plain, ours = build(), fast(build())
    compile_layers(ours)
    for batch in (1, 3):
        decode_logits(ours, draw(batch, 16, 3, 2, 3))
        decode_logits(ours, draw(batch, 16, 4, 3, 2))
    num_graphs = len(graphs)
    assert 0 < num_graphs < MOST_VARIANTS / 2
    for shape in ((1, 16, 5, 2, 3), (3, 16, 7, 3, 4)):
        assert relative_error(decode_logits(ours, draw(*shape)), decode_logits(plain, draw(*shape))) < 1e-5
    assert len(graphs) == num_graphs


@torch.no_grad()
def test_layers_take_float64_as_the_librarys_do():
    plain, ours = build().double(), fast(build()).double()
    latents = draw(1, 16, 3, 2, 3).double()
    # The library's upsampling rounds to float32 on its way.
    torch.testing.assert_close(ours.decode(latents).sample, plain.decode(latents).sample, rtol=0, atol=1e-5)


@pytest.mark.skipif(not shutil.which("g++"), reason="no compiler")
@torch.no_grad()
def test_the_compiled_join_is_the_plain_one():
    x, past, gamma = draw(1, 4, 3, 5, 6), draw(1, 4, 2, 5, 6), draw(4)
    torch.testing.assert_close(vae_layers._compiled_join()(past, x, gamma), vae_layers._join(past, x, gamma))
