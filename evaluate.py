"""Score a folder of predicted masks, or write its submission zip; no model, no torch.

    python evaluate.py --dataset mevis --mevis_path datasets/MeViS --split valid_u --pred output/mevis --output_dir out
    python evaluate.py --dataset mevis --mevis_path datasets/MeViS --split valid --pred output/mevis --zip mevis.zip

See docs/evaluation.md for the protocol of each dataset.
"""

from datasets.registry import SCORED, add_dataset_flags
from util.errors import exit_on_user_error, interruptible_imports
from util.flags import add_selection_flags, add_video_list_flag
from util.options import OptionParser, add_flag, int_in

PROGRAM = "evaluate.py"


def build_parser() -> OptionParser:
    parser = OptionParser(prog=PROGRAM, description="Score predicted masks, or write their submission zip.")
    parser.add_argument("--dataset", choices=SCORED, required=True, help="dataset whose expressions were segmented")
    parser.add_argument("--split", help="split that was segmented; by default one with public masks, for MeViS valid_u")
    parser.add_argument(
        "--pred", required=True, metavar="DIR", help="folder of <video>/<exp_id>/<frame>.png, or with Annotations in it"
    )
    parser.add_argument(
        "--output_dir", default="output/scores", metavar="DIR", help="folder for metrics.json, metrics.csv, report.html"
    )
    parser.add_argument("--zip", metavar="FILE", help="write the submission zip instead of scoring")
    parser.add_argument(
        "--partial", action="store_true", help="leave incomplete expressions out instead of refusing them"
    )
    add_selection_flags(parser)
    parser.add_argument(
        "--num_workers", type=int_in(0), metavar="N",
        help="worker processes that score; 0 scores in this process; by default one per core, none for small folders",
    )  # fmt: skip
    parser.add_argument(
        "--compare", metavar="FILE", help="metrics.json of another run on the same expressions, to compare with"
    )
    add_flag(parser, "--report", True, "write report.html")
    add_dataset_flags(parser, SCORED)
    add_video_list_flag(parser)
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = build_parser().parse_args(arguments)
    with exit_on_user_error(PROGRAM):
        with interruptible_imports(PROGRAM):
            from engine.scoring.run import run  # noqa: PLC0415, heavy: --help and refused flags answer without it

        run(options)


if __name__ == "__main__":
    main()
