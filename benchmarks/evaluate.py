"""Measures seconds per expression of inference on a benchmark, against a plain loop.

    PYTHONPATH=. python benchmarks/evaluate.py [--num_videos 2] [--num_frames 9] [--rounds 3]

The plain loop goes over expressions, as the original's does. For every expression one loader process decodes and
resizes
all JPEGs of the video; then the video is encoded, the caption embedded, one prompt solved and decoded, with the
library's layers; the logits are resized as float32 and thresholded, J and F are computed with dilations by a full
disk,
and Pillow writes the masks, before the next expression begins. Ours is ``engine.inference.segment_split``, with
caption
embedding, start of workers and writing of records in the measured time. Both use the toy model of assets/toy and the
same number of threads; loading weights is not measured. Sources are toy videos enlarged to 1280 x 720 JPEGs, with 16
captions each.

The processor time of all processes is reported too. On a busy machine it is the steadier number, but it does not show
what ours gains by doing things at the same time.
"""

import math
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from datasets.readers.mevis import MeViS
from datasets.toy import Sentence, Video, make_video, write_split
from engine.captions import embed_once
from engine.inference.results_folder import ResultsFolder
from engine.inference.segment_split import segment_split
from engine.segment_options import SegmentOptions, make_ready
from models.flowrvs import FlowRVS
from models.vae_layers import use_library_layers
from models.weights import LoadedFlowRVS, load_flowrvs
from util.files import write_text_whole
from util.options import OptionParser, int_in
from util.workers import num_cores

TOY = Path(__file__).parents[1] / "assets" / "toy"
SIZE = (720, 1280)
NUM_SENTENCES = 16
Masks = NDArray[np.bool_]


def load_toy() -> LoadedFlowRVS:
    loaded = load_flowrvs(str(TOY / "flowrvs"), vae_ckpt=str(TOY / "mask_vae"))
    loaded.pipeline.set_progress_bar_config(disable=True)
    return loaded


# -- the plain loop ----------------------------------------------------------------------------------------------


class PlainExpressions(Dataset[tuple[NDArray[np.uint8], int]]):
    """Yields the resized frames of one expression after the other."""

    def __init__(self, split: MeViS, fitted: tuple[int, int]) -> None:
        self.split, self.fitted = split, fitted

    def __len__(self) -> int:
        return len(self.split.expressions)

    def __getitem__(self, number: int) -> tuple[NDArray[np.uint8], int]:
        expression = self.split.expressions[number]
        height, width = self.fitted
        frames = []
        for index in range(len(expression.frames)):
            picture = Image.open(self.split.frame_file(expression, index)).convert("RGB")
            frames.append(np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR)))
        return np.stack(frames), number


def plain_pipeline() -> FlowRVS:
    """Builds the pipeline with the library's VAE layers."""
    pipeline = load_toy().pipeline
    use_library_layers(pipeline.vae)
    for parameter in pipeline.vae.parameters():
        parameter.data = parameter.data.contiguous()
    return pipeline


def plain_loop(pipeline: FlowRVS, split: MeViS, out: Path) -> None:
    dataset = PlainExpressions(split, pipeline.fitted_size(*SIZE))
    scores = {}
    for frames, number in tqdm(DataLoader(dataset, batch_size=None, num_workers=1), desc="plain loop"):
        expression = split.expressions[int(number)]
        result = pipeline(np.asarray(frames), expression.caption, output_size=SIZE)
        truth = split.masks(expression, list(range(len(expression.frames))), SIZE)
        pairs = list(zip(result.masks[0], truth, strict=True))
        scores[expression.key] = tuple(np.mean([of(*pair) for pair in pairs]) for of in (plain_j, plain_f))
        folder = out / expression.video / expression.exp_id
        folder.mkdir(parents=True)
        for frame, mask in zip(expression.frames, result.masks[0], strict=True):
            Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(folder / f"{frame}.png")
    write_text_whole(out / "scores.json", str(scores))


def plain_j(prediction: Masks, truth: Masks) -> float:
    union = np.sum(prediction | truth)
    return float(np.sum(prediction & truth) / union) if union else 1.0


def plain_f(prediction: Masks, truth: Masks) -> float:
    radius = math.ceil(0.008 * math.hypot(*truth.shape))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = (x * x + y * y <= radius * radius).astype(np.uint8)
    predicted, true = plain_boundary(prediction), plain_boundary(truth)
    near_true = cv2.dilate(true.astype(np.uint8), disk).astype(bool)
    near_predicted = cv2.dilate(predicted.astype(np.uint8), disk).astype(bool)
    num_predicted, num_true = np.sum(predicted), np.sum(true)
    if num_predicted == 0 or num_true == 0:
        return float(num_predicted == num_true)
    precision = np.sum(predicted & near_true) / num_predicted
    recall = np.sum(true & near_predicted) / num_true
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def plain_boundary(mask: Masks) -> Masks:
    east, south, south_east = np.zeros_like(mask), np.zeros_like(mask), np.zeros_like(mask)
    east[:, :-1] = mask[:, 1:]
    south[:-1] = mask[1:]
    south_east[:-1, :-1] = mask[1:, 1:]
    contour = (mask ^ east) | (mask ^ south) | (mask ^ south_east)
    contour[-1] = mask[-1] ^ east[-1]
    contour[:, -1] = mask[:, -1] ^ south[:, -1]
    contour[-1, -1] = False
    return contour


