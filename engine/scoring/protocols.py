"""Scoring protocols: what is measured of an expression, and how a split is summarised."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.split import Expression
from engine.scoring.measures import (
    PRECISIONS,
    iou_change,
    iou_drift,
    overall_iou,
    precision_at,
    temporal_iou,
    video_iou,
    without_void,
)
from engine.scoring.summary import Values, entries, means_of, summarise
from util.metrics import Areas, Score, count_areas, count_pixels

Masks = NDArray[np.bool_]
Key = tuple[str, str]  # video id, expression id

VIDEO_MEANS = ("tIoU", "vIoU", "temporal_change", "temporal_drift")


class Protocol(ABC):
    """A scoring protocol.

    Attributes:
        headline: the key in the metrics of a split that papers compare.
    """

    headline: str

    @abstractmethod
    def measure(self, prediction: Masks, truth: Masks, void: Masks | None) -> Values:
        """Returns the metrics of one expression, from masks [T, H, W] of its annotated frames."""

    @abstractmethod
    def summarise(self, values: dict[Key, Values], expressions: list[Expression]) -> dict[str, Any]:
        """Returns the content of ``metrics.json``: of the split, and under ``units`` of each expression."""


class VideoProtocol(Protocol):
    """MeViS, Ref-YouTube-VOS, Long-RVOS, and protocol C of Ref-DAVIS17: the mean over expressions.

    Void pixels count like others, as in the official scripts.
    """

    headline = "J&F"

    def measure(self, prediction: Masks, truth: Masks, void: Masks | None) -> Values:  # noqa: ARG002
        counts = count_pixels(prediction, truth)
        return {**entries(counts.score), **_video_values(counts), **_presence(counts, truth)}

    def summarise(self, values: dict[Key, Values], expressions: list[Expression]) -> dict[str, Any]:
        scores = [(*key, Score(entry["J"], entry["F"])) for key, entry in values.items()]
        metrics = summarise(scores, expressions)
        kinds = {
            kind: {**means, **_further(values[e.key] for e in expressions if e.kind == kind)}
            for kind, means in metrics.get("kinds", {}).items()
        }
        return {
            **{name: metrics[name] for name in ("J", "F", "J&F")},
            **_further(values[expression.key] for expression in expressions),
            **({"kinds": kinds} if kinds else {}),
            "units": _units(values, expressions),
        }


class ImageProtocol(Protocol):
    """RefCOCO, A2D and JHMDB: one mask per expression.

    Args:
        is_strict: see ``engine.scoring.measures.precision_at``.
    """

    headline = "oIoU"

    def __init__(self, is_strict: bool) -> None:
        self.is_strict = is_strict

    def measure(self, prediction: Masks, truth: Masks, void: Masks | None) -> Values:  # noqa: ARG002
        areas = count_areas(prediction, truth)
        return {
            "J": float(areas.region_similarity.mean()),
            "shared_pixels": int(areas.shared.sum()),
            "union_pixels": int(areas.union.sum()),
            **_presence(areas, truth),
        }

    def summarise(self, values: dict[Key, Values], expressions: list[Expression]) -> dict[str, Any]:
        ordered = [values[expression.key] for expression in expressions]
        ious = np.array([entry["J"] for entry in ordered])
        shared, union = (np.array([entry[name] for entry in ordered]) for name in ("shared_pixels", "union_pixels"))
        return {
            "oIoU": overall_iou(shared, union),
            "mIoU": float(ious.mean()),
            **{f"P@{threshold}": precision_at(ious, threshold, self.is_strict) for threshold in PRECISIONS},
            "units": _units(values, expressions),
        }


class ClassProtocol(Protocol):
    """REM's protocol: the mean J over the videos of a class, then over classes; void pixels are ignored."""

    headline = "J"

    def measure(self, prediction: Masks, truth: Masks, void: Masks | None) -> Values:
        prediction, truth = without_void(prediction, void), without_void(truth, void)
        areas = count_areas(prediction, truth)
        return {"J": float(areas.region_similarity.mean()), **_video_values(areas), **_presence(areas, truth)}

    def summarise(self, values: dict[Key, Values], expressions: list[Expression]) -> dict[str, Any]:
        kinds = {
            kind: means_of([values[e.key] for e in expressions if e.kind == kind], ("J", *VIDEO_MEANS))
            for kind in sorted({str(expression.kind) for expression in expressions})
        }
        return {
            **means_of(list(kinds.values()), ("J", *VIDEO_MEANS)),
            "kinds": kinds,
            "units": _units(values, expressions),
        }


# By the name that a row of ``datasets.registry`` gives.
PROTOCOLS: dict[str, Protocol] = {
    "video": VideoProtocol(),
    "image": ImageProtocol(is_strict=False),
    "strict_image": ImageProtocol(is_strict=True),
    "class": ClassProtocol(),
}


def target_accuracies(values: Iterable[Values]) -> Values:
    """Returns N-acc and T-acc of MeViS v2, each if there are such expressions.

    N-acc: the share of expressions without a target whose masks are empty in every frame.
    T-acc: the share of the other expressions whose masks show something in some frame.
    """
    answered: dict[bool, list[bool]] = {False: [], True: []}
    for entry in values:
        answered[entry["true_frames"] > 0].append(entry["predicted_frames"] > 0)
    return {
        **({"N-acc": 1 - float(np.mean(answered[False]))} if answered[False] else {}),
        **({"T-acc": float(np.mean(answered[True]))} if answered[True] else {}),
    }


def _video_values(areas: Areas) -> Values:
    return {
        "tIoU": temporal_iou(areas),
        "vIoU": video_iou(areas),
        "temporal_change": iou_change(areas.region_similarity),
        "temporal_drift": iou_drift(areas.region_similarity),
    }


def _presence(areas: Areas, truth: Masks) -> Values:
    """Counts the frames that show something, and measures the share of the frame that ground truth takes up there."""
    seen = areas.true[areas.true > 0]
    return {
        "predicted_frames": int(np.count_nonzero(areas.predicted)),
        "true_frames": len(seen),
        "true_area": float(seen.mean()) / truth[0].size if len(seen) else 0.0,
    }


def _further(values: Iterable[Values]) -> Values:
    listed = list(values)
    return {**means_of(listed, VIDEO_MEANS), **target_accuracies(listed)}


def _units(values: dict[Key, Values], expressions: list[Expression]) -> dict[str, Values]:
    return {"/".join(expression.key): values[expression.key] for expression in expressions}
