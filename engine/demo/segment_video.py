"""Segments a video for prompts, window by window, and writes a mask per prompt and frame.

Frames are read one at a time at source size and kept at model size for two windows at most, so memory does not grow
with the length of the video. ``outputs.py`` reads them a second time, to draw the masks on them.
"""

import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from engine.demo.result_folder import PartialResult, Progress
from engine.segment_options import SegmentOptions
from models.flowrvs import FlowRVS
from models.mask_vae import logits_to_masks, resize_logits
from models.output import FinishedFrames
from models.text import clean_captions
from util.frames import FrameSource
from util.images import Frame, resize_frame
from util.mask_controls import MaskControls
from util.mask_files import write_mask
from util.memory import return_freed_memory
from util.stopwatch import Stopwatch
from util.workers import MAX_PENDING, num_cores, ordered_map

logger = logging.getLogger(__name__)

NUM_THREADS = min(MAX_PENDING, num_cores())  # that write; each holds masks at source size
UNCHANGED = MaskControls()
LOW_AGREEMENT = 0.5  # IoU of two windows on shared frames; below it they may follow different objects


def segment_video(
    pipeline: FlowRVS,
    source: FrameSource,
    prompts: list[str],
    embeddings: Tensor,
    result: PartialResult,
    options: SegmentOptions,
    *,
    controls: MaskControls = UNCHANGED,
    keep_bars: bool = True,
) -> tuple[Progress, dict[str, Any]]:
    """Writes ``masks/<prompt>/<frame>.png`` of a video; continues from the progress in ``result``.

    Args:
        embeddings: [D, L, width] of the distinct captions of ``prompts``, in order.
        controls: what is done to each mask before it is written.
        keep_bars: leave the progress bars on the screen; not where a bar over several videos is above them.

    Returns:
        The progress at the end, and facts for the record: sizes, options, windows.
    """
    captions = clean_captions(prompts)
    distinct = list(dict.fromkeys(captions))
    rows = [distinct.index(caption) for caption in captions]
    progress = _write_masks(pipeline, source, embeddings, rows, result, options, controls=controls, keep_bars=keep_bars)
    agreement = [[round(one[row], 4) for row in rows] for one in progress.agreements]
    shared = [(later[0], earlier[1]) for earlier, later in itertools.pairwise(progress.spans)]
    overlaps = [(max(start, stop - options.num_shared), stop) for start, stop in shared if options.num_shared]
    _warn_of_disagreement(prompts, overlaps, agreement)
    return progress, {
        "num_frames": progress.joint.stop,
        "size": {"height": progress.size[0], "width": progress.size[1]},
        "model_size": {"height": progress.model_size[0], "width": progress.model_size[1]},
        "num_steps": options.num_steps,
        "threshold": options.threshold,
        "mask_controls": asdict(controls),
        "prompt_batch": options.prompt_batch,
        "windows": [[start, stop - 1] for start, stop in progress.spans],
        "agreement": [
            {"frames": [start, stop - 1], "iou": values}
            for (start, stop), values in zip(overlaps, agreement, strict=True)
        ],
    }


def _write_masks(
    pipeline: FlowRVS,
    source: FrameSource,
    embeddings: Tensor,
    rows: list[int],
    result: PartialResult,
    options: SegmentOptions,
    *,
    controls: MaskControls,
    keep_bars: bool,
) -> Progress:
    """Writes the masks of each window as soon as it is done, ``masks/<prompt>/<frame>.png``.

    Args:
        rows: for each prompt the row of its caption in ``embeddings``.
    """
    progress = result.load()
    after = progress.joint if progress else None
    frames = _FittedFrames(pipeline, source, options, after.start if after else 0)

    def to_masks(logits: Tensor) -> NDArray[np.bool_]:
        masks = logits_to_masks(resize_logits(logits.to(pipeline.device), frames.size), options.threshold)
        return np.stack([controls.apply(mask) for mask in masks])

    folders = [result.folder / "masks" / str(prompt) for prompt in range(len(rows))]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    pipeline.set_progress_bar_config(leave=keep_bars and options.window == 0)
    num_done = after.num_finished if after else 0
    with tqdm(desc="segment video", total=source.num_frames, initial=num_done, unit="frame", leave=keep_bars) as bar:
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
        self.model_size = self.pipeline.fitted_size(
            *self.size, self.options.box_height, self.options.box_width, pixel_aspect=self.source.pixel_aspect
        )
        return resize_frame(frame, *self.model_size)

    def _check_length(self, num_frames: int) -> None:
        if self.options.window == 0:
            self.pipeline.check_length(num_frames)


def _warn_of_disagreement(prompts: list[str], overlaps: list[tuple[int, int]], agreement: list[list[float]]) -> None:
    for (start, stop), values in zip(overlaps, agreement, strict=True):
        for prompt, value in zip(prompts, values, strict=True):
            if value < LOW_AGREEMENT:
                logger.warning(
                    "two windows disagree on %r in frames %d to %d (IoU %.2f): they may follow different objects; a "
                    "longer --window sees more at once", prompt, start, stop - 1, value,
                )  # fmt: skip
