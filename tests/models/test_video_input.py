"""What the pipeline takes as frames, and the three lines of a notebook."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from util.errors import UserError
from util.video import read_video, write_overlay
from util.video_writer import VideoWriter


@pytest.fixture
def video_file(tmp_path):
    frames = np.random.default_rng(2).integers(0, 256, (5, 24, 32, 3), np.uint8)
    with VideoWriter(tmp_path / "clip.mp4", Fraction(10)) as writer:
        for frame in frames:
            writer.write(frame)
    return tmp_path / "clip.mp4"


def test_every_form_of_a_video_gives_the_same_masks(toy_pipeline, video_file):
    video = read_video(video_file)
    forms = {
        "path": video_file,
        "text": str(video_file),
        "video": video,
        "array": video.frames,
        "tensor": torch.from_numpy(video.frames).permute(0, 3, 1, 2),
        "list of arrays": list(video.frames),
        "generator": (frame for frame in video.frames),
        "PIL images": map(Image.fromarray, video.frames),
        "float tensor": torch.from_numpy(video.frames).permute(0, 3, 1, 2) / 127.5 - 1,
    }
    results = {name: toy_pipeline(form, "a dog").masks for name, form in forms.items()}
    for name, masks in results.items():
        assert masks.shape == (1, 5, 24, 32), name
        if name != "float tensor":  # another rounding
            assert (masks == results["array"]).all(), name


def test_one_pil_image_is_a_video_of_one_frame(toy_pipeline, video_file):
    frame = read_video(video_file).frames[0]
    masks = toy_pipeline(Image.fromarray(frame), "a dog").masks
    assert (masks == toy_pipeline(frame[None], "a dog").masks).all()


def test_a_file_is_fitted_in_the_shape_in_which_it_is_shown(toy_pipeline, tmp_path):
    with VideoWriter(tmp_path / "flat.mp4", Fraction(10), pixel_aspect=Fraction(2)) as writer:
        writer.write(np.zeros((32, 32, 3), np.uint8))
    result = toy_pipeline(tmp_path / "flat.mp4", "a dog", box_height=64, box_width=64)
    assert result.model_logits.shape[-2:] == (32, 64)
    assert result.masks.shape[-2:] == (32, 32)


@pytest.mark.parametrize("frames", [5, None, {"a": 1}.get("b"), [1, 2], [None], 3.5, object()])
def test_another_type_is_a_type_error_that_names_what_is_taken(toy_pipeline, frames):
    with pytest.raises(TypeError, match=r"frames must be a path.*PIL image.*got"):
        toy_pipeline(frames, "a dog")


@pytest.mark.parametrize("prompts", [5, ["a dog", 3], {"a dog"}])
def test_prompts_of_another_type_are_a_type_error(toy_pipeline, prompts):
    with pytest.raises(TypeError, match="prompts must be a string or a list of strings"):
        toy_pipeline(np.zeros((1, 16, 16, 3), np.uint8), prompts)


def test_a_float_tensor_from_0_to_1_is_refused_with_the_formula(toy_pipeline):
    frames = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match=r"2 \* frames - 1"):
        toy_pipeline(frames, "a dog")
    assert toy_pipeline(2 * frames - 1, "a dog").masks.shape == (1, 2, 16, 16)


def test_three_lines_make_an_overlay(toy_pipeline, video_file, tmp_path):
    video = read_video(video_file)
    result = toy_pipeline(video, ["a dog", "a cat"])
    write_overlay(tmp_path / "overlay.mp4", video, result.masks, ["a dog", "a cat"])
    assert read_video(tmp_path / "overlay.mp4").frames.shape == video.frames.shape
    write_overlay(tmp_path / "again.mp4", video, result.iter_masks(), ["a dog", "a cat"])
    assert (tmp_path / "again.mp4").read_bytes() == (tmp_path / "overlay.mp4").read_bytes()
    with pytest.raises(ValueError, match="shorter"):
        write_overlay(tmp_path / "short.mp4", video, result.masks[:, :3], ["a dog", "a cat"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.mp4", "clip.mp4", "overlay.mp4"]
