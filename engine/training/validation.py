"""Validates during training: segments and scores a few videos, and keeps the best weights."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState

from datasets.split import Split, with_videos
from engine.inference.results_folder import ResultsFolder
from engine.inference.segment_split import segment_split
from engine.segment_options import SegmentOptions
from engine.training.checkpoints import saved_parameters, write_network
from engine.training.tasks import Task
from models.flowrvs import FlowRVS
from models.text import Captions
from util.colours import colours_for
from util.files import move_over, read_json, staged_folder, write_text_whole
from util.images import Frame, read_image
from util.run_folder import BEST, BEST_FILE, VALIDATION_FILE
from util.visualize import draw_masks

NUM_VIDEOS = 20
NUM_IMAGES = 4


class Validator:
    """Scores the network on a few videos, and keeps the weights with the best J&F.

    Writes ``validation.jsonl``, ``validation/`` and ``best/`` into the run folder.

    Args:
        split: the videos, from ``first_videos``.
        captions: embeddings of its captions.
        pipeline: holds the task's network.
        amp: compute in bfloat16, as training does.
    """

    def __init__(
        self, split: Split, captions: Captions, pipeline: FlowRVS, task: Task, run_dir: Path, amp: bool
    ) -> None:
        self.split = split
        self.captions = captions
        self.pipeline = pipeline
        self.task = task
        self.run_dir = run_dir
        self.amp = amp
        self.best = -math.inf
        best_file = run_dir / BEST / BEST_FILE
        if best_file.is_file():
            self.best = read_json(best_file)["J&F"]

    def run(self, step: int) -> tuple[dict[str, float], dict[str, Frame]]:
        """Validates the weights in the network. Every process must call it; each segments some of the videos.

        Returns:
            J, F and J&F in [0, 1], and ``NUM_IMAGES`` images by name; both empty except on the main process.
        """
        folder, state = ResultsFolder(self.run_dir / "validation"), PartialState()
        if state.is_main_process:
            folder.path.mkdir(exist_ok=True)
            folder.clear()  # results of earlier weights
        state.wait_for_everyone()
        options = SegmentOptions(prompt_batch=8)
        with torch.autocast(self.task.network.device.type, torch.bfloat16, enabled=self.amp):
            metrics = segment_split(self.pipeline, self.split, self.captions, folder, options, state, num_workers=2)
        if metrics is None:
            return {}, {}
        means = {"step": step, "J": metrics["J"], "F": metrics["F"], "J&F": metrics["J&F"]}
        kinds = {kind: entry["J&F"] for kind, entry in metrics.get("kinds", {}).items()}
        with (self.run_dir / VALIDATION_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps({**means, **kinds}) + "\n")
        if means["J&F"] > self.best:
            self.best = means["J&F"]
            self._keep(means)
        return {"J": means["J"], "F": means["F"], "J&F": means["J&F"]}, dict(self._images(folder))

    def _keep(self, means: dict[str, float]) -> None:
        """Writes ``best/`` aside, and replaces the old one when it is complete."""
        network = self.task.network
        with staged_folder(self.run_dir, BEST) as staging:
            tensors = {name: value.detach().cpu().contiguous() for name, value in saved_parameters(network).items()}
            write_network(network, tensors, staging / self.task.network_name)
            write_text_whole(staging / BEST_FILE, json.dumps(means) + "\n")
            move_over(staging, self.run_dir / BEST)

    def _images(self, folder: ResultsFolder) -> Iterator[tuple[str, Frame]]:
        """Draws ground truth (left) and prediction (right) on the middle frame of a few videos."""
        firsts = {expression.video: expression for expression in reversed(self.split.expressions)}
        for expression in list(firsts.values())[:NUM_IMAGES]:
            middle = len(expression.frames) // 2
            frame = self.split.read_frames(expression, [middle])[0]
            size = (frame.shape[0], frame.shape[1])
            ground_truth = self.split.masks(expression, [middle], size)
            file = folder.annotations / expression.video / expression.exp_id / f"{expression.frames[middle]}.png"
            predicted = (read_image(file)[..., 0] > 0)[None]
            sides = [draw_masks(frame, masks, colours_for(1)) for masks in (ground_truth, predicted)]
            yield f"{expression.video}/{expression.caption[:80]}", np.concatenate(sides, axis=1)


def first_videos(split: Split) -> Split:
    """Reduces a split to its first ``NUM_VIDEOS`` videos, and returns it."""
    return with_videos(split, NUM_VIDEOS)
