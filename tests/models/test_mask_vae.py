"""Latent conventions that released weights depend on."""

import pytest
import torch
from diffusers import AutoencoderKLWan

from models.mask_vae import (
    check_strides,
    config_for_weights,
    decode_logits,
    decode_unclamped,
    encode_masks,
    encode_posterior,
    encode_video,
    logits_to_masks,
    padded_num_frames,
    resize_logits,
    sample_posterior,
    with_mask_head,
)
from util.errors import UserError

MEAN, STD = [0.1 * i - 0.5 for i in range(16)], [1 + 0.1 * i for i in range(16)]


def tiny_vae(out_channels=3, **config):
    torch.manual_seed(0)
    config = {
        "base_dim": 4, "z_dim": 16, "dim_mult": [1, 2], "num_res_blocks": 1, "temperal_downsample": [True],
        "latents_mean": MEAN, "latents_std": STD, "scale_factor_spatial": 2, "scale_factor_temporal": 2,
        "out_channels": out_channels, **config,
    }  # fmt: skip
    return AutoencoderKLWan(**config).eval().requires_grad_(False)


def clip(num_frames=5, channels=3):
    return torch.rand(1, channels, num_frames, 8, 12, generator=torch.Generator().manual_seed(2)) * 2 - 1


def test_video_latents_are_the_normalised_posterior_mean():
    vae = tiny_vae()
    posterior = vae.encode(clip()).latent_dist
    expected = (posterior.mean - torch.tensor(MEAN).view(1, -1, 1, 1, 1)) / torch.tensor(STD).view(1, -1, 1, 1, 1)
    torch.testing.assert_close(encode_video(vae, clip()), expected)


def test_sampling_the_posterior_moves_by_its_standard_deviation():
    posterior = tiny_vae().encode(clip()).latent_dist
    mean, log_variance = encode_posterior(tiny_vae(), clip())
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    sampled = sample_posterior(mean, log_variance, noise)
    torch.testing.assert_close(sampled, posterior.mean + posterior.std * noise)


def test_mask_head_starts_as_the_mean_of_the_rgb_head_and_leaves_the_stock_vae_alone():
    latents = torch.randn(1, 16, 3, 4, 6, generator=torch.Generator().manual_seed(4))
    stock = tiny_vae()
    before = {name: value.clone() for name, value in stock.state_dict().items()}
    tuned = with_mask_head(stock)
    assert tuned.config.out_channels == 1
    unclamped = decode_unclamped(stock, latents).mean(1, keepdim=True)
    torch.testing.assert_close(decode_unclamped(tuned, latents), unclamped, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(stock.state_dict()[name], before[name]) for name in before)


def test_unclamped_output_clamped_is_the_library_s_and_has_gradients_beyond():
    latents = 30 * torch.randn(1, 16, 3, 4, 6, generator=torch.Generator().manual_seed(4))
    vae = tiny_vae(1)
    with torch.no_grad():
        vae.decoder.conv_out.weight *= 30
    latents.requires_grad_(True)
    unclamped = decode_unclamped(vae, latents)
    assert unclamped.abs().max() > 1
    torch.testing.assert_close(unclamped.clamp(-1, 1), vae.decode(latents).sample, rtol=1e-4, atol=1e-5)
    (beyond,) = torch.autograd.grad(unclamped[unclamped.abs() > 1].sum(), latents)
    assert beyond.abs().max() > 0


def test_mask_latents_are_raw_and_come_from_a_black_and_white_picture():
    vae = tiny_vae()
    masks = (clip(channels=1) > 0).float()
    picture = torch.where(masks > 0, 1.0, -1.0).repeat(1, 3, 1, 1, 1)
    torch.testing.assert_close(encode_masks(vae, masks), vae.encode(picture).latent_dist.mean)


def test_one_channel_decoder_gives_its_clamped_output_and_stock_decoder_the_mean_of_its_channels():
    latents = 3 * torch.randn(1, 16, 3, 4, 6, generator=torch.Generator().manual_seed(4))
    for channels in (1, 3):
        vae = tiny_vae(channels)
        decoded = vae.decode(latents).sample
        logits = decode_logits(vae, latents)
        assert logits.shape == (1, 1, 5, 8, 12)
        assert logits.abs().max() <= 1
        torch.testing.assert_close(logits, decoded.mean(1, keepdim=True))


@pytest.mark.parametrize("num_frames", [2, 3, 4, 6, 16])
def test_a_length_the_library_would_cut_silently_is_refused(num_frames):
    for encode in (
        lambda: encode_video(tiny_vae(), clip(num_frames)),
        lambda: encode_masks(tiny_vae(), clip(num_frames, 1)),
    ):
        with pytest.raises(ValueError, match=f"num_frames must be 4n.1 .* got {num_frames}"):
            encode()


def test_padding_reaches_the_next_4n_plus_1():
    assert [padded_num_frames(n) for n in range(1, 11)] == [1, 5, 5, 5, 5, 9, 9, 9, 9, 13]


def test_strides_in_the_config_must_match_the_layers():
    check_strides(tiny_vae())
    with pytest.raises(UserError, match="scale_factor_spatial must be 2"):
        check_strides(tiny_vae(scale_factor_spatial=8))
    with pytest.raises(UserError, match="scale_factor_temporal must be 2"):
        check_strides(tiny_vae(scale_factor_temporal=4))


def test_number_of_output_channels_is_read_off_the_weights():
    config = dict(tiny_vae().config)
    for channels in (1, 3):
        weights = {"decoder.conv_out.weight": torch.zeros(channels, 4, 3, 3, 3)}
        assert config_for_weights(config, weights, "v.pth")["out_channels"] == channels
    with pytest.raises(UserError, match=r"v\.pth.*got 2"):
        config_for_weights(config, {"decoder.conv_out.weight": torch.zeros(2, 4, 3, 3, 3)}, "v.pth")


def test_logits_are_resized_before_the_threshold():
    logits = torch.tensor([[[1.0, -0.2], [-0.2, -0.2]]])
    resized = resize_logits(logits, (4, 4))
    # Half-pixel centres: the four corners keep their values, the middle mixes 9:3:3:1 sixteenths.
    assert resized[0, 0, 0] == 1
    torch.testing.assert_close(resized[0, 1, 1], torch.tensor((9 - 0.2 * 7) / 16))
    smooth, blocky = logits_to_masks(resized), logits_to_masks(logits).repeat(2, 1).repeat(2, 2)
    assert smooth.sum() > blocky.sum()


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_threshold_is_on_the_sigmoid(threshold):
    logits = torch.linspace(-1, 1, 100).view(1, 1, -1)  # none within rounding of a threshold
    assert (logits_to_masks(logits, threshold) == (torch.sigmoid(logits) > threshold).numpy()).all()


def test_a_vae_whose_published_config_leaves_out_channels_out_gets_a_mask_head():
    options = {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 2], "num_res_blocks": 1, "temperal_downsample": [False]}
    tuned = with_mask_head(AutoencoderKLWan.from_config(options))
    assert tuned.decoder.conv_out.out_channels == tuned.config.out_channels == 1
