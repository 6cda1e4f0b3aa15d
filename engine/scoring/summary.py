"""Summarises the scores of expressions to those of a split."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from datasets.split import Expression
from util.metrics import Score

Values = dict[str, float]
Unit = tuple[str, str, Score]  # video id, expression id, score


def summarise(units: Iterable[Unit], expressions: list[Expression]) -> dict[str, Any]:
    """Returns J, F and J&F over all (video, expression id) pairs, of each pair, and by kind if the dataset has kinds.

    Raises:
        AssertionError: if an expression is missing or scored twice.
    """
    scores = {(video, exp_id): result for video, exp_id, result in units}
    expected = [expression.key for expression in expressions]
    assert sorted(scores) == sorted(expected), "every expression is scored exactly once"
    kinds = sorted({expression.kind for expression in expressions if expression.kind is not None})
    by_kind = {
        kind: _means([scores[expression.key] for expression in expressions if expression.kind == kind])
        for kind in kinds
    }
    return {
        **_means([scores[key] for key in expected]),
        **({"kinds": by_kind} if by_kind else {}),
        "units": {f"{video}/{exp_id}": entries(scores[video, exp_id]) for video, exp_id in expected},
    }


def _means(scores: list[Score]) -> dict[str, float]:
    return entries(
        Score(
            float(np.mean([entry.region_similarity for entry in scores])),
            float(np.mean([entry.contour_accuracy for entry in scores])),
        )
    )


def entries(result: Score) -> Values:
    """Returns a score under the names of ``metrics.json``."""
    return {"J": result.region_similarity, "F": result.contour_accuracy, "J&F": result.mean}


def means_of(values: list[Values], names: Iterable[str]) -> Values:
    """Returns the mean of each of some metrics."""
    return {name: float(np.mean([entry[name] for entry in values])) for name in names}
