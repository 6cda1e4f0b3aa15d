"""Segment a split of Ref-DAVIS17, and score it if it has ground truth.

    python inference_davis.py --davis_path datasets/refer_davis --dit_ckpt dit.pth --vae_ckpt vae.pth

Writes <output_dir>/Annotations/<video>/<exp_id>/<frame>.png, one mask per expression, and
<output_dir>/anno_<a>/<video>/<frame>.png, the merged objects of each annotator, which the published protocol scores;
metrics.json scores single expressions, so it is a diagnostic only. The same command continues a stopped run. Under
torchrun the processes share the videos; each runs on a GPU of its own.
"""

from datasets.registry import DATASETS, add_path_flag, split_type
from util.errors import exit_on_user_error, interruptible_imports
from util.flags import (
    REMOVED_FROM_INFERENCE,
    add_device_flags,
    add_inference_flags,
    add_segment_flags,
    add_weight_flags,
)
from util.options import OptionParser

PROGRAM = "inference_davis.py"


def build_parser() -> OptionParser:
    parser = OptionParser(
        prog=PROGRAM, description="Segment a split of Ref-DAVIS17, and score it.", removed=REMOVED_FROM_INFERENCE
    )
    add_path_flag(parser, "davis", "meta_expressions, train and valid")
    parser.add_argument(
        "--split",
        type=split_type("davis"),
        default=DATASETS["davis"].scored_split,
        metavar="SPLIT",
        help="train or valid; valid is the benchmark",
    )
    add_inference_flags(parser, "output/davis")
    add_weight_flags(parser)
    add_device_flags(parser)
    add_segment_flags(parser)
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = build_parser().parse_args(arguments)
    with exit_on_user_error(PROGRAM):
        with interruptible_imports(PROGRAM):
            from engine.inference.run import run  # noqa: PLC0415, heavy: --help and refused flags answer without it

        run(options, "davis")


if __name__ == "__main__":
    main()
