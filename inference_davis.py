"""Segment Ref-DAVIS17.

    python inference_davis.py --davis_path datasets/refer_davis --dit_ckpt dit.pth --vae_ckpt vae.pth

Writes <output_dir>/Annotations/<video>/<exp_id>/<frame>.png, one mask a sentence, and <output_dir>/anno_<a>/<video>/
<frame>.png, the objects of each annotator merged: what the published protocol scores. Its own metrics.json scores every
sentence by itself: a diagnostic, no number to compare. Stopped, it goes on where it was. Under torchrun processes take
video after video, each on a GPU of its own.
"""

import argparse
from pathlib import Path

from datasets.readers.davis import SPLITS, RefDAVIS17
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

PROGRAM = "inference_davis.py"
REMARK = "Any scores above are of single sentences (protocol C); the published protocol scores anno_0 to anno_3."


def build_parser() -> OptionParser:
    parser = OptionParser(prog=PROGRAM, description="Segment a split of Ref-DAVIS17.", removed=REMOVED_FROM_INFERENCE)
    parser.add_argument(
        "--davis_path", default=DATASET_PATHS["davis"], metavar="DIR", help="holds meta_expressions, train and valid"
    )
    parser.add_argument("--split", choices=SPLITS, default="valid", help="valid and val are the same, the benchmark")
    add_evaluation_flags(parser, "output/davis")
    add_weight_flags(parser)
    add_device_flags(parser)
    add_segment_flags(parser)
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = build_parser().parse_args(arguments)
    with exit_on_user_error(PROGRAM):
        run(options)


def run(options: argparse.Namespace) -> None:
    split = RefDAVIS17(Path(options.davis_path), options.split)
    run_inference(options, f"davis {options.split}", split, merge=True, remark=REMARK)


if __name__ == "__main__":
    main()
