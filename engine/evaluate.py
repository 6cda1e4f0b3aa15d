"""Segments every expression of a split, writes the masks and scores them where there is a truth.

Threads read the next video while the model has this one (``engine/reading.py``); worker processes write and score its
masks while the model has the next (``engine/finish.py``). Each finished unit is recorded, so an evaluation that was
stopped goes on (``engine/evaluation_folder.py``), and processes take video after video, whoever is free (``claim``).
"""

import json
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from tqdm import tqdm

from datasets.split import Split
from engine.evaluation_folder import EvaluationFolder
from engine.finish import Place, Segmented, finish
from engine.pack import merge_objects, pack_masks
from engine.reading import LoadedVideo, load_videos
from engine.segment import SegmentOptions
from engine.summary import summarise
from engine.work import Part, VideoWork, object_number, work_to_do
from models.flowrvs import FlowRVS
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
        merge: for Ref-DAVIS17, whether to merge the objects of each annotator, see ``engine/finish.py``.

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
