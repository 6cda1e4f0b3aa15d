"""Scores a folder of predicted masks against the ground truth of a split, without a model."""

import contextlib
import csv
import io
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from datasets.readers.davis import ANNOTATOR_FOLDERS, NUM_ANNOTATORS, RefDAVIS17
from datasets.split import Expression, Split
from engine.scoring.davis_protocol import DavisProtocol, Sequence, summarise_annotators
from engine.scoring.prediction_folder import PredictionFolder, annotated
from engine.scoring.protocols import Key, Protocol
from engine.scoring.summary import Values
from util.errors import UserError
from util.files import write_text_whole
from util.workers import WorkerPool, num_cores

# Starting a worker takes 0.5 s of processor time. A mask of 480 x 854 is scored in 20 ms, so below 10 s of work in all
# workers cost more than they save.
PIXELS_WITHOUT_WORKERS = 500 * 480 * 854


@dataclass(frozen=True)
class ScoreOptions:
    """How to score.

    Attributes:
        num_workers: worker processes; 0 scores in this process. None starts one per core, and none for small jobs.
        allow_partial: leave incomplete expressions out instead of refusing them.
    """

    num_workers: int | None = None
    allow_partial: bool = False


@dataclass(frozen=True)
class Measure:
    """Scores an expression; what a worker is sent."""

    predictions: PredictionFolder
    protocol: Protocol

    def __call__(self, expression: Expression) -> tuple[Key, Values]:
        split, size, indices = self.predictions.split, self.predictions.size(expression), annotated(expression)
        truth, void = split.masks(expression, indices, size), split.void(expression, indices, size)
        return expression.key, self.protocol.measure(self.predictions.read(expression), truth, void)


def score_folder(
    split: Split, expressions: list[Expression], pred: Path, protocol: Protocol, options: ScoreOptions
) -> dict[str, Any]:
    """Scores predicted masks and returns the content of ``metrics.json``.

    Args:
        expressions: expressions of the split to score.
        pred: see ``PredictionFolder``; of Ref-DAVIS17 also ``anno_0`` to ``anno_3``, see ``davis_protocol.py``.

    Raises:
        UserError: if the split has no public masks, or the folder is incomplete or damaged.
    """
    if not split.has_masks:
        raise UserError(
            f"{split.source}: this split has no public masks; score another split, or write its submission with --zip"
        )
    if isinstance(split, RefDAVIS17):
        predictions = PredictionFolder(pred, split, expressions, frozenset(ANNOTATOR_FOLDERS))
        merged = pred if (pred / ANNOTATOR_FOLDERS[0]).is_dir() else None
        return _score_davis(DavisProtocol(split, predictions, merged), protocol, options)
    predictions = PredictionFolder(pred, split, expressions)
    complete = predictions.check(options.allow_partial)
    metrics = _score_expressions(predictions, complete, protocol, options)
    return _with_missing(metrics, expressions, complete)


def write_metrics(out: Path, metrics: dict[str, Any], expressions: list[Expression]) -> None:
    """Writes ``metrics.json``, and ``metrics.csv`` with one line per expression, or per object of protocol A."""
    write_text_whole(out / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    units: dict[str, Values] = metrics.get("units") or metrics["objects"]
    known = {"/".join(expression.key): expression for expression in expressions}
    rows = []
    for unit, values in units.items():
        expression = known.get(unit)
        described = {"caption": expression.caption, "kind": expression.kind or ""} if expression else {}
        rows.append({"unit": unit, **described, **values})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text_whole(out / "metrics.csv", text.getvalue())


def _score_expressions(
    predictions: PredictionFolder, expressions: list[Expression], protocol: Protocol, options: ScoreOptions
) -> dict[str, Any]:
    measure = Measure(predictions, protocol)
    area = math.prod(predictions.size(expressions[0])) if expressions else 0
    values = dict(_map(measure, expressions, _num_frames, area, options, title="score", unit="expression"))
    return protocol.summarise(values, expressions)


def _score_davis(davis: DavisProtocol, protocol: Protocol, options: ScoreOptions) -> dict[str, Any]:
    """Scores protocol A, and protocol C beside it if there are masks of single expressions."""
    predictions, expressions = davis.predictions, davis.predictions.expressions
    is_merged = davis.merged is not None
    has_units = predictions.has_masks() or not is_merged
    complete = predictions.check(options.allow_partial) if has_units else expressions
    mergeable = davis.check_merged(expressions, options.allow_partial) if is_merged else complete
    sequences = davis.sequences(mergeable)
    if not sequences:
        raise UserError(
            f"{predictions.origin}: no sequence has masks of all its expressions, as protocol A of Ref-DAVIS17 needs; "
            "predict the rest"
        )
    first = sequences[0].expressions[0]
    area = NUM_ANNOTATORS * math.prod(predictions.split.source_size(first))

    def num_frames(sequence: Sequence) -> int:
        return _num_frames(sequence.expressions[0])

    results = list(_map(davis.measure, sequences, num_frames, area, options, title="match", unit="sequence"))
    direct: dict[str, Any] = {}
    if has_units:
        direct = _with_missing(_score_expressions(predictions, complete, protocol, options), expressions, complete)
    units = direct.pop("units", {})
    metrics = {
        **summarise_annotators(results),
        "protocol": f"A: merged per annotator, matched, {NUM_ANNOTATORS} annotators averaged",
        "overlaps": "as merged in anno_*" if is_merged else "the first object's: binary masks hold no probabilities",
        **({"C": direct} if direct else {}),
        **({"units": units} if units else {}),
    }
    scored = {sequence.video for sequence in sequences}
    return _with_missing(metrics, expressions, [expression for expression in mergeable if expression.video in scored])


def _map(
    function: Callable[[Any], Any],
    items: list[Any],
    num_frames: Callable[[Any], int],
    area: int,
    options: ScoreOptions,
    *,
    title: str,
    unit: str,
) -> Iterator[Any]:
    """Yields ``function`` of each item, longest items first, so that no worker is left with a long one at the end.

    Args:
        area: pixels to score per frame, of a typical item.
    """
    ordered = sorted(items, key=num_frames, reverse=True)
    num_workers = options.num_workers
    if num_workers is None:
        is_small = area * sum(map(num_frames, items)) <= PIXELS_WITHOUT_WORKERS
        num_workers = 0 if is_small else num_cores()
    with contextlib.ExitStack() as stack:
        if num_workers:
            pool = stack.enter_context(WorkerPool(_call, function, min(num_workers, len(items))))
            results = pool.map(ordered)
        else:
            results = map(function, ordered)
        yield from tqdm(results, desc=title, unit=unit, total=len(ordered))


def _call(function: Callable[[Any], Any], item: Any) -> Any:
    return function(item)


def _num_frames(expression: Expression) -> int:
    return len(annotated(expression))


def _with_missing(metrics: dict[str, Any], expressions: list[Expression], scored: list[Expression]) -> dict[str, Any]:
    """Adds the names of expressions that were left out, if there are any, under ``missing``."""
    keys = {expression.key for expression in scored}
    missing = ["/".join(expression.key) for expression in expressions if expression.key not in keys]
    return {**metrics, "missing": missing} if missing else metrics
