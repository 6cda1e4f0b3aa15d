"""Segments a video for prompts and writes masks, an overlay video and the facts for the record.

The frames are read twice: first at model size, window by window, to predict masks; then at source size, one at a time,
to draw the masks on them. So memory does not grow with the length of the video.
"""

import contextlib
import itertools
import json
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from engine.demo.result_folder import RECORD, PartialResult, Progress
from engine.segment_options import SegmentOptions
from models.flowrvs import FlowRVS
from models.mask_vae import logits_to_masks, resize_logits
from models.output import FinishedFrames
from models.text import clean_captions
from util.hashes import sha256_of
from util.images import Frame, resize_frame
from util.mask_files import read_mask, write_mask
from util.memory import return_freed_memory
from util.stopwatch import Stopwatch
from util.video import FrameSource, VideoWriter
from util.visualize import Legend, colours_for, draw_masks
from util.workers import MAX_PENDING, num_cores, ordered_map

logger = logging.getLogger(__name__)

NUM_THREADS = min(MAX_PENDING, num_cores())  # draw or write; each holds frames at source size
LOW_AGREEMENT = 0.5  # IoU of two windows on shared frames; below it they may follow different objects


def segment_video(
    pipeline: FlowRVS,
    source: FrameSource,
    prompts: list[str],
    embeddings: Tensor,
    result: PartialResult,
    options: SegmentOptions,
    *,
    save_overlays: bool = False,
) -> dict[str, Any]:
    """Segments a video and writes its masks and overlay video; continues from the progress in ``result``.

    Args:
        embeddings: [D, L, width] of the distinct captions of ``prompts``, in order.
        save_overlays: also write each overlay frame as an image into ``overlay/``.

    Returns:
        Facts for the record: prompts, colours, sizes, options, windows, mask areas in pixels, seconds per stage.
    """
    captions = clean_captions(prompts)
    distinct = list(dict.fromkeys(captions))
    rows = [distinct.index(caption) for caption in captions]
    progress = _write_masks(pipeline, source, embeddings, rows, result, options)
    colours = colours_for(len(prompts))
    stopwatch = Stopwatch()
    with stopwatch.stage("draw"):
        legend = Legend(prompts, colours, *progress.size)
        areas = _draw(result.folder, source, len(prompts), legend, progress, save_overlays)
    agreement = [[round(one[row], 4) for row in rows] for one in progress.agreements]
    shared = [(later[0], earlier[1]) for earlier, later in itertools.pairwise(progress.spans)]
    overlaps = [(max(start, stop - options.num_shared), stop) for start, stop in shared if options.num_shared]
    _warn_of_disagreement(prompts, overlaps, agreement)
    return {
        "prompts": prompts,
        "colours": colours,
        "fps": float(source.fps),
        "num_frames": progress.joint.stop,
        "size": {"height": progress.size[0], "width": progress.size[1]},
        "model_size": {"height": progress.model_size[0], "width": progress.model_size[1]},
        "num_steps": options.num_steps,
        "threshold": options.threshold,
        "prompt_batch": options.prompt_batch,
        "windows": [[start, stop - 1] for start, stop in progress.spans],
        "agreement": [
            {"frames": [start, stop - 1], "iou": values}
            for (start, stop), values in zip(overlaps, agreement, strict=True)
        ],
        "mask_area": areas,
        "seconds": {name: round(value, 3) for name, value in (progress.seconds | stopwatch.seconds).items()},
    }


def _write_masks(
    pipeline: FlowRVS,
    source: FrameSource,
    embeddings: Tensor,
    rows: list[int],
    result: PartialResult,
    options: SegmentOptions,
) -> Progress:
    """Writes the masks of each window as soon as it is done, ``masks/<prompt>/<frame>.png``.

    Args:
        rows: for each prompt the row of its caption in ``embeddings``.
    """
    progress = result.load()
    after = progress.joint if progress else None
    frames = _FittedFrames(pipeline, source, options, after.start if after else 0)

    def to_masks(logits: Tensor) -> NDArray[np.bool_]:
        return logits_to_masks(resize_logits(logits.to(pipeline.device), frames.size), options.threshold)

    folders = [result.folder / "masks" / str(prompt) for prompt in range(len(rows))]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    pipeline.set_progress_bar_config(leave=options.window == 0)
    num_done = after.num_finished if after else 0
    with tqdm(desc="segment video", total=source.num_frames, initial=num_done, unit="frame") as bar:
        stream = pipeline.segment_stream(frames, embeddings, after=after, stopwatch=frames.stopwatch, **asdict(options))
        for finished in stream:
            if progress is None:
                progress = Progress(finished.joint, [], [], frames.size, frames.model_size)
            return_freed_memory()  # that of the networks, before the writing threads need some
            with frames.stopwatch.stage("write"):
                _write_finished(finished, folders, rows, source, to_masks)
            if finished.joint.stop > (progress.spans[-1][1] if progress.spans else 0):
                progress.spans.append((finished.joint.start, finished.joint.stop))
                if finished.agreement is not None:
                    progress.agreements.append(finished.agreement.tolist())
            progress.joint = finished.joint
            _move_seconds(frames.stopwatch, progress.seconds)
            result.save(progress)
            return_freed_memory()
            bar.update(finished.logits.shape[1])
    assert progress is not None, "a source has at least one frame"
    return progress


