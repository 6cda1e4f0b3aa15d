"""The shipped toy: its clip is the one that its script draws, and its weights segment it."""

import numpy as np
import pytest

import inference_demo
from scripts.make_sample import CLIP, KNOWN_FPS, PROMPTS, sample_video
from util.mask_files import read_mask
from util.video import open_frames


@pytest.fixture(scope="module")
def sample():
    return sample_video()


def test_the_clip_is_what_the_script_draws(sample):
    frames = list(open_frames(str(CLIP)))
    assert len(frames) == len(sample.frames)
    for frame, drawn in zip(frames, sample.frames, strict=True):
        assert np.abs(frame.astype(int) - drawn.astype(int)).mean() < 4  # of 255: the codec's loss


def test_the_shipped_weights_tell_look_alikes_apart_by_their_motion(sample, tmp_path):
    inference_demo.main(
        ["--input_path", str(CLIP), "--fps", KNOWN_FPS, "--output_dir", str(tmp_path), "--text_prompts", *PROMPTS]
    )
    assert sample.things[0].look == sample.things[1].look
    assert [sample.things[index].motion for index in (1, 0)] == ["right", "still"]  # in the order of the prompts
    for place, index in enumerate((1, 0)):
        files = sorted((tmp_path / "sample" / "masks" / str(place)).glob("*.png"))
        truth = sample.masks[index][::2]  # the half of the rate at which it was drawn
        masks = np.stack([read_mask(file, truth.shape[1:]) for file in files])
        assert (masks & truth).sum() > 0.8 * (masks | truth).sum()
