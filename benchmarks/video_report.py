"""Makes tables and a chart of the measurements of benchmarks/inference.py."""

import statistics
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from benchmarks.random_wan import Size
from benchmarks.video_rows import DIT, PLAIN, ROWS, WHOLE
from engine.scoring.html_page import escape

STAGES = ("read", "text", "encode", "dit", "decode", "resize", "write", "draw")
COLOURS = ("#8a8a8a", "#c9a227", "#3a78b5", "#b5483a", "#5a9e5a", "#8a5ab5", "#444444", "#b58ac9")
BAR, GAP, LABEL, CHART_WIDTH = 22, 10, 150, 560  # pixels


@dataclass
class Measured:
    """The measurements of one run.

    Attributes:
        seconds, peaks: of each stage, in seconds and bytes.
        wall: seconds from file to files; for rows of the DiT each evaluation for all prompts.
        matmul: FLOP/s of the matrix product.
        output: masks [P, T, H, W], packed, or the DiT's mask latents.
    """

    seconds: dict[str, float]
    peaks: dict[str, int]
    wall: list[float]
    matmul: float
    output: NDArray[Any]


Results: TypeAlias = dict[str, list[Measured | None]]


def runs_of(results: Results, part: str) -> dict[str, list[Measured]]:
    """Returns the rows of a kind whose runs all ended; for whole runs also the plain run."""
    return {
        name: [run for run in runs if run is not None]
        for name, runs in results.items()
        if (ROWS[name].part if name in ROWS else WHOLE) == part and None not in runs
    }


def whole_table(results: Results, size: Size) -> str:
    """Returns a Markdown table of seconds per prompt by stage, and of the masks' IoU with the plain run."""
    runs = runs_of(results, WHOLE)
    if not runs:
        return ""
    plain = statistics.median([run.wall[0] for run in runs[PLAIN]]) / size.batch if PLAIN in runs else None
    lines = [
        f"| seconds per prompt | {' | '.join(STAGES)} | all (least to most) | plain / this | peak GiB | mask IoU |",
        "|---" * (len(STAGES) + 5) + "|",
    ]
    for name, every in runs.items():
        wall = [run.wall[0] / size.batch for run in every]
        stages = " | ".join(f"{stage_seconds(every, stage) / size.batch:.2f}" for stage in STAGES)
        peak = statistics.median([max(run.peaks.values()) for run in every]) / 2**30
        words = f"{name}: {ROWS[name].words}" if name in ROWS and ROWS[name].words else name
        sooner = f"{plain / statistics.median(wall):.2f}" if plain else ""
        likeness = f"{iou(runs[PLAIN][0].output, every[0].output):.5f}" if PLAIN in runs else ""
        lines.append(
            f"| {words} | {stages} | {statistics.median(wall):.2f} ({min(wall):.2f} to {max(wall):.2f}) "
            f"| {sooner} | {peak:.2f} | {likeness} |"
        )
    shares = ", ".join(f"{name} {np.unpackbits(every[0].output).mean():.0%}" for name, every in runs.items())
    return "\n".join([*lines, "", f"Share of pixels that the masks cover: {shares}."])


def stage_table(results: Results, size: Size, flops: dict[str, int]) -> str:
    """Returns a Markdown table of FLOP/s, share of the matrix product's, and peak memory by stage."""
    runs = runs_of(results, WHOLE)
    if not runs:
        return ""
    rate = statistics.median([run.matmul for every in runs.values() for run in every])
    lines = [
        f"| row | {' | '.join(f'{stage} TFLOP/s (share of {rate / 1e12:.3g}), peak GiB' for stage in flops)} "
        f"| peak GiB of the others |",
        "|---" * (len(flops) + 2) + "|",
    ]
    for name, every in runs.items():
        cells = []
        for stage, count in flops.items():
            times = 1 if stage == "encode" and name != PLAIN else size.batch
            speed = times * count / stage_seconds(every, stage)
            cells.append(f"{speed / 1e12:.3g} ({speed / rate:.0%}), {stage_peak(every, stage)}")
        others = ", ".join(f"{s} {stage_peak(every, s)}" for s in STAGES if s not in flops and s in every[0].peaks)
        lines.append(f"| {name} | {' | '.join(cells)} | {others} |")
    return "\n".join(lines)