# -- ours --------------------------------------------------------------------------------------------------------


def our_evaluation(loaded: LoadedFlowRVS, split: MeViS, out: Path, prompt_batch: int, num_workers: int) -> None:
    folder = ResultsFolder(out)
    folder.path.mkdir()
    wanted = {expression.caption for expression in split.expressions}
    captions = embed_once(wanted, loaded, folder.captions, torch.device("cpu"), torch.float32)
    options = SegmentOptions(prompt_batch=prompt_batch)
    segment_split(loaded.pipeline, split, captions, folder, options, PartialState(), num_workers=num_workers)


# -- measuring ---------------------------------------------------------------------------------------------------


def enlarged_videos(num_frames: int) -> Iterator[Video]:
    """Makes toy videos at source size, with captions of other worlds to reach the number."""
    rng = np.random.default_rng(0)
    while True:
        video = make_video(rng, num_frames=num_frames)
        captions = dict.fromkeys(sentence.caption for sentence in video.sentences)
        while len(captions) < NUM_SENTENCES:
            captions |= dict.fromkeys(sentence.caption for sentence in make_video(rng).sentences)
        sentences = [
            Sentence(caption, (number % len(video.things),), "look")
            for number, caption in enumerate(list(captions)[:NUM_SENTENCES])
        ]
        yield replace(
            video,
            frames=np.stack([cv2.resize(frame, SIZE[::-1], interpolation=cv2.INTER_CUBIC) for frame in video.frames]),
            masks=np.stack([[enlarged(mask) for mask in masks] for masks in video.masks]),
            sentences=sentences,
        )


def enlarged(mask: Masks) -> Masks:
    return cv2.resize(mask.view(np.uint8), SIZE[::-1], interpolation=cv2.INTER_NEAREST).view(bool)


@dataclass(frozen=True)
class Cost:
    """Seconds per expression: wall-clock time, and time of all processors."""

    wall: float
    processor: float


def measure(run: Callable[[Path], None], out: Path, num_expressions: int) -> Cost:
    start, before = time.perf_counter(), os.times()
    run(out)
    after = os.times()  # of child processes that have ended; all have
    used = sum(after[:4]) - sum(before[:4])
    cost = Cost((time.perf_counter() - start) / num_expressions, used / num_expressions)
    shutil.rmtree(out)
    return cost


def main() -> None:
    parser = OptionParser(prog="benchmarks/evaluate.py", description="Speed of an evaluation.")
    parser.add_argument("--num_videos", type=int_in(1), default=2, help="of 16 expressions each")
    parser.add_argument("--num_frames", type=int_in(9, 33), default=9, help="frames per video")
    parser.add_argument("--rounds", type=int_in(1), default=3, help="of both, alternating")
    parser.add_argument("--prompt_batch", type=int_in(1), default=4, help="of ours")
    parser.add_argument("--num_workers", type=int_in(1), default=num_cores(), help="of ours: writing and scoring")
    options = parser.parse_args()
    loaded, original = load_toy(), plain_pipeline()
    make_ready(loaded.pipeline)
    plain: list[Cost] = []
    ours: list[Cost] = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_split(root / "valid_u", enlarged_videos(options.num_frames), options.num_videos, with_masks=True)
        split = MeViS(root, "valid_u")
        num_expressions = len(split.expressions)
        for _ in range(options.rounds):  # alternating, so that both see the same machine
            plain.append(measure(lambda out: plain_loop(original, split, out), root / "plain", num_expressions))
            ours.append(
                measure(
                    lambda out: our_evaluation(loaded, split, out, options.prompt_batch, options.num_workers),
                    root / "ours",
                    num_expressions,
                )
            )
    print(
        f"{options.num_videos} videos of {options.num_frames} frames, {SIZE[1]} x {SIZE[0]}, {NUM_SENTENCES} sentences "
        f"each; toy model, float32; {num_cores()} cores, {torch.get_num_threads()} torch threads; prompt_batch "
        f"{options.prompt_batch}, {options.num_workers} worker processes; {options.rounds} rounds of both, alternating"
    )
    report(plain, ours)


def report(plain: list[Cost], ours: list[Cost]) -> None:
    print("| seconds per expression, median | plain | ours | plain / ours: of the medians, of each round |")
    print("|---|---|---|---|")
    for name in ("wall", "processor"):
        theirs, own = [getattr(cost, name) for cost in plain], [getattr(cost, name) for cost in ours]
        medians = statistics.median(theirs), statistics.median(own)
        ratios = ", ".join(f"{one / other:.2f}" for one, other in zip(theirs, own, strict=True))
        print(f"| {name} | {medians[0]:.3f} | {medians[1]:.3f} | {medians[0] / medians[1]:.2f}: {ratios} |")


if __name__ == "__main__":
    main()
