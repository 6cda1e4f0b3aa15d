"""Segment a split of MeViS, and score it if it has ground truth.

    python inference_mevis.py --split valid_u --mevis_path datasets/MeViS --dit_ckpt dit.pth --vae_ckpt vae.pth

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
    add_weight_flags,
)
from util.options import OptionParser

PROGRAM = "inference_mevis.py"


def build_parser() -> OptionParser:
    parser = OptionParser(
        prog=PROGRAM, description="Segment a split of MeViS, and score it.", removed=REMOVED_FROM_INFERENCE
    )
    add_path_flag(parser, "mevis", "train, valid_u, valid and test")
    parser.add_argument(
        "--split",
        type=split_type("mevis"),
        default=DATASETS["mevis"].scored_split,
        metavar="SPLIT",
        help="train, valid_u, valid or test; valid and test have no public masks",
    )
    parser.add_argument(
        "--cache_dir", metavar="DIR", help="folder for converted masks; by default beside mask_dict.json"
    )
    add_inference_flags(parser, "output/mevis")
    add_weight_flags(parser)
    add_device_flags(parser)
    add_segment_flags(parser)
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = build_parser().parse_args(arguments)
    with exit_on_user_error(PROGRAM):
        with interruptible_imports(PROGRAM):
            from engine.inference.run import run  # noqa: PLC0415, heavy: --help and refused flags answer without it

        run(options, "mevis")


if __name__ == "__main__":
    main()
