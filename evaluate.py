"""Score a folder of predicted masks, or make its submission zip; no model, no torch.

    python evaluate.py --dataset mevis --mevis_path datasets/MeViS --split valid_u --pred output/mevis --output_dir out
    python evaluate.py --dataset mevis --mevis_path datasets/MeViS --split valid --pred output/mevis --zip mevis.zip

See docs/evaluation.md for each dataset's protocol.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from datasets.scored import NAMES, SPLITS, open_split
from datasets.split import chosen_expressions
from engine.scoring.comparison import check_comparable, compare, read_metrics
from engine.scoring.prediction_folder import PredictionFolder
from engine.scoring.protocols import PROTOCOLS
from engine.scoring.report import write_report
from engine.scoring.score_folder import ScoreOptions, score_folder, write_metrics
from engine.scoring.submission import write_zip
from util.errors import UserError, exit_on_user_error
from util.files import staged_folder, write_text_whole
from util.flags import add_dataset_flags, add_selection_flags, add_video_list_flag
from util.options import OptionParser, int_in
from util.workers import num_cores

PROGRAM = "evaluate.py"
RESULTS = ("metrics.json", "metrics.csv", "comparison.json", "report.html")
OTHER_PATHS = {"burst": "datasets/TAO", "vspw": "datasets/VSPW_480p", "folder": "datasets/folder"}


def build_parser() -> OptionParser:
    parser = OptionParser(prog=PROGRAM, description="Score predicted masks, or make their submission zip.")
    parser.add_argument("--dataset", choices=NAMES, required=True, help="whose expressions were segmented")
    parser.add_argument("--split", help="by default the one with public masks: of MeViS valid_u")
    parser.add_argument(
        "--pred", required=True, metavar="DIR", help="holds <video>/<exp_id>/<frame>.png, or Annotations"
    )
    parser.add_argument("--output_dir", default="output/scores", metavar="DIR", help="where metrics.json and .csv go")
    parser.add_argument("--zip", metavar="FILE", help="make the submission zip instead of scoring; needs no truth")
    parser.add_argument("--partial", action="store_true", help="leave incomplete expressions out instead of refusing")
    add_selection_flags(parser)
    parser.add_argument("--num_workers", type=int_in(0), default=num_cores(), help="processes; 0 works in this one")
    parser.add_argument("--compare", metavar="FILE", help="the metrics.json of another run on the same expressions")
    parser.add_flag("--report", default=True, help="write report.html")
    add_dataset_flags(parser)
    for name, default in OTHER_PATHS.items():
        parser.add_argument(f"--{name}_path", default=default, metavar="DIR", help=f"folder of {name}")
    add_video_list_flag(parser)
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = build_parser().parse_args(arguments)
    with exit_on_user_error(PROGRAM):
        run(options)


def run(options: argparse.Namespace) -> None:
    split, pred = open_split(options), Path(options.pred)
    if options.zip:
        if options.partial or options.videos or options.limit:
            raise UserError("--zip: servers take whole splits only; leave out --partial, --videos and --limit")
        content = write_zip(split, options.dataset, pred, Path(options.zip))
        print(f"Wrote {options.zip}: {content}")
        return
    other = read_metrics(Path(options.compare)) if options.compare else None
    expressions = chosen_expressions(split, options.limit, options.videos)
    if other and not options.partial:
        check_comparable(expressions, other, Path(options.compare))
    protocol = PROTOCOLS[options.dataset]
    with staged_folder(Path(options.output_dir), "scores") as staging:
        metrics = score_folder(split, expressions, pred, protocol, ScoreOptions(options.num_workers, options.partial))
        comparison = compare(metrics, other, Path(options.compare)) if other else None
        write_metrics(staging, metrics, expressions)
        if comparison:
            write_text_whole(staging / "comparison.json", json.dumps(comparison, indent=1) + "\n")
        if options.report:
            title = f"{pred} on {options.dataset} {options.split or SPLITS[options.dataset][0]}"
            write_report(
                staging / "report.html", title, metrics, PredictionFolder(pred, split, expressions), comparison
            )
        written = deliver(staging, Path(options.output_dir))
    print_metrics(metrics)
    print_comparison(comparison or {})
    print(f"Wrote to {options.output_dir}: {', '.join(written)}")


def deliver(staging: Path, out: Path) -> list[str]:
    """Moves the results into place, and removes those of an earlier run that this one does not replace."""
    written = [name for name in RESULTS if (staging / name).is_file()]
    for name in RESULTS:
        if name in written:
            (staging / name).replace(out / name)
        else:
            (out / name).unlink(missing_ok=True)
    return written


def print_metrics(metrics: dict[str, Any]) -> None:
    """One line for each kind of sentence or annotator, and for the whole."""
    for name, means in {**metrics.get("kinds", {}), **metrics.get("annotators", {}), "all": metrics}.items():
        numbers = "  ".join(f"{key} {value:.4f}" for key, value in means.items() if isinstance(value, float))
        print(f"{name:10s} {numbers}")
    if "C" in metrics:
        print(f"{'C':10s} J {metrics['C']['J']:.4f}  F {metrics['C']['F']:.4f}  J&F {metrics['C']['J&F']:.4f}")
    if "missing" in metrics:
        print(f"Left out as incomplete: {len(metrics['missing'])} expressions, listed under 'missing'")


def print_comparison(comparison: dict[str, dict[str, float]]) -> None:
    """One line for each number."""
    for name, entry in comparison.items():
        interval = f"95 % from {entry['low']:+.4f} to {entry['high']:+.4f}"
        print(f"{name:16s} {entry['difference']:+.4f} against the other run, {interval}")


if __name__ == "__main__":
    main()
