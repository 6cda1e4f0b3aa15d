"""Segments every expression of a split, writes the masks and scores them where there is a truth."""

import json
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from datasets.expression import Expression
from datasets.split import Split
from engine.segment import SegmentOptions
from engine.summary import Unit, summarise
from models.flowrvs import FlowRVS
from models.mask_vae import logits_to_masks, resize_logits
from util.files import write_text_whole
from util.frames import resize_frame
from util.masks import write_mask
from util.metrics import score


def evaluate(
    pipeline: FlowRVS, split: Split, output_dir: Path, options: SegmentOptions, state: PartialState
) -> dict[str, Any] | None:
    """Segments a split, videos shared out over the processes.

    Writes ``<output_dir>/Annotations/<video>/<exp_id>/<frame>.png``, and with a truth ``<output_dir>/metrics.json``.

    Args:
        state: which process this is, and of how many; each takes every n-th video.

    Returns:
        The metrics on the main process of a split with masks, else None.
    """
    videos = [list(expressions) for _, expressions in groupby(split.expressions, key=lambda e: e.video)]
    mine = videos[state.process_index :: state.num_processes]
    units: list[Unit] = []
    pipeline.set_progress_bar_config(disable=True)
    for expressions in tqdm(mine, desc="segment videos", unit="video", disable=not state.is_main_process):
        units += segment_expressions(pipeline, split, expressions, output_dir / "Annotations", options)
    if not split.has_masks:
        state.wait_for_everyone()
        return None
    metrics = summarise(gather_object(units), split.expressions)
    if state.is_main_process:
        write_text_whole(output_dir / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    state.wait_for_everyone()
    return metrics if state.is_main_process else None


def segment_expressions(
    pipeline: FlowRVS, split: Split, expressions: list[Expression], folder: Path, options: SegmentOptions
) -> list[Unit]:
    """Segments all expressions of one video, writes their masks below ``folder`` and scores them."""
    pictures = split.read_frames(expressions[0], list(range(len(expressions[0].frames))))
    size = (pictures[0].shape[0], pictures[0].shape[1])
    fitted_size = pipeline.fitted_size(*size, options.box_height, options.box_width)
    result = pipeline(
        np.stack([resize_frame(picture, *fitted_size) for picture in pictures]),
        [expression.caption for expression in expressions],
        **asdict(options),
    )
    units: list[Unit] = []
    for expression, logits in zip(expressions, result.logits, strict=True):
        masks = logits_to_masks(resize_logits(logits, size), options.threshold)
        place = folder / expression.video / expression.exp_id
        place.mkdir(parents=True, exist_ok=True)
        for frame, mask in zip(expression.frames, masks, strict=True):
            write_mask(place / f"{frame}.png", mask)
        if split.has_masks:
            truth = split.masks(expression, list(range(len(expression.frames))), size)
            units.append((*expression.key, score(masks, truth)))
    return units