def dit_table(results: Results, size: Size, flops: dict[str, int]) -> str:
    """Returns a Markdown table of the DiT alone; all rows count the same FLOP per prompt and step."""
    runs = runs_of(results, DIT)
    if not runs:
        return ""
    rate = statistics.median([run.matmul for every in runs.values() for run in every])
    lines = [
        "| row | differs in | s per prompt (least to most) | processor s per prompt | TFLOP/s "
        f"| share of {rate / 1e12:.3g} | peak GiB | relative error |",
        "|---" * 8 + "|",
    ]
    for name, every in runs.items():
        wall = [seconds / size.batch for run in every for seconds in run.wall]
        speed = ROWS[name].num_steps * flops["dit"] / statistics.median(wall)
        alike = [runs[other][0].output for other in runs if ROWS[other].num_steps == ROWS[name].num_steps]
        error = np.linalg.norm(every[0].output - alike[0]) / np.linalg.norm(alike[0])
        lines.append(
            f"| {name} | {ROWS[name].words} | {statistics.median(wall):.3f} ({min(wall):.3f} to {max(wall):.3f}) "
            f"| {stage_seconds(every, 'processor') / size.batch:.3f} | {speed / 1e12:.3g} | {speed / rate:.0%} "
            f"| {stage_peak(every, 'dit')} | {error:.1e} |"
        )
    return "\n".join([*lines, "", "Relative error: of the mask latents, against the first row of as many steps."])


def stage_seconds(runs: list[Measured], stage: str) -> float:
    return statistics.median([run.seconds.get(stage, 0.0) for run in runs])


def stage_peak(runs: list[Measured], stage: str) -> str:
    return f"{statistics.median([run.peaks[stage] for run in runs]) / 2**30:.2f}"


def iou(masks: NDArray[np.uint8], others: NDArray[np.uint8]) -> float:
    """Returns the IoU of all packed masks together."""
    union = np.bitwise_count(masks | others).sum()
    return float(np.bitwise_count(masks & others).sum() / union) if union else 1.0


def chart(results: Results, size: Size) -> str:
    """Returns an SVG chart with a bar per row, stages side by side, in seconds per prompt.

    Resizing is part of writing, except in the plain run.
    """
    runs = runs_of(results, WHOLE)
    totals = {
        name: [
            0 if stage == "resize" and name != PLAIN else stage_seconds(every, stage) / size.batch for stage in STAGES
        ]
        for name, every in runs.items()
    }
    scale = CHART_WIDTH / max(sum(stages) for stages in totals.values())
    pieces = []
    for number, (name, stages) in enumerate(totals.items()):
        top, left = GAP + number * (BAR + GAP), float(LABEL)
        pieces.append(f'<text x="0" y="{top + 15}">{escape(name)} {sum(stages):.1f} s</text>')
        for stage, seconds, colour in zip(STAGES, stages, COLOURS, strict=True):
            pieces.append(
                f'<rect x="{left:.1f}" y="{top}" width="{seconds * scale:.1f}" height="{BAR}" fill="{colour}">'
                f"<title>{stage} {seconds:.2f} s</title></rect>"
            )
            left += seconds * scale
    bottom = GAP + len(totals) * (BAR + GAP)
    for number, (stage, colour) in enumerate(zip(STAGES, COLOURS, strict=True)):
        left = LABEL + CHART_WIDTH // len(STAGES) * number
        pieces.append(f'<rect x="{left}" y="{bottom}" width="12" height="12" fill="{colour}"/>')
        pieces.append(f'<text x="{left + 16}" y="{bottom + 11}">{stage}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LABEL + CHART_WIDTH + 10}" height="{bottom + 24}" '
        f'font-family="system-ui, sans-serif" font-size="12"><title>seconds per prompt by stage</title>\n'
        '<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(pieces) + "\n</svg>\n"
    )
