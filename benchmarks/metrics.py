"""Measures frames per second of J and F on one core, against the usual implementation on the same masks.

    PYTHONPATH=. python benchmarks/metrics.py [--sizes 480 720 1080] [--num_frames 30] [--rounds 7]

The usual implementation is what the field's scoring programs do, frame by frame: J by logical and, or and two sums of
64-bit integers; the boundary by shifted copies; the dilation by ``cv2.dilate`` with the full disk; four more sums.
"fresh" is ``score`` as scoring calls it, "prepared" is the same with prepared ground truth.

Compact masks are one object of a few overlapping blobs, about 8 % of the frame, that moves across it; the prediction
differs a little in outline and position. Detailed masks are noise of two scales over the whole frame, thin structures
of
half the pixels, and the prediction has other small structures. All counts are compared before anything is timed. The
implementations alternate in each round; medians are printed.
"""

import math
import statistics
import time
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from util.metrics import Prepared, count_pixels, score
from util.options import OptionParser, int_in

Masks = NDArray[np.bool_]

WIDTHS = {480: 854, 720: 1280, 1080: 1920}


# -- the usual implementation ------------------------------------------------------------------------------------


def usual_boundary(mask: Masks) -> Masks:
    east, south, south_east = np.zeros_like(mask), np.zeros_like(mask), np.zeros_like(mask)
    east[:, :-1] = mask[:, 1:]
    south[:-1, :] = mask[1:, :]
    south_east[:-1, :-1] = mask[1:, 1:]
    contour = (mask ^ east) | (mask ^ south) | (mask ^ south_east)
    contour[-1, :] = mask[-1, :] ^ east[-1, :]
    contour[:, -1] = mask[:, -1] ^ south[:, -1]
    contour[-1, -1] = False
    return contour


def usual_counts(prediction: Masks, truth: Masks) -> tuple[int, ...]:
    """Returns shared and united pixels, contours and matched contours of two [H, W]."""
    radius = math.ceil(0.008 * math.hypot(*truth.shape))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = (x * x + y * y <= radius * radius).astype(np.uint8)
    predicted, true = usual_boundary(prediction), usual_boundary(truth)
    near_predicted = cv2.dilate(predicted.astype(np.uint8), disk).astype(bool)
    near_true = cv2.dilate(true.astype(np.uint8), disk).astype(bool)
    maps = (np.logical_and(prediction, truth), np.logical_or(prediction, truth), predicted, true)
    matched = (np.logical_and(predicted, near_true), np.logical_and(true, near_predicted))
    return tuple(int(np.sum(pixels, dtype=np.int64)) for pixels in (*maps, *matched))


def usual_score(prediction: Masks, truth: Masks) -> tuple[float, float]:
    """Returns mean J and F of two [T, H, W]."""
    j, f = [], []
    for frame in range(len(truth)):
        shared, union, *contours = usual_counts(prediction[frame], truth[frame])
        num_predicted, num_true, predicted_matched, true_matched = contours
        j.append(shared / union if union else 1.0)
        precision = predicted_matched / num_predicted if num_predicted else 1.0
        recall = true_matched / num_true if num_true else 1.0
        f.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return float(np.mean(j)), float(np.mean(f))


# -- masks -------------------------------------------------------------------------------------------------------


def compact_clip(rng: np.random.Generator, size: tuple[int, int], num_frames: int) -> tuple[Masks, Masks]:
    """Returns prediction and ground truth, [T, H, W]."""
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    blobs = [
        (rng.uniform(-0.12, 0.12, 2), rng.uniform(0.12, 0.2) * (1 + 0.1 * rng.normal(size=40)), rng.uniform(0.7, 1.4))
        for _ in range(4)
    ]
    clip = np.zeros((2, num_frames, *size), np.uint8)
    for frame in range(num_frames):
        place = np.array([0.4 + 0.9 * frame / num_frames, 0.5 + 0.1 * math.sin(frame / 5)])  # in heights
        for canvas, error in zip(clip[:, frame], (0.006, 0), strict=True):
            moved = place + error * rng.normal(size=2)
            for centre, radii, aspect in blobs:
                radius = radii + error * rng.normal(size=40)
                points = moved + centre + np.stack([radius * np.cos(angles) * aspect, radius * np.sin(angles)], axis=1)
                cv2.fillPoly(canvas, [(points * size[0]).astype(np.int32)], 1)
    prediction, truth = clip.astype(bool)
    return prediction, truth


def detailed_clip(rng: np.random.Generator, size: tuple[int, int], num_frames: int) -> tuple[Masks, Masks]:
    """Returns prediction and ground truth, [T, H, W]."""
    height, width = size
    coarse = cv2.resize(rng.normal(size=(height // 8, width // 8)).astype(np.float32), (width, height))
    clip = np.zeros((2, num_frames, *size), bool)
    for frame in range(num_frames):
        field = np.roll(coarse, 3 * frame, axis=1)
        for masks in clip:
            masks[frame] = field + 0.2 * rng.normal(size=size) > 0
    return clip[0], clip[1]


# -- measuring ---------------------------------------------------------------------------------------------------


def check_equal(prediction: Masks, truth: Masks) -> None:
    counts = count_pixels(prediction, truth)
    contours = (counts.predicted_contour, counts.true_contour, counts.predicted_matched, counts.true_matched)
    ours = np.stack([counts.shared, counts.union, *contours], axis=1)
    usual = [usual_counts(p, t) for p, t in zip(prediction, truth, strict=True)]
    assert (ours == np.array(usual)).all(), "every count must be equal"


def seconds(function: Callable[[], object]) -> float:
    """Measures processor time, which other work on the machine does not change."""
    start = time.process_time()
    function()
    return time.process_time() - start


def measure(prediction: Masks, truth: Masks, rounds: int) -> dict[str, float]:
    """Measures frames per second of each implementation."""
    check_equal(prediction, truth)
    prepared = Prepared(truth)
    score(prediction, prepared)
    ways: dict[str, Callable[[], object]] = {
        "usual": lambda: usual_score(prediction, truth),
        "fresh": lambda: score(prediction, truth),
        "prepared": lambda: score(prediction, prepared),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):  # alternating, so that all see the same machine
        for name, way in ways.items():
            times[name].append(seconds(way))
    return {name: len(truth) / statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = OptionParser(prog="benchmarks/metrics.py", description="Speed of J and F on one core.")
    parser.add_argument("--sizes", nargs="+", type=int, choices=sorted(WIDTHS), default=sorted(WIDTHS), help="heights")
    parser.add_argument("--num_frames", type=int_in(1), default=30, help="frames of a clip")
    parser.add_argument("--rounds", type=int_in(1), default=7, help="measurements of each, of which the median counts")
    options = parser.parse_args()
    print("| size | masks | set | usual, frames/s | fresh | prepared |")
    print("|---|---|---|---|---|---|")
    for height in options.sizes:
        for name, make in (("compact", compact_clip), ("detailed", detailed_clip)):
            prediction, truth = make(np.random.default_rng(0), (height, WIDTHS[height]), options.num_frames)
            rates = measure(prediction, truth, options.rounds)
            ours = " | ".join(
                f"{rates[way]:.0f} ({rates[way] / rates['usual']:.1f} times)" for way in ("fresh", "prepared")
            )
            print(f"| {height}p | {name} | {truth.mean():.0%} | {rates['usual']:.0f} | {ours} |", flush=True)


if __name__ == "__main__":
    cv2.setNumThreads(1)
    main()
