"""``FlowRVS``: a call equals the method written out, and does no work twice."""

import itertools
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import models.output
from models.flowrvs import FlowRVS
from models.mask_vae import logits_to_masks, resize_logits
from models.weights import load_flowrvs
from util.errors import UserError

ROOT = Path(__file__).parents[2]
SMALL = {"box_height": 16, "box_width": 24}


def video(num_frames=5, height=40, width=72, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


class Calls:
    """Counts how often the pipeline runs each of its networks, and on what."""

    def __init__(self, pipeline):
        self.count, self.timesteps, self.texts = Counter(), [], 0
        self.hooks = [
            pipeline.transformer.register_forward_pre_hook(self.on_dit, with_kwargs=True),
            pipeline.text_encoder.register_forward_pre_hook(self.on_text),
            pipeline.vae.encoder.register_forward_pre_hook(lambda *_: self.count.update(["encode"])),
        ]

    def on_dit(self, module, args, kwargs):
        self.count["dit"] += 1
        self.timesteps.append(kwargs["timestep"][0].item())

    def on_text(self, module, args):
        self.texts += len(args[0])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()


@pytest.mark.parametrize(("num_steps", "grid"), [(1, [1000]), (2, [1000, 750]), (4, [1000, 900, 750, 501])])
def test_n_steps_evaluate_the_dit_n_times_on_the_grid(toy_pipeline, num_steps, grid):
    with Calls(toy_pipeline) as calls:
        toy_pipeline(video(), "a dog", num_steps=num_steps)
    assert calls.timesteps == grid


def test_video_is_encoded_once_for_all_prompts_and_each_distinct_caption_once(toy_pipeline):
    with Calls(toy_pipeline) as calls:
        result = toy_pipeline(video(9), ["a dog", "a cat", " a  dog "], prompt_batch=2)
    assert calls.count == {"encode": 2, "dit": 1}  # 1 + 8 frames; two captions in one batch
    assert calls.texts == 2
    assert torch.equal(result.logits[0], result.logits[2])
    assert not torch.equal(result.logits[0], result.logits[1])


def test_prompt_batches_change_no_more_than_rounding(toy_pipeline):
    prompts = ["a dog", "a cat", "the red circle"]
    together = toy_pipeline(video(), prompts, prompt_batch=3)
    apart = toy_pipeline(video(), prompts, prompt_batch=1)
    torch.testing.assert_close(together.logits, apart.logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_steps", [1, 3])
def test_a_call_equals_the_method_written_out(toy_pipeline, num_steps):
    frames = video(6, 100, 150)  # fits to 64 x 96; padded to 9 frames
    vae, dit = toy_pipeline.vae, toy_pipeline.transformer
    with torch.no_grad():
        fitted = [np.asarray(Image.fromarray(frame).resize((96, 64), Image.Resampling.BILINEAR)) for frame in frames]
        pixels = torch.from_numpy(np.stack(fitted + fitted[-1:] * 3)).permute(3, 0, 1, 2)[None] / 255
        z = vae.encode((pixels - 0.5) / 0.5).latent_dist.mean
        z = (z - torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)) / torch.tensor(
            vae.config.latents_std
        ).view(1, -1, 1, 1, 1)
        tokens = toy_pipeline.tokenizer(["a dog"], padding="max_length", max_length=32, return_tensors="pt")
        text = toy_pipeline.text_encoder(**tokens).last_hidden_state * tokens.attention_mask[..., None]
        latents, grid = z, {1: [1000, 0], 3: [1000, 857, 601, 0]}[num_steps]
        for now, then in itertools.pairwise(grid):
            latents = latents + (then - now) / 1000 * dit(latents, torch.tensor([now]), text).sample
        decoded = vae.decode(latents).sample.mean(1)[:, :6]
        logits = torch.nn.functional.interpolate(decoded, size=(100, 150), mode="bilinear", align_corners=False)
    result = toy_pipeline(frames, "a dog", num_steps=num_steps)
    torch.testing.assert_close(result.logits, logits, rtol=0, atol=1e-4)
    assert ((result.logits > 0).numpy() == result.masks).all()


@pytest.mark.parametrize("num_frames", [1, 2, 4, 5, 6])
def test_any_number_of_frames_gives_as_many_masks_at_source_size(toy_pipeline, num_frames):
    result = toy_pipeline(video(num_frames, 37, 51), ["a dog", "a cat"])
    assert result.logits.shape == result.masks.shape == (2, num_frames, 37, 51)
    assert result.masks.dtype == np.bool_


def test_repeated_last_frames_do_not_reach_earlier_predictions_of_whole_clips(toy_pipeline):
    frames = video(5)
    longer = np.concatenate([frames, np.repeat(frames[-1:], 4, axis=0)])
    assert torch.equal(toy_pipeline(longer[:8], "a").logits[:, :8], toy_pipeline(longer, "a").logits[:, :8])


def test_arrays_tensors_and_pictures_give_the_same(toy_pipeline):
    frames = video(5, 64, 96)  # already fitted, so that floats go through no 8-bit resize
    tensor = torch.from_numpy(frames).permute(0, 3, 1, 2)
    reference = toy_pipeline(frames, "a dog").logits
    for form in (tensor, tensor / 127.5 - 1, [Image.fromarray(f) for f in frames], list(frames)):
        torch.testing.assert_close(toy_pipeline(form, "a dog").logits, reference, rtol=0, atol=1e-6)


def test_float_frames_are_resized_as_bytes(toy_pipeline):
    frames = video(1, 100, 150)
    tensor = torch.from_numpy(frames).permute(0, 3, 1, 2) / 127.5 - 1
    assert torch.equal(toy_pipeline(tensor, "a dog").logits, toy_pipeline(frames, "a dog").logits)


def test_output_size_box_and_threshold_are_followed(toy_pipeline):
    result = toy_pipeline(video(), "a dog", box_height=32, box_width=32, output_size=(11, 13), threshold=0.6)
    assert result.logits.shape == (1, 5, 11, 13)
    assert (result.masks == (torch.sigmoid(result.logits) > 0.6).numpy()).all()
    assert toy_pipeline.fitted_size(40, 72, 32, 32) == (16, 32)
    assert toy_pipeline.fitted_size(40, 72) == (56, 112)


@pytest.mark.parametrize(
    ("frames", "match"),
    [
        (video(0), "at least one frame"),
        (video()[0], r"\[T, H, W, 3\]"),
        (video().astype(np.float32), "uint8"),
        (torch.zeros(2, 8, 8, 3), r"\[T, 3, H, W\]"),
        (torch.full((2, 3, 8, 8), 7.0), r"\[-1, 1\]"),
        (torch.full((2, 3, 8, 8), torch.nan), r"\[-1, 1\]"),
        ([Image.new("RGB", (8, 8)), Image.new("RGB", (9, 8))], "share one size"),
    ],
)
def test_frames_of_another_form_are_refused(toy_pipeline, frames, match):
    with pytest.raises(UserError, match=match):
        toy_pipeline(frames, "a dog")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_steps": 0}, "num_steps"),
        ({"threshold": 0.9}, "threshold"),
        ({"prompt_batch": 0}, "prompt_batch"),
        ({"box_height": 4}, "box_height"),
    ],
)
def test_options_out_of_range_are_refused(toy_pipeline, options, match):
    with pytest.raises(ValueError, match=match):
        toy_pipeline(video(1), "a dog", **options)


