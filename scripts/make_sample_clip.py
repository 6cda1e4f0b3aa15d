"""Draws the sample clip of the README and the quickstart: shapes on a textured background.

PYTHONPATH=. python scripts/make_sample_clip.py assets/shapes.mp4
"""

import sys
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from util.frames import Frame
from util.video import VideoWriter

HEIGHT, WIDTH, NUM_FRAMES, FPS = 240, 416, 49, Fraction(12)
PROMPTS = ["the red circle", "the square moving left"]


def draw_frame(index: int) -> tuple[Frame, NDArray[np.bool_]]:
    """The frame, and the true masks of ``PROMPTS``, [2, H, W]."""
    rng = np.random.default_rng(0)
    noise = cv2.resize(rng.normal(0, 1, (HEIGHT // 8, WIDTH // 8, 3)), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    frame = np.clip(105 + 18 * noise, 0, 255).astype(np.uint8)
    time = index / (NUM_FRAMES - 1)
    circle, square = np.zeros((2, HEIGHT, WIDTH), np.uint8)
    cv2.circle(circle, (90 + int(40 * np.cos(6.3 * time)), 120 + int(50 * np.sin(6.3 * time))), 36, 1, -1)
    left = int(320 - 180 * time)
    cv2.rectangle(square, (left, 60), (left + 62, 122), 1, -1)
    cv2.rectangle(frame, (290, 150), (352, 212), (70, 140, 70), -1)  # a square that stays
    frame[square > 0] = (80, 110, 200)
    frame[circle > 0] = (200, 50, 50)
    shade = (1 + 0.08 * noise).clip(0.7, 1.3)
    return np.clip(frame * shade, 0, 255).astype(np.uint8), np.stack([circle, square]) > 0


if __name__ == "__main__":
    with VideoWriter(Path(sys.argv[1]), FPS) as writer:
        for index in range(NUM_FRAMES):
            writer.write(draw_frame(index)[0])
