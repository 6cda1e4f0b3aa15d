"""Scores a folder of predicted masks against a split, without a model. Free of torch."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from datasets.readers.davis import ANNOTATOR_FOLDERS, NUM_ANNOTATORS, RefDAVIS17
from datasets.split import Expression, Split
from engine.scoring.davis_protocol import DavisProtocol, summarise_annotators
from engine.scoring.prediction_folder import PredictionFolder, annotated
from engine.scoring.protocols import Key, Protocol
from engine.scoring.summary import Values
from util.errors import UserError
from util.files import write_text_whole
from util.workers import process_map


@dataclass(frozen=True)
class ScoreOptions:
    """How to score.

    Attributes:
        num_workers: processes; 0 works in this one.
        allow_partial: whether incomplete expressions are left out instead of refused.
    """

    num_workers: int = 0
    allow_partial: bool = False


@dataclass(frozen=True)
class Measure:
    """From an expression to its numbers; what a worker process is sent."""

    predictions: PredictionFolder
    protocol: Protocol

    def __call__(self, expression: Expression) -> tuple[Key, Values]:
        split, size, indices = self.predictions.split, self.predictions.size(expression), annotated(expression)
        truth, void = split.masks(expression, indices, size), split.void(expression, indices, size)
        return expression.key, self.protocol.measure(self.predictions.read(expression), truth, void)


def score_folder(
    split: Split, expressions: list[Expression], pred: Path, protocol: Protocol, options: ScoreOptions
) -> dict[str, Any]:
    """The content of ``metrics.json``.

    Args:
        expressions: those of the split to score.
        pred: see ``PredictionFolder``; of Ref-DAVIS17 also ``anno_0`` to ``anno_3``, see ``davis_protocol.py``.

    Raises:
        UserError: if the split hides its masks, or the folder is incomplete or damaged.
    """
    if not split.has_masks:
        raise UserError(
            f"{split.source}: this split has no public masks here; score another one, or make its submission with --zip"
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
    """Writes ``metrics.json``, and one line per expression as ``metrics.csv``, or per object where there is none."""
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
    values = dict(_run(Measure(predictions, protocol), expressions, _num_frames, options, "score", "expression"))
    return protocol.summarise(values, expressions)


def _score_davis(davis: DavisProtocol, protocol: Protocol, options: ScoreOptions) -> dict[str, Any]:
    """Protocol A as the headline, C beside it where there are masks of single expressions."""
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
    results = list(
        _run(davis.measure, sequences, lambda s: _num_frames(s.expressions[0]), options, "match", "sequence")
    )
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


def _run(
    function: Callable[[Any], Any],
    items: list[Any],
    length: Callable[[Any], int],
    options: ScoreOptions,
    title: str,
    unit: str,
) -> Any:
    """Results in any order; the longest items first, so that none is left alone at the end."""
    ordered = sorted(items, key=length, reverse=True)
    return tqdm(process_map(function, ordered, options.num_workers), desc=title, unit=unit, total=len(ordered))


def _num_frames(expression: Expression) -> int:
    return len(annotated(expression))


def _with_missing(metrics: dict[str, Any], expressions: list[Expression], scored: list[Expression]) -> dict[str, Any]:
    """The metrics, with the names of what was left out, if anything was."""
    keys = {expression.key for expression in scored}
    missing = ["/".join(expression.key) for expression in expressions if expression.key not in keys]
    return {**metrics, "missing": missing} if missing else metrics