def test_a_video_beyond_the_rotary_tables_is_refused_before_it_is_encoded(toy_pipeline):
    limit = 1 + (toy_pipeline.transformer.config.rope_max_seq_len - 1) * 4
    frames = np.broadcast_to(video(1, 8, 8), (limit + 1, 8, 8, 3))
    with Calls(toy_pipeline) as calls, pytest.raises(UserError, match=f"at most {limit}"):
        toy_pipeline(frames, "a dog")
    assert not calls.count


def run_out_of_gpu_memory(*_):
    raise torch.OutOfMemoryError("CUDA out of memory")


def run_out_of_memory(*_):
    torch.empty(1 << 60)


@pytest.mark.parametrize("run_out", [run_out_of_gpu_memory, run_out_of_memory])
def test_out_of_memory_says_what_to_lower(toy_pipeline, monkeypatch, run_out):
    monkeypatch.setattr(toy_pipeline, "encode_video", run_out)
    with pytest.raises(UserError, match="--prompt_batch"):
        toy_pipeline(video(), "a dog")


def test_other_errors_of_torch_are_not_taken_for_memory(toy_pipeline, monkeypatch):
    monkeypatch.setattr(toy_pipeline, "encode_video", lambda *_: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        toy_pipeline(video(), "a dog")


def test_parts_of_different_models_are_refused(toy_folder, toy_pipeline):
    parts = dict(toy_pipeline.components)
    with pytest.raises(UserError, match="embedding width"):
        FlowRVS(**parts | {"text_encoder": type(parts["text_encoder"])(narrower(parts["text_encoder"].config))})


def narrower(config):
    return type(config)(**config.to_dict() | {"d_model": 32})


def test_a_saved_pipeline_reloads_in_a_fresh_process_with_library_classes_only(toy_folder, tmp_path):
    pipeline = load_flowrvs(str(toy_folder)).pipeline
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(video(), "a dog").logits
    pipeline.save_pretrained(tmp_path / "saved")
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert {entry[0] for entry in index.values() if isinstance(entry, list)} == {"diffusers", "transformers"}
    assert (index["box_height"], index["box_width"], index["max_sequence_length"]) == (64, 112, 32)
    np.save(tmp_path / "video.npy", video())
    script = (
        "import sys, numpy as np; from models.flowrvs import FlowRVS; folder = sys.argv[1]\n"
        "pipeline = FlowRVS.from_pretrained(folder + '/saved')\n"
        "np.save(folder + '/logits.npy', pipeline(np.load(folder + '/video.npy'), 'a dog').logits.numpy())"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected.numpy(), rtol=0, atol=1e-5)


def test_a_bf16_pipeline_keeps_what_the_library_keeps_in_float32(toy_folder):
    pipeline = load_flowrvs(str(toy_folder), dtype=torch.bfloat16).pipeline
    pipeline.set_progress_bar_config(disable=True)
    dit = pipeline.transformer
    assert dit.patch_embedding.weight.dtype == pipeline.vae.dtype == torch.bfloat16
    assert dit.rope.freqs_cos.dtype == dit.scale_shift_table.dtype == torch.float32
    assert dit.condition_embedder.time_embedder.linear_1.weight.dtype == torch.float32
    full = load_flowrvs(str(toy_folder)).pipeline
    full.set_progress_bar_config(disable=True)
    difference = pipeline(video(), "a dog").logits - full(video(), "a dog").logits
    assert 0 < difference.norm() / full(video(), "a dog").logits.norm() < 0.1


def test_progress_bars_leave_the_result_alone_and_can_be_silenced(toy_folder, capfd):
    pipeline = load_flowrvs(str(toy_folder)).pipeline
    capfd.readouterr()
    loud = pipeline(video(), "a dog").logits
    shown = capfd.readouterr().err
    assert all(title in shown for title in ("encode video", "predict masks", "decode masks"))
    pipeline.set_progress_bar_config(disable=True)
    assert torch.equal(pipeline(video(), "a dog").logits, loud)
    assert capfd.readouterr().err == ""


# What a call holds


def test_a_call_resizes_one_frame_at_a_time_and_keeps_one_bit_a_pixel(toy_pipeline, monkeypatch):
    sizes = []

    def recorded(logits, size):
        resized = resize_logits(logits, size)
        sizes.append(resized.numel())
        return resized

    monkeypatch.setattr(models.output, "resize_logits", recorded)
    result = toy_pipeline(video(5), ["a dog", "a cat"], **SMALL, output_size=(200, 300))
    assert max(sizes) == 2 * 200 * 300
    assert result.packed_masks.nbytes == 2 * 5 * 200 * 300 / 8
    assert result.model_logits.shape[2:] == toy_pipeline.fitted_size(40, 72, **SMALL)


def test_masks_frame_by_frame_are_the_masks_and_those_of_the_logits(toy_pipeline):
    result = toy_pipeline(video(5), ["a dog", "a cat", "a  dog"], **SMALL, output_size=(21, 30), threshold=0.51)
    assert np.array_equal(np.stack(list(result.iter_masks()), axis=1), result.masks)
    assert np.array_equal(result.masks, logits_to_masks(result.logits, 0.51))
    assert np.array_equal(result.masks[0], result.masks[2])
    assert 0 < result.masks.mean() < 1
