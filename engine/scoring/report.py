"""``report.html``: a run's numbers and pictures on one page that needs nothing but itself. Free of torch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from datasets.split import Expression
from engine.scoring import html_page
from engine.scoring.prediction_folder import PredictionFolder, annotated
from engine.scoring.summary import Values
from util.errors import MissingFileError
from util.files import write_text_whole
from util.images import Frame, resize_frame
from util.visualize import FIRST_COLOURS, draw_masks

NUM_PICTURES = 6  # of the best, and of the worst
SHOWN = ("J&F", "J", "F")  # in tables and histograms, those that a protocol has
# Upper bounds of the share of a frame that an object takes up, in percent.
AREAS = ((0.0, "never seen"), (1.0, "up to 1 %"), (5.0, "1 to 5 %"), (20.0, "5 to 20 %"), (100.0, "above 20 %"))
MOST_ROWS = 200  # of a table: every picture of RefCOCO is a video of its own
MOST_TARGETS = 4  # more are one group

Comparison = dict[str, dict[str, float]]
Entry = tuple[Expression, Values]

SIDE = 480  # pixels of the longer side
TRUTH_COLOUR, PREDICTION_COLOUR = FIRST_COLOURS[1], FIRST_COLOURS[2]  # blue, pink
GREY = 96  # of the ground where a dataset has no pictures


def write_report(
    file: Path,
    title: str,
    metrics: dict[str, Any],
    predictions: PredictionFolder,
    comparison: Comparison | None = None,
) -> None:
    """Writes the page.

    Args:
        metrics: of ``engine.scoring.score_folder``.
        predictions: what they are of.
        comparison: of ``engine.scoring.comparison.compare``.
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
            *_pictures(entries, predictions),
            _grouped("By video, the worst first", entries, lambda e, _: e.video, by_score=True),
        ]
    write_text_whole(file, html_page.document(title, sections))


def _overall(metrics: dict[str, Any]) -> str:
    parts = {**metrics.get("kinds", {}), **_named(metrics.get("annotators", {})), "all": metrics}
    if "C" in metrics:
        parts["protocol C"] = metrics["C"]
    names = [name for name, value in metrics.items() if isinstance(value, float)]
    names += [name for name, value in metrics.get("C", {}).items() if isinstance(value, float) and name not in names]
    rows: list[list[str | float | int]] = [
        [part, *(means.get(name, "") for name in names)] for part, means in parts.items()
    ]
    notes = (
        [html_page.note(f"Protocol {metrics['protocol']}; overlaps: {metrics['overlaps']}.")]
        if "protocol" in metrics
        else []
    )
    if "missing" in metrics:
        notes.append(html_page.note(f"{len(metrics['missing'])} expressions were left out as incomplete."))
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
    """Nothing where the dataset labels no sentence."""
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
    """A table with a line for each group."""
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


def _pictures(entries: list[Entry], predictions: PredictionFolder) -> list[str]:
    """The best and the worst of the expressions that show something."""
    name = _shown(entries)[0]
    visible = [entry for entry in entries if entry[1]["true_frames"] or entry[1]["predicted_frames"]]
    ranked = sorted(visible, key=lambda entry: (entry[1][name], entry[0].key))
    num_worst = min(NUM_PICTURES, (len(ranked) + 1) // 2)
    num_best = min(NUM_PICTURES, len(ranked) // 2)
    parts = (("Worst", ranked[:num_worst]), ("Best", ranked[::-1][:num_best]))
    return [
        html_page.section(
            f"{heading} by {name}",
            html_page.note(
                "Tinted pink: the prediction. Outlined in blue: the truth. The frame with the largest truth."
            ),
            html_page.row([_picture(entry, name, predictions) for entry in chosen]),
        )
        for heading, chosen in parts
        if chosen
    ]


def _picture(entry: Entry, name: str, predictions: PredictionFolder) -> str:
    expression, values = entry
    picture, frame = draw_frame(predictions, expression)
    return html_page.figure(
        picture, f"{name} {values[name]:.3f} · {'/'.join(expression.key)}/{frame} · {expression.caption}"
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
    """The frame with the largest truth, or of nothing else the largest prediction; and its name."""
    split, size, indices = predictions.split, predictions.size(expression), annotated(expression)
    masks = split.masks(expression, indices, size)
    if not masks.any():
        masks = predictions.read(expression)
    row = int(np.count_nonzero(masks, axis=(1, 2)).argmax())
    pair = (predictions.read(expression, row)[0], split.masks(expression, [indices[row]], size)[0])
    try:
        frame = split.read_frames(expression, [indices[row]])[0]
    except MissingFileError:  # to score, pictures are not needed
        frame = np.full((*size, 3), GREY, np.uint8)
    # Resized first: an outline is some pixels wide, and would cover what little there is of a small frame.
    height, width = (max(1, round(side * SIDE / max(size))) for side in size)
    shown = [
        cv2.resize(mask.view(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST).view(bool)[None]
        for mask in pair
    ]
    tinted = draw_masks(resize_frame(frame, height, width), shown[0], [PREDICTION_COLOUR])
    return draw_masks(tinted, shown[1], [TRUTH_COLOUR], opacity=0), expression.frames[indices[row]]
