"""Makes the sample clip from the toy world, and the README's picture from what the demo draws on it.

PYTHONPATH=. python scripts/make_sample.py
"""

import tempfile
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

import inference_demo
from datasets.toy import Video, make_video
from util.video_writer import VideoWriter

ASSETS = Path(__file__).parents[1] / "assets"
CLIP = ASSETS / "toy" / "sample.mp4"
SEED, SIZE, NUM_FRAMES, FPS = (99, 20), 256, 17, Fraction(8)
KNOWN_FPS = "4"  # at which it has the nine frames that the shipped weights learned
PROMPTS = ("the triangle moving right", "the triangle that stays still")  # look-alikes
SHOWN_FRAMES = (0, 2, 4, 6, 8)  # of those nine


def sample_video() -> Video:
    """The clip's frames, its objects' true masks, and sentences about them."""
    return make_video(np.random.default_rng(SEED), SIZE, NUM_FRAMES)


def main() -> None:
    video = sample_video()
    with VideoWriter(CLIP, FPS) as writer:
        for frame in video.frames:
            writer.write(frame)
    print(f"{CLIP}: {[sentence.caption for sentence in video.sentences]}")
    with tempfile.TemporaryDirectory() as output_dir:
        place = ["--input_path", str(CLIP), "--output_dir", output_dir, "--save_fig"]
        inference_demo.main([*place, "--fps", KNOWN_FPS, "--text_prompts", *PROMPTS])
        overlays = [cv2.imread(f"{output_dir}/sample/overlay/{index:05d}.jpg") for index in SHOWN_FRAMES]
    cv2.imwrite(str(ASSETS / "overlay.png"), np.concatenate(overlays, axis=1))


if __name__ == "__main__":
    main()
