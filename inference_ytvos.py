"""Segment a split of Ref-YouTube-VOS, and score it if it has ground truth.

    python inference_ytvos.py --ytvos_path datasets/refer_youtube_vos --dit_ckpt dit.pth --vae_ckpt vae.pth

Writes <output_dir>/Annotations/<video>/<exp_id>/<frame>.png. The same command continues a stopped run. Under
torchrun the processes share the videos; each runs on a GPU of its own.
"""

from datasets.registry import DATASETS, add_path_flag, split_type
from util.errors import exit_on_user_error, interruptible_imports
from util.flags import (
    REMOVED_FROM_INFERENCE,
    add_device_flags,
    add_inference_flags,
    add_segment_flags,
    add_video_list_flag,
    add_weight_flags,
)
from util.options import OptionParser

PROGRAM = "inference_ytvos.py"


def build_parser() -> OptionParser:
    parser = OptionParser(
        prog=PROGRAM, description="Segment a split of Ref-YouTube-VOS, and score it.", removed=REMOVED_FROM_INFERENCE
    )
    add_path_flag(parser, "ytvos", "meta_expressions, train and valid")
    parser.add_argument(
        "--split",
        type=split_type("ytvos"),
        default=DATASETS["ytvos"].scored_split,
        metavar="SPLIT",
        help="train, valid or test; valid is the benchmark",
    )
    add_video_list_flag(parser)
    add_inference_flags(parser, "output/ytvos")
    add_weight_flags(parser)
    add_device_flags(parser)
    add_segment_flags(parser)
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = build_parser().parse_args(arguments)
    with exit_on_user_error(PROGRAM):
        with interruptible_imports(PROGRAM):
            from engine.inference.run import run  # noqa: PLC0415, heavy: --help and refused flags answer without it

        run(options, "ytvos")


if __name__ == "__main__":
    main()
