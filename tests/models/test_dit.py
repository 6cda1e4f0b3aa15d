"""The velocity field: direct video injection, widening, number formats."""

import pytest
import torch
from diffusers import WanTransformer3DModel

from models.dit import config_for_weights, has_injection, predict_velocity, with_injection
from util.errors import UserError


def tiny_dit(in_channels=16, seed=0):
    torch.manual_seed(seed)
    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=in_channels,
        out_channels=16,
        text_dim=8,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
    ).eval()


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    return draw(2, 16, 3, 4, 6), draw(2, 16, 3, 4, 6), torch.tensor([1.0, 0.3]), draw(2, 5, 8)


@torch.no_grad()
def test_widened_dit_equals_the_narrow_one_at_start(inputs):
    narrow, wide = tiny_dit(16), with_injection(tiny_dit(16))
    assert wide.config.in_channels == 32
    assert has_injection(wide)
    assert not has_injection(narrow)
    torch.testing.assert_close(predict_velocity(wide, *inputs), predict_velocity(narrow, *inputs), rtol=0, atol=1e-6)


@torch.no_grad()
def test_injected_video_comes_after_the_latents_on_the_channel_axis(inputs):
    wide = tiny_dit(32)
    latents, video, sigma, text = inputs
    direct = wide(torch.cat([latents, video], 1), (1000 * sigma).round(), text, return_dict=False)[0]
    assert torch.equal(predict_velocity(wide, latents, video, sigma, text), direct)


@torch.no_grad()
def test_injection_makes_the_velocity_depend_on_the_clean_video(inputs):
    latents, video, sigma, text = inputs
    for channels, depends in ((16, False), (32, True)):
        dit = tiny_dit(channels)
        moved = predict_velocity(dit, latents, video + 1, sigma, text) - predict_velocity(
            dit, latents, video, sigma, text
        )
        assert bool(moved.abs().max() > 1e-4) is depends


@torch.no_grad()
def test_a_bf16_dit_answers_in_the_dtype_of_the_latents_and_close(inputs):
    dit = tiny_dit(32)
    reference = predict_velocity(dit, *inputs)
    half = predict_velocity(dit.to(torch.bfloat16), *inputs)
    assert half.dtype == torch.float32
    assert (half - reference).norm() / reference.norm() < 0.05  # 8 bits of mantissa through two layers


def test_injection_is_read_off_the_weights():
    config = dict(tiny_dit(16).config)
    for channels in (16, 32):
        weights = {"patch_embedding.weight": torch.zeros(32, channels, 1, 2, 2)}
        assert config_for_weights(config, weights, "a.pth")["in_channels"] == channels


@pytest.mark.parametrize("shape", [(32, 20, 1, 2, 2), (32, 16)])
def test_another_number_of_input_channels_is_refused(shape):
    with pytest.raises(UserError, match=r"a\.pth.*patch_embedding"):
        config_for_weights(dict(tiny_dit(16).config), {"patch_embedding.weight": torch.zeros(shape)}, "a.pth")
