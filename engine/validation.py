"""Validation during training: the pipeline that users call, on a few videos, the best weights kept."""

import json
import math
from pathlib import Path

from accelerate import PartialState

from datasets.split import Split
from engine.evaluate import evaluate
from engine.segment import SegmentOptions
from engine.steps import Task
from models.flowrvs import FlowRVS
from util.checkpoint import read_json
from util.files import write_text_whole
from util.run_folder import BEST, BEST_FILE, VALIDATION_FILE

NUM_VIDEOS = 20


class Validator:
    """Scores the network on the first videos of a split and keeps the best by J&F.

    Writes ``validation.jsonl``, ``validation/`` and ``best/`` into the run's folder.
    """

    def __init__(self, split: Split, pipeline: FlowRVS, task: Task, run_dir: Path) -> None:
        videos = set(list(dict.fromkeys(expression.video for expression in split.expressions))[:NUM_VIDEOS])
        split.expressions = [expression for expression in split.expressions if expression.video in videos]
        self.split = split
        self.pipeline = pipeline
        self.task = task
        self.run_dir = run_dir
        self.best = -math.inf
        best_file = run_dir / BEST / BEST_FILE
        if best_file.is_file():
            self.best = read_json(best_file)["J&F"]

    def run(self, step: int) -> dict[str, float]:
        """Called by every process while the network holds its averaged weights; each takes its share of the videos.

        Returns:
            J, F and J&F on the main process, nothing on others.
        """
        metrics = evaluate(
            self.pipeline, self.split, self.run_dir / "validation", SegmentOptions(prompt_batch=8), PartialState()
        )
        if metrics is None:
            return {}
        means = {"step": step, "J": metrics["J"], "F": metrics["F"], "J&F": metrics["J&F"]}
        kinds = {kind: entry["J&F"] for kind, entry in metrics.get("kinds", {}).items()}
        with (self.run_dir / VALIDATION_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps({**means, **kinds}) + "\n")
        if means["J&F"] > self.best:
            self.best = means["J&F"]
            self.task.model.save_pretrained(self.run_dir / BEST / self.task.part)
            write_text_whole(self.run_dir / BEST / BEST_FILE, json.dumps(means) + "\n")
        return {"J": metrics["J"], "F": metrics["F"], "J&F": metrics["J&F"]}
