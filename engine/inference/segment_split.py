"""Segments every expression of a split, writes the masks, and scores them where the split has ground truth.

Threads read the next video while the model has this one (``read_ahead.py``); worker processes write and score its
masks while the model has the next (``write_and_score.py``). Each finished expression is recorded, so a stopped run
continues (``results_folder.py``), and each process takes the next free video (``claim``).
"""

import json
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from tqdm import tqdm

from datasets.split import Split
from engine.inference.read_ahead import LoadedVideo, load_videos
from engine.inference.results_folder import EvaluationFolder
from engine.inference.workload import Part, VideoWork, object_number, work_to_do
from engine.inference.write_and_score import Place, Segmented, finish
from engine.scoring.summary import summarise
from engine.segment_options import SegmentOptions
from models.flowrvs import FlowRVS
from models.mask_vae import logit_threshold, resize_logits
from models.text import Captions
from util.files import write_text_whole
from util.workers import WorkerPool


def evaluate(
    pipeline: FlowRVS,
    split: Split,
    captions: Captions,
    folder: EvaluationFolder,
    options: SegmentOptions,
    state: PartialState,
    *,
    num_workers: int = 1,
    merge: bool = False,
) -> dict[str, Any] | None:
    """Segments what is not done yet of a split, then sums up what is recorded of all of it.

    Args:
        captions: of every expression of the split.
        folder: has begun; one that all processes see.
        state: which process this is, and of how many.
        num_workers: processes that write and score, for each process that segments.
        merge: for Ref-DAVIS17, whether to merge the objects of each annotator, see ``write_and_score.py``.

    Returns:
        The metrics, also in ``metrics.json``, on the main process of a split with masks; else None.

    Raises:
        UserError: if frames, sentences or masks cannot be read, or results not written.
    """
    pipeline.set_progress_bar_config(disable=True)
    todo = work_to_do(split, options.prompt_batch, folder.is_done, merge)
    with (
        WorkerPool(finish, Place(folder, split), num_workers) as pool,
        _Progress(todo, folder, state) as progress,
    ):
        for video in load_videos(split, progress.taken(), lambda *size: _fitted_size(pipeline, options, *size)):
            for segmented in segment_video(pipeline, video, captions, options):
                pool.submit(segmented)
                progress.advance(len(segmented.bits) * len(video.frames))
            del video  # while the next one is waited for, this one's memory is free
    state.wait_for_everyone()
    if not state.is_main_process:
        return None
    folder.release()
    scores = [(*expression.key, folder.read_unit(expression)) for expression in split.expressions]
    if not split.has_masks:
        return None
    metrics = summarise([(video, exp_id, one) for video, exp_id, one in scores if one is not None], split.expressions)
    write_text_whole(folder.path / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    return metrics


@torch.no_grad()
def segment_video(
    pipeline: FlowRVS, video: LoadedVideo, captions: Captions, options: SegmentOptions
) -> Iterator[Segmented]:
    """Segments the parts of one video, which is encoded once for all of them."""
    parts = video.work.parts
    batches = pipeline.segment_batches(
        video.frames,
        (captions.lookup(list(batch)) for part in parts for batch in part.captions),
        num_steps=options.num_steps,
        box_height=options.box_height,
        box_width=options.box_width,
        seed=options.seed,
        window=options.window,
        overlap=options.overlap,
    )
    for part in parts:
        logits = [next(batches) for _ in part.captions]  # each [B, T, h, w]
        yield _packed(part, logits[0] if len(logits) == 1 else torch.cat(logits), video.size, options.threshold)


def _packed(part: Part, logits: Tensor, size: tuple[int, int], threshold: float) -> Segmented:
    labels = None
    if part.annotator is not None:
        numbers = [object_number(expression) for expression, _ in part.expressions]
        labels = merge_objects(logits, numbers, size, threshold).cpu().numpy()
    bits = pack_masks(logits, size, threshold).cpu().numpy()
    return Segmented(part.expressions, bits, size, part.annotator, labels)


def _fitted_size(pipeline: FlowRVS, options: SegmentOptions, height: int, width: int) -> tuple[int, int]:
    return pipeline.fitted_size(height, width, options.box_height, options.box_width)


class _Progress:
    """Hands out videos, and shows on the main process how many masks were made: by all, once there are several."""

    def __init__(self, todo: list[VideoWork], folder: EvaluationFolder, state: PartialState) -> None:
        self.todo, self.folder = todo, folder
        self.is_shared = state.num_processes > 1
        self.mine: set[str] = set()
        self.done = 0
        total = sum(work.num_masks for work in todo)
        self.bar = tqdm(total=total, desc="segment videos", unit="mask", disable=not state.is_main_process)

    def taken(self) -> Iterator[VideoWork]:
        """Those videos that no other process has taken, one as soon as it is asked for."""
        for work in self.todo:
            if not self.is_shared or self.folder.claim(work.video):
                self.mine.add(work.video)
                yield work

    def advance(self, num_masks: int) -> None:
        self.done += num_masks
        # What others took counts as done: nobody sends messages, and it soon is.
        others = self.folder.claimed() - self.mine if self.is_shared and not self.bar.disable else set()
        self.bar.update(self.done + sum(work.num_masks for work in self.todo if work.video in others) - self.bar.n)

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()


def pack_masks(logits: Tensor, size: tuple[int, int], threshold: float) -> Tensor:
    """Masks at source size, eight pixels a byte: what leaves the device is a 32nd of the logits.

    Args:
        logits: [B, T, h, w] as the model gives them.
        size: (H, W) in pixels.
        threshold: foreground where the sigmoid exceeds it.

    Returns:
        [B, T, ceil(H * W / 8)] uint8 on the same device, see ``util.bitmasks.unpack_masks``.
    """
    cut = logit_threshold(threshold)
    frames = [_pack_bits((resize_logits(frame, size) > cut).flatten(1)) for frame in logits.unbind(dim=1)]
    return torch.stack(frames, dim=1)


def merge_objects(logits: Tensor, numbers: list[int], size: tuple[int, int], threshold: float) -> Tensor:
    """One object number a pixel: of the highest probability, the first of equals; 0 where all are below ``threshold``.

    Args:
        logits: [N, T, h, w], one object each.
        numbers: of the objects, 1 to 255.
        size: (H, W) in pixels.

    Returns:
        [T, H, W] uint8 on the same device.

    Source: the Ref-DAVIS17 protocol of ReferFormer, whose background of 0.1 any kept probability exceeds.
    """
    labels = torch.zeros(logits.shape[1], *size, dtype=torch.uint8, device=logits.device)
    for frame, merged in zip(logits.unbind(dim=1), labels, strict=True):
        highest = torch.zeros(size, device=logits.device)
        # Probabilities, not logits: those that round to the same are equal. No argmax: it may take any of equals.
        for number, probability in zip(numbers, resize_logits(frame, size).sigmoid(), strict=True):
            is_higher = (probability >= threshold) & (probability > highest)
            merged.masked_fill_(is_higher, number)
            highest = torch.where(is_higher, probability, highest)
    return labels


def _pack_bits(pixels: Tensor) -> Tensor:
    """[B, N] bool to [B, ceil(N / 8)] uint8, the first pixel in the highest bit, zeros after the last."""
    missing = -pixels.shape[1] % 8
    eights = torch.nn.functional.pad(pixels.view(torch.uint8), (0, missing)).unflatten(1, (-1, 8))  # [B, N / 8, 8]
    packed = eights[..., 0].clone()
    for place in range(1, 8):
        packed <<= 1
        packed |= eights[..., place]
    return packed