def _move_seconds(stopwatch: Stopwatch, total: dict[str, float]) -> None:
    for name, seconds in stopwatch.seconds.items():
        total[name] = total.get(name, 0.0) + seconds
    stopwatch.seconds.clear()


def _write_finished(
    finished: FinishedFrames,
    folders: list[Path],
    rows: list[int],
    source: FrameSource,
    to_masks: Callable[[Tensor], NDArray[np.bool_]],
) -> None:
    def write(index: int) -> None:
        masks = to_masks(finished.logits[:, index])
        for folder, row in zip(folders, rows, strict=True):
            write_mask(folder / f"{source.frame_name(finished.start + index)}.png", masks[row])

    for _ in ordered_map(write, range(finished.logits.shape[1]), NUM_THREADS):
        pass


class _FittedFrames:
    """The frames of a source from index ``first`` on, at model size; refuses a too long video before it fills memory.

    Attributes:
        size, model_size: source size and model size, (H, W) in pixels; known after the first frame.
        stopwatch: collects the seconds of each stage.
    """

    def __init__(self, pipeline: FlowRVS, source: FrameSource, options: SegmentOptions, first: int) -> None:
        self.pipeline, self.source, self.options, self.first = pipeline, source, options, first
        self.stopwatch = Stopwatch(pipeline.device)
        self.size = self.model_size = (0, 0)
        self._check_length(source.num_frames or 1)

    def __iter__(self) -> Iterator[Frame]:
        fitted = ordered_map(self._fit, itertools.islice(self.source, self.first, None))
        for count in itertools.count(1):
            with self.stopwatch.stage("read"):
                frame = next(fitted, None)
            if frame is None:
                return
            self._check_length(count)
            yield frame

    def _fit(self, frame: Frame) -> Frame:
        self.size = (frame.shape[0], frame.shape[1])  # all frames of a FrameSource have one size
        self.model_size = self.pipeline.fitted_size(*self.size, self.options.box_height, self.options.box_width)
        return resize_frame(frame, *self.model_size)

    def _check_length(self, num_frames: int) -> None:
        if self.options.window == 0:
            self.pipeline.check_length(num_frames)


def _draw(
    folder: Path, source: FrameSource, num_prompts: int, legend: Legend, progress: Progress, save_overlays: bool
) -> list[list[int]]:
    """Writes the overlay video, and its images if asked; returns the mask areas in pixels, per prompt and frame."""
    if save_overlays:
        (folder / "overlay").mkdir(exist_ok=True)

    def draw(numbered: tuple[int, Frame]) -> tuple[Frame, list[int]]:
        index, frame = numbered
        name = source.frame_name(index)
        masks = np.stack(
            [read_mask(folder / "masks" / str(prompt) / f"{name}.png", progress.size) for prompt in range(num_prompts)]
        )
        overlay = draw_masks(frame, masks, legend.colours)
        legend.draw(overlay)
        if save_overlays:
            Image.fromarray(overlay).save(folder / "overlay" / f"{name}.jpg", quality=95)
        return overlay, [int(np.count_nonzero(mask)) for mask in masks]

    areas: list[list[int]] = []
    with VideoWriter(folder / "result.mp4", source.fps) as video:
        finished = ordered_map(draw, enumerate(source), NUM_THREADS)
        for overlay, frame_areas in tqdm(finished, desc="draw overlays", total=progress.joint.stop, unit="frame"):
            video.write(overlay)
            areas.append(frame_areas)
    return [list(prompt_areas) for prompt_areas in zip(*areas, strict=True)]


def _warn_of_disagreement(prompts: list[str], overlaps: list[tuple[int, int]], agreement: list[list[float]]) -> None:
    for (start, stop), values in zip(overlaps, agreement, strict=True):
        for prompt, value in zip(prompts, values, strict=True):
            if value < LOW_AGREEMENT:
                logger.warning(
                    "two windows disagree on %r in frames %d to %d (IoU %.2f): they may follow different objects; a "
                    "longer --window sees more at once", prompt, start, stop - 1, value,
                )  # fmt: skip


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Writes ``result.json`` into ``folder``."""
    (folder / RECORD).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def hashing(files: dict[str, tuple[Path, ...]]) -> Iterator[Callable[[], dict[str, Any]]]:
    """Hashes weight files on a thread while the block runs; yields a function that returns the hashes.

    The text encoder alone is 11 GB: a block that fails does not wait for its hash.

    Args:
        files: the weight files of each network, by its name.

    Yields:
        A function that waits for, and returns, ``{network: {"files": [...], "sha256": ...}}``.
    """
    stop = threading.Event()
    with ThreadPoolExecutor(max_workers=1) as pool:
        digests = {network: pool.submit(sha256_of, paths, stop) for network, paths in files.items()}
        try:
            yield lambda: {
                network: {"files": [str(path) for path in files[network]], "sha256": digest.result()}
                for network, digest in digests.items()
            }
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
