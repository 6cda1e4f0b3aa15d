"""Writes ``report.html``: the metrics and images of a run on one page without scripts or links."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from datasets.split import Expression
from engine.scoring import html_page
from engine.scoring.prediction_folder import PredictionFolder, annotated
from engine.scoring.summary import Values
from util.colours import FIRST_COLOURS
from util.errors import MissingFileError
from util.files import write_text_whole
from util.images import Frame, resize_frame
from util.visualize import draw_masks

NUM_SHOWN = 6  # images of the best, and of the worst expressions
SHOWN = ("J&F", "J", "F")  # in tables and histograms, if the protocol has them
# Upper bounds of object size, in percent of the frame.
AREAS = ((0.0, "never seen"), (1.0, "up to 1 %"), (5.0, "1 to 5 %"), (20.0, "5 to 20 %"), (100.0, "above 20 %"))
MOST_ROWS = 200  # rows per table: each image of RefCOCO is a video
MOST_TARGETS = 4  # from here on one group

Comparison = dict[str, dict[str, float]]
Entry = tuple[Expression, Values]

SIDE = 480  # pixels of an image's longer side
TRUTH_COLOUR, PREDICTION_COLOUR = FIRST_COLOURS[1], FIRST_COLOURS[2]  # blue, pink
GREY = 96  # background if the frames are missing


def write_report(
    file: Path,
    title: str,
    metrics: dict[str, Any],
    predictions: PredictionFolder,
    comparison: Comparison | None = None,
) -> None:
    """Writes the page.

    Args:
        metrics: from ``engine.scoring.score_folder``.
        predictions: the masks that were scored.
        comparison: from ``engine.scoring.comparison.compare``.
    """
    units: dict[str, Values] = metrics.get("units", {})
    by_unit = {"/".join(expression.key): expression for expression in predictions.expressions}
    entries = [(by_unit[unit], values) for unit, values in units.items()]
    sections = [_overall(metrics)]
    if comparison:
        sections.append(_compared(comparison))
    if entries:
        sections += [
            _distributions(entries),
            *_by_kind(entries),
            _grouped("By object size", entries, _area, [name for _, name in AREAS]),
            _grouped("By number of targets", entries, lambda e, _: _num_targets(e)),
            *_images(entries, predictions),
            _grouped("By video, the worst first", entries, lambda e, _: e.video, by_score=True),
        ]
    write_text_whole(file, html_page.document(title, sections))


def _overall(metrics: dict[str, Any]) -> str:
    groups = {**metrics.get("kinds", {}), **_named(metrics.get("annotators", {})), "all": metrics}
    if "C" in metrics:
        groups["protocol C"] = metrics["C"]
    names = [name for name, value in metrics.items() if isinstance(value, float)]
    names += [name for name, value in metrics.get("C", {}).items() if isinstance(value, float) and name not in names]
    rows: list[list[str | float | int]] = [
        [group, *(means.get(name, "") for name in names)] for group, means in groups.items()
    ]
    notes = (
        [html_page.note(f"Protocol {metrics['protocol']}; overlaps: {metrics['overlaps']}.")]
        if "protocol" in metrics
        else []
    )
    if "missing" in metrics:
        notes.append(html_page.note(f"{len(metrics['missing'])} expressions were incomplete and left out."))
    return html_page.section("Overall", html_page.table(["", *names], rows), *notes)


def _named(annotators: dict[str, Any]) -> dict[str, Any]:
    return {f"annotator {number}": means for number, means in annotators.items()}


def _compared(comparison: Comparison) -> str:
    rows: list[list[str | float | int]] = [
        [
            *(name, entry["this"], entry["other"], f"{entry['difference']:+.4f}"),
            f"{entry['low']:+.4f} to {entry['high']:+.4f}",
        ]
        for name, entry in comparison.items()
    ]
    return html_page.section(
        "Against the other run",
        html_page.table(["", "this run", "other run", "difference", "95 % interval"], rows),
        html_page.note(
            "Means over the expressions, or the objects of Ref-DAVIS17's protocol A where both runs have them. The "
            "interval is a paired bootstrap that draws whole videos; where it holds zero, the runs may be alike."
        ),
    )


def _distributions(entries: list[Entry]) -> str:
    charts = [html_page.histogram(name, np.array([values[name] for _, values in entries])) for name in _shown(entries)]
    return html_page.section("Distributions over expressions", html_page.row(charts))


def _by_kind(entries: list[Entry]) -> list[str]:
    """Returns the section by kind of expression; empty if the dataset has no kinds."""
    if not any(expression.kind for expression, _ in entries):
        return []
    return [_grouped("By kind of sentence", entries, lambda e, _: e.kind or "not labelled")]


def _grouped(
    heading: str,
    entries: list[Entry],
    group_of: Callable[[Expression, Values], str],
    order: list[str] | None = None,
    by_score: bool = False,
) -> str:
    """Returns a table with one line per group."""
    groups: dict[str, list[Values]] = {}
    for expression, values in entries:
        groups.setdefault(group_of(expression, values), []).append(values)
    names = _shown(entries)
    rows: list[list[str | float | int]] = [
        [group, len(members), *(float(np.mean([values[name] for values in members])) for name in names)]
        for group, members in groups.items()
    ]
    position = {name: number for number, name in enumerate(order or sorted(groups))}
    rows.sort(key=lambda row: (row[2] if by_score else 0, position[str(row[0])]))
    more = len(rows) - MOST_ROWS
    notes = [html_page.note(f"And {more} more; metrics.csv has every expression.")] if more > 0 else []
    return html_page.section(heading, html_page.table(["", "expressions", *names], rows[:MOST_ROWS]), *notes)


def _images(entries: list[Entry], predictions: PredictionFolder) -> list[str]:
    """Returns images of the best and the worst expressions that show something."""
    name = _shown(entries)[0]
    visible = [entry for entry in entries if entry[1]["true_frames"] or entry[1]["predicted_frames"]]
    ranked = sorted(visible, key=lambda entry: (entry[1][name], entry[0].key))
    num_worst = min(NUM_SHOWN, (len(ranked) + 1) // 2)
    num_best = min(NUM_SHOWN, len(ranked) // 2)
    rankings = (("Worst", ranked[:num_worst]), ("Best", ranked[::-1][:num_best]))
    return [
        html_page.section(
            f"{heading} by {name}",
            html_page.note(
                "Pink: the prediction. Blue outline: the ground truth. The frame with the largest ground truth."
            ),
            html_page.row([_image(entry, name, predictions) for entry in chosen]),
        )
        for heading, chosen in rankings
        if chosen
    ]


def _image(entry: Entry, name: str, predictions: PredictionFolder) -> str:
    expression, values = entry
    image, frame = draw_frame(predictions, expression)
    return html_page.figure(
        image, f"{name} {values[name]:.3f} · {'/'.join(expression.key)}/{frame} · {expression.caption}"
    )


def _area(expression: Expression, values: Values) -> str:  # noqa: ARG001
    return next(name for bound, name in AREAS if 100 * values["true_area"] <= bound)


def _num_targets(expression: Expression) -> str:
    if expression.object_ids is None:
        return "not known"
    count = len(expression.object_ids)
    return str(count) if count < MOST_TARGETS else f"{MOST_TARGETS} or more"


def _shown(entries: list[Entry]) -> list[str]:
    return [name for name in SHOWN if name in entries[0][1]]


def draw_frame(predictions: PredictionFolder, expression: Expression) -> tuple[Frame, str]:
    """Draws the frame with the largest ground truth, or without any the largest prediction; returns it and its name."""
    split, size, indices = predictions.split, predictions.size(expression), annotated(expression)
    masks = split.masks(expression, indices, size)
    if not masks.any():
        masks = predictions.read(expression)
    row = int(np.count_nonzero(masks, axis=(1, 2)).argmax())
    pair = (predictions.read(expression, row)[0], split.masks(expression, [indices[row]], size)[0])
    try:
        frame = split.read_frames(expression, [indices[row]])[0]
    except MissingFileError:  # scoring needs no frames
        frame = np.full((*size, 3), GREY, np.uint8)
    # Resized first: an outline is some pixels wide and would cover most of a small frame.
    height, width = (max(1, round(side * SIDE / max(size))) for side in size)
    shown = [
        cv2.resize(mask.view(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST).view(bool)[None]
        for mask in pair
    ]
    tinted = draw_masks(resize_frame(frame, height, width), shown[0], [PREDICTION_COLOUR])
    return draw_masks(tinted, shown[1], [TRUTH_COLOUR], opacity=0), expression.frames[indices[row]]
