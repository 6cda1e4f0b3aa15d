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
from engine.inference.results_folder import ResultsFolder
from engine.inference.workload import PromptGroup, VideoWork, list_workload, object_number
from engine.inference.write_and_score import Destination, SegmentedGroup, write_and_score
from engine.scoring.summary import summarise
from engine.segment_options import SegmentOptions
from models.flowrvs import FlowRVS
from models.mask_vae import resize_logits
from models.output import pack_masks
from models.text import Captions
from util.files import write_text_whole
from util.workers import WorkerPool


def segment_split(
    pipeline: FlowRVS,
    split: Split,
    captions: Captions,
    folder: ResultsFolder,
    options: SegmentOptions,
    state: PartialState,
    *,
    num_workers: int = 1,
    merge: bool = False,
) -> dict[str, Any] | None:
    """Segments the expressions of a split that are not done yet, then summarises the records of all.

    Args:
        captions: embeddings of every caption of the split.
        folder: a folder that has begun, and that all processes see.
        state: the rank of this process, and their number.
        num_workers: workers per process that write and score.
        merge: merge the objects of each annotator of Ref-DAVIS17, see ``write_and_score.py``.

    Returns:
        The metrics, also written to ``metrics.json``; None on other than the main process, and without ground truth.

    Raises:
        UserError: if frames, captions or masks cannot be read, or results cannot be written.
    """
    pipeline.set_progress_bar_config(disable=True)
    todo = list_workload(split, options.prompt_batch, folder.is_done, merge)
    with (
        WorkerPool(write_and_score, Destination(folder, split), num_workers) as pool,
        _SharedVideos(todo, folder, state) as shared,
    ):
        for video in load_videos(split, shared.take(), lambda *size: _fitted_size(pipeline, options, *size)):
            for segmented in segment_groups(pipeline, video, captions, options):
                pool.submit(segmented)
                shared.advance(len(segmented.packed) * len(video.frames))
            del video  # frees its memory before the next one is waited for
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
def segment_groups(
    pipeline: FlowRVS, video: LoadedVideo, captions: Captions, options: SegmentOptions
) -> Iterator[SegmentedGroup]:
    """Segments the prompt groups of one video, which is encoded once for all of them."""
    groups = video.work.groups
    batches = pipeline.segment_batches(
        video.frames,
        (captions.lookup(list(batch)) for group in groups for batch in group.captions),
        num_steps=options.num_steps,
        box_height=options.box_height,
        box_width=options.box_width,
        seed=options.seed,
        window=options.window,
        overlap=options.overlap,
    )
    for group in groups:
        logits = [next(batches) for _ in group.captions]  # each [B, T, h, w]
        yield _pack_group(group, logits[0] if len(logits) == 1 else torch.cat(logits), video.size, options.threshold)


def _pack_group(group: PromptGroup, logits: Tensor, size: tuple[int, int], threshold: float) -> SegmentedGroup:
    labels = None
    if group.annotator is not None:
        numbers = [object_number(expression) for expression, _ in group.expressions]
        labels = merge_objects(logits, numbers, size, threshold).cpu().numpy()
    packed = pack_masks(logits, size, threshold).cpu().numpy()
    return SegmentedGroup(group.expressions, packed, size, group.annotator, labels)


def _fitted_size(pipeline: FlowRVS, options: SegmentOptions, height: int, width: int) -> tuple[int, int]:
    return pipeline.fitted_size(height, width, options.box_height, options.box_width)


class _SharedVideos:
    """Takes videos for this process; the main process shows how many masks all processes have made."""

    def __init__(self, todo: list[VideoWork], folder: ResultsFolder, state: PartialState) -> None:
        self.todo, self.folder = todo, folder
        self.is_shared = state.num_processes > 1
        self.mine: set[str] = set()
        self.done = 0
        total = sum(work.num_masks for work in todo)
        self.bar = tqdm(total=total, desc="segment videos", unit="mask", disable=not state.is_main_process)

    def take(self) -> Iterator[VideoWork]:
        """Yields the videos that no other process has taken; takes each as it is asked for."""
        for work in self.todo:
            if not self.is_shared or self.folder.claim(work.video):
                self.mine.add(work.video)
                yield work

    def advance(self, num_masks: int) -> None:
        self.done += num_masks
        # Videos of other processes count as done once taken: processes exchange no messages.
        others = self.folder.claimed() - self.mine if self.is_shared and not self.bar.disable else set()
        self.bar.update(self.done + sum(work.num_masks for work in self.todo if work.video in others) - self.bar.n)

    def __enter__(self) -> "_SharedVideos":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()


def merge_objects(logits: Tensor, numbers: list[int], size: tuple[int, int], threshold: float) -> Tensor:
    """Merges objects: each pixel gets the object of the highest probability, 0 where all are below ``threshold``.

    Of equal probabilities the first object's wins.

    Args:
        logits: [N, T, h, w], one row per object.
        numbers: object numbers, 1 to 255.
        size: (H, W) in pixels.

    Returns:
        [T, H, W] uint8 on the same device.

    Source: the Ref-DAVIS17 protocol of ReferFormer, whose background probability of 0.1 lies below every threshold.
    """
    labels = torch.zeros(logits.shape[1], *size, dtype=torch.uint8, device=logits.device)
    for frame, merged in zip(logits.unbind(dim=1), labels, strict=True):
        highest = torch.zeros(size, device=logits.device)
        # Probabilities, not logits: different logits may round to equal probabilities. argmax may take any of equals.
        for number, probability in zip(numbers, resize_logits(frame, size).sigmoid(), strict=True):
            is_higher = (probability >= threshold) & (probability > highest)
            merged.masked_fill_(is_higher, number)
            highest = torch.where(is_higher, probability, highest)
    return labels
