"""The real model has the published sizes: shapes and names on the meta device, without memory.

The configurations are those of Wan2.1-T2V-1.3B-Diffusers, without values that equal the class defaults.
"""

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

from models.flow import sigma_schedule
from models.flowrvs import FlowRVS
from models.mask_vae import decode_logits

DIT = {
    "attention_head_dim": 128, "cross_attn_norm": True, "eps": 1e-6, "ffn_dim": 8960, "freq_dim": 256,
    "in_channels": 16, "num_attention_heads": 12, "num_layers": 30, "out_channels": 16, "patch_size": [1, 2, 2],
    "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 1024, "text_dim": 4096,
}  # fmt: skip
# Wan2.1-T2V-14B-Diffusers differs only in these.
BIG_DIT = DIT | {"num_attention_heads": 40, "num_layers": 40, "ffn_dim": 13824}
VAE = {
    "base_dim": 96,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
    "z_dim": 16,
}
TEXT = {
    "vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}  # fmt: skip


@pytest.fixture(scope="module")
def real_pipeline(toy_pipeline):
    with torch.device("meta"):
        return FlowRVS(
            WanTransformer3DModel(**DIT | {"in_channels": 32}),
            AutoencoderKLWan(**VAE, out_channels=1),
            UMT5EncoderModel(UMT5Config(**TEXT)),
            toy_pipeline.tokenizer,
        ).to("meta")


def test_dit_with_injection_has_the_published_tensors(real_pipeline):
    tensors = real_pipeline.transformer.state_dict()
    assert len(tensors) == 825
    assert sum(tensor.numel() for tensor in tensors.values()) == 1_419_095_104
    assert tensors["patch_embedding.weight"].shape == (1536, 32, 1, 2, 2)
    assert tensors["blocks.29.ffn.net.2.weight"].shape == (1536, 8960)
    assert tensors["condition_embedder.text_embedder.linear_1.weight"].shape == (1536, 4096)
    assert tensors["proj_out.weight"].shape == (64, 1536)


def test_vae_with_one_channel_head_has_the_published_tensors(real_pipeline):
    tensors = real_pipeline.vae.state_dict()
    assert len(tensors) == 194
    assert tensors["decoder.conv_out.weight"].shape == (1, 96, 3, 3, 3)
    assert tensors["quant_conv.weight"].shape == (32, 32, 1, 1, 1)
    assert tensors["encoder.conv_in.weight"].shape == (96, 3, 3, 3, 3)


def test_text_encoder_has_the_size_of_umt5_xxl(real_pipeline):
    assert sum(p.numel() for p in real_pipeline.text_encoder.parameters()) == pytest.approx(5.7e9, rel=0.01)


def test_defaults_are_those_of_wan21(real_pipeline):
    assert real_pipeline.size_multiple == (16, 16)
    assert real_pipeline.fitted_size(1080, 1920) == (464, 832)
    assert real_pipeline.config.max_sequence_length == 256


@torch.no_grad()
def test_one_step_segments_480_by_832_by_17_in_shape(real_pipeline):
    tokens = torch.zeros(2, 256, dtype=torch.long, device="meta")
    captions = real_pipeline.text_encoder(tokens).last_hidden_state
    video_latents = real_pipeline.encode_video(torch.zeros(1, 3, 17, 480, 832, device="meta"))
    assert video_latents.shape == (1, 16, 5, 60, 104)
    mask_latents = real_pipeline.predict_mask_latents(video_latents, captions, sigma_schedule(1).to("meta"))
    assert mask_latents.shape == (2, 16, 5, 60, 104)
    assert decode_logits(real_pipeline.vae, mask_latents).shape == (2, 1, 17, 480, 832)


def test_a_wan_of_another_size_and_a_vae_of_other_strides_fit_the_same_code(toy_pipeline):
    """The DiT of Wan2.1-14B; the VAE of Wan2.2: stride 16, 48 channels, mask head with one channel per patch pixel."""
    with torch.device("meta"):
        big = BIG_DIT | {"num_layers": 1}
        text = UMT5EncoderModel(UMT5Config(**TEXT | {"num_layers": 1}))
        pipeline = FlowRVS(WanTransformer3DModel(**big), AutoencoderKLWan(**VAE), text, toy_pipeline.tokenizer)
        assert pipeline.size_multiple == (16, 16)
        vae = AutoencoderKLWan(
            **VAE | {"z_dim": 48, "base_dim": 160}, decoder_base_dim=256, is_residual=True, patch_size=2,
            in_channels=12, out_channels=4, scale_factor_spatial=16, latents_mean=[0.0] * 48, latents_std=[1.0] * 48,
        )  # fmt: skip
        dit = WanTransformer3DModel(**big | {"in_channels": 96, "out_channels": 48})
        pipeline = FlowRVS(dit, vae, text, toy_pipeline.tokenizer, box_height=704, box_width=1280).to("meta")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.size_multiple == (32, 32)
    with torch.no_grad():
        video_latents = pipeline.encode_video(torch.zeros(1, 3, 5, 64, 96, device="meta"))
        assert video_latents.shape == (1, 48, 2, 4, 6)
        captions = torch.zeros(1, 8, 4096, device="meta")
        mask_latents = pipeline.predict_mask_latents(video_latents, captions, sigma_schedule(1).to("meta"))
        assert decode_logits(vae, mask_latents).shape == (1, 1, 5, 64, 96)
