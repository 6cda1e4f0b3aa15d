"""Compares two runs on the same expressions: how much they differ, with bootstrap intervals."""

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.split import Expression
from engine.scoring.prediction_folder import listed
from util.errors import MissingFileError, UserError
from util.files import read_text

COMPARED = ("J&F", "J", "F", "tIoU", "vIoU", "temporal_change")
FLAG = "--compare"

NUM_DRAWS = 10_000
CHUNK = 500  # draws at once; 40 MB for ten thousand videos
LEVEL = 0.95


def read_metrics(file: Path) -> dict[str, Any]:
    """Reads the ``metrics.json`` of another run.

    Raises:
        UserError: if it is missing, or another kind of file.
    """
    if not file.is_file():
        raise MissingFileError(f"{FLAG} {file}: no such file; give the metrics.json of another run")
    try:
        metrics = json.loads(read_text(file))
        tables = [metrics[name] for name in ("units", "objects") if name in metrics]
        if not tables or not all(isinstance(value, dict) for table in tables for value in table.values()):
            raise ValueError("it has no 'units'")
        _check_numbers(tables)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{FLAG} {file}: not a metrics.json ({error}); give that of another run") from None
    return dict(metrics)


def check_comparable(expressions: list[Expression], other: dict[str, Any], file: Path) -> None:
    """Checks before scoring that another run scored the same expressions.

    Raises:
        UserError: if it did not. Ref-DAVIS17, which compares objects, is checked later, by ``compare``.
    """
    if "objects" not in other:
        _check_same(["/".join(expression.key) for expression in expressions], other["units"], "units", file)


def compare(metrics: dict[str, Any], other: dict[str, Any], file: Path) -> dict[str, dict[str, float]]:
    """Compares each metric that both runs have: both means, their difference, and its interval.

    Protocol A of Ref-DAVIS17 compares objects, all other protocols expressions. The bootstrap draws whole videos.

    Args:
        file: where ``other`` was read from.

    Raises:
        UserError: if the runs scored different expressions, or by different protocols.
    """
    # Objects are named anno_<k>/<video>/<number>, expressions <video>/<exp_id>.
    name, position = ("objects", 1) if "objects" in metrics and "objects" in other else ("units", 0)
    own, others = metrics.get(name, {}), other.get(name, {})
    _check_same(own, others, name, file)
    groups = [key.split("/")[position] for key in own]
    common = [m for m in COMPARED if all(m in values for table in (own, others) for values in table.values())]
    if not common:
        raise UserError(
            f"{FLAG} {file}: must have at least one of {', '.join(COMPARED)} for its {name}, got none; "
            "score that run again"
        )
    result = {}
    for measure in common:
        ours, theirs = (np.array([table[key][measure] for key in own], np.float64) for table in (own, others))
        interval = paired_interval(ours - theirs, groups)
        result[measure] = {
            "this": float(ours.mean()),
            "other": float(theirs.mean()),
            "difference": interval.mean,
            "low": interval.low,
            "high": interval.high,
        }
    return result


def _check_same(own: Collection[str], others: Collection[str], name: str, file: Path) -> None:
    different = [*(key for key in own if key not in others), *(key for key in others if key not in own)]
    if different or not own:
        raise UserError(
            f"{FLAG} {file}: must score the same {name}, but one run only has {listed(different) or 'none'}; "
            "compare runs on one split with the same --videos and --limit"
        )


def _check_numbers(tables: list[dict[str, dict[str, Any]]]) -> None:
    """Raises ``ValueError`` if a value to compare is not a number."""
    for unit, values in (item for table in tables for item in table.items()):
        for measure in COMPARED:
            value = values.get(measure, 0.0)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{measure} of {unit} is {str(value)[:40]!r}")


@dataclass(frozen=True)
class Interval:
    """A mean difference, and the bounds that hold in ``LEVEL`` of the resamples."""

    mean: float
    low: float
    high: float


def paired_interval(differences: NDArray[np.float64], groups: Sequence[str], seed: int = 0) -> Interval:
    """Returns the bootstrap interval of the mean of paired differences; draws whole groups with replacement.

    Args:
        differences: [N], of the same item in two runs.
        groups: [N] names. Items of a group, such as expressions of one video, succeed and fail together; drawing them
            one
            by one would make a difference look more certain than it is.
    """
    _, numbers = np.unique(np.array(groups), return_inverse=True)
    sums, counts = np.bincount(numbers, differences), np.bincount(numbers)
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(0, NUM_DRAWS, CHUNK):
        drawn = rng.integers(0, len(sums), (CHUNK, len(sums)))
        means.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    low, high = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return Interval(float(differences.mean()), low, high)
