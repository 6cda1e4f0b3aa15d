"""Runs the scoring: from the flags of ``evaluate.py`` to metrics and report, or to a submission zip."""

import argparse
import json
from pathlib import Path
from typing import Any

from datasets.registry import DATASETS, DatasetPaths, open_split, split_name
from datasets.split import chosen_expressions
from engine.scoring.comparison import check_comparable, compare, read_metrics
from engine.scoring.prediction_folder import PredictionFolder
from engine.scoring.protocols import PROTOCOLS
from engine.scoring.report import write_report
from engine.scoring.score_folder import ScoreOptions, score_folder, write_metrics
from engine.scoring.submission import write_zip
from util.errors import UserError
from util.files import staged_folder, write_text_whole

RESULTS = ("metrics.json", "metrics.csv", "comparison.json", "report.html")


def run(options: argparse.Namespace) -> None:
    """Scores a folder of masks and writes the results, or writes the submission zip.

    Raises:
        UserError: if masks, ground truth or options cannot be used.
    """
    paths = DatasetPaths.from_flags(options)
    name = split_name(options.dataset, options.split)
    split, pred = open_split(options.dataset, name, paths), Path(options.pred)
    if options.zip:
        if options.partial or options.videos or options.limit:
            raise UserError("--zip: the server scores whole splits only; leave out --partial, --videos and --limit")
        content = write_zip(split, options.dataset, pred, Path(options.zip))
        print(f"Wrote {options.zip}: {content}")
        return
    other = read_metrics(Path(options.compare)) if options.compare else None
    expressions = chosen_expressions(split, options.limit, options.videos)
    if other and not options.partial:
        check_comparable(expressions, other, Path(options.compare))
    protocol = PROTOCOLS[DATASETS[options.dataset].protocol]
    with staged_folder(Path(options.output_dir), "scores") as staging:
        metrics = score_folder(split, expressions, pred, protocol, ScoreOptions(options.num_workers, options.partial))
        comparison = compare(metrics, other, Path(options.compare)) if other else None
        write_metrics(staging, metrics, expressions)
        if comparison:
            write_text_whole(staging / "comparison.json", json.dumps(comparison, indent=1) + "\n")
        if options.report:
            title = f"{pred} on {options.dataset} {name}"
            write_report(
                staging / "report.html", title, metrics, PredictionFolder(pred, split, expressions), comparison
            )
        written = deliver(staging, Path(options.output_dir))
    print_metrics(metrics)
    print_comparison(comparison or {})
    print(f"Wrote to {options.output_dir}: {', '.join(written)}")


def deliver(staging: Path, out: Path) -> list[str]:
    """Moves the results to ``out`` and removes those of an earlier run; returns their names."""
    written = [name for name in RESULTS if (staging / name).is_file()]
    for name in RESULTS:
        if name in written:
            (staging / name).replace(out / name)
        else:
            (out / name).unlink(missing_ok=True)
    return written


def print_metrics(metrics: dict[str, Any]) -> None:
    """Prints one line per kind of expression or annotator, and one for the whole split."""
    for name, means in {**metrics.get("kinds", {}), **metrics.get("annotators", {}), "all": metrics}.items():
        numbers = "  ".join(f"{key} {value:.4f}" for key, value in means.items() if isinstance(value, float))
        print(f"{name:10s} {numbers}")
    if "C" in metrics:
        print(f"{'C':10s} J {metrics['C']['J']:.4f}  F {metrics['C']['F']:.4f}  J&F {metrics['C']['J&F']:.4f}")
    if "missing" in metrics:
        print(f"Left out as incomplete: {len(metrics['missing'])} expressions, listed under 'missing'")


def print_comparison(comparison: dict[str, dict[str, float]]) -> None:
    """Prints one line per metric."""
    for name, entry in comparison.items():
        interval = f"95 % from {entry['low']:+.4f} to {entry['high']:+.4f}"
        print(f"{name:16s} {entry['difference']:+.4f} against the other run, {interval}")
