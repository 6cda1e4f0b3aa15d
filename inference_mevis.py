"""Segment a split of MeViS, and score it where there is a truth.

    python inference_mevis.py --split valid_u --mevis_path datasets/MeViS --dit_ckpt dit.pth --vae_ckpt vae.pth

Stopped, it goes on where it was. Under torchrun processes take video after video, each on a GPU of its own.
"""

import argparse
from pathlib import Path

from datasets.readers.mevis import SPLITS, MeViS
from engine.inference.run import run_inference
from util.errors import exit_on_user_error
from util.flags import (
    DATASET_PATHS,
    REMOVED_FROM_INFERENCE,
    add_device_flags,
    add_evaluation_flags,
    add_segment_flags,
    add_weight_flags,
)
from util.options import OptionParser

PROGRAM = "inference_mevis.py"


def build_parser() -> OptionParser:
    parser = OptionParser(
        prog=PROGRAM, description="Segment and score a split of MeViS.", removed=REMOVED_FROM_INFERENCE
    )
    parser.add_argument(
        "--mevis_path", default=DATASET_PATHS["mevis"], metavar="DIR", help="holds train, valid_u, valid and test"
    )
    parser.add_argument("--split", choices=SPLITS, default="valid_u", help="valid and test have no public masks")
    parser.add_argument("--cache_dir", metavar="DIR", help="for converted masks; by default beside their source")
    add_evaluation_flags(parser, "output/mevis")
    add_weight_flags(parser)
    add_device_flags(parser)
    add_segment_flags(parser)
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = build_parser().parse_args(arguments)
    with exit_on_user_error(PROGRAM):
        run(options)


def run(options: argparse.Namespace) -> None:
    split = MeViS(Path(options.mevis_path), options.split, Path(options.cache_dir) if options.cache_dir else None)
    run_inference(options, f"mevis {options.split}", split)


if __name__ == "__main__":
    main()
