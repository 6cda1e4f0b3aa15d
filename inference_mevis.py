"""Segment a split of MeViS, and score it where there is a truth.

    python inference_mevis.py --split valid_u --mevis_path datasets/MeViS --dit_ckpt dit.pth --vae_ckpt vae.pth

Under torchrun each process takes its share of the videos.
"""

import argparse
from pathlib import Path

from accelerate import PartialState

from datasets.mevis import SPLITS, MeViS
from engine.evaluate import evaluate
from engine.segment import SegmentOptions
from models.weights import load_flowrvs
from util.device import select_device, select_dtype
from util.errors import exit_on_user_error
from util.flags import add_device_flags, add_segment_flags, add_weight_flags
from util.options import OptionParser

PROGRAM = "inference_mevis.py"
REMOVED_FLAGS = {
    "--use_dvi": "direct video injection is read off the weights; leave the flag out",
    "--save_eval_vis": "masks are always written; leave the flag out",
    "--ngpu": "start with torchrun --nproc_per_node=N",
}


def build_parser() -> OptionParser:
    parser = OptionParser(prog=PROGRAM, description="Segment and score a split of MeViS.", removed=REMOVED_FLAGS)
    parser.add_argument("--mevis_path", default="datasets/MeViS", metavar="DIR", help="holds train, valid_u and valid")
    parser.add_argument("--split", choices=SPLITS, default="valid_u", help="valid has no public masks")
    parser.add_argument("--cache_dir", metavar="DIR", help="for converted masks; by default beside their source")
    parser.add_argument("--output_dir", default="output/mevis", metavar="DIR", help="where masks and metrics go")
    add_weight_flags(parser)
    add_device_flags(parser)
    add_segment_flags(parser)
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = build_parser().parse_args(arguments)
    with exit_on_user_error(PROGRAM):
        run(options)


def run(options: argparse.Namespace) -> None:
    device = select_device(options.device)
    state = PartialState(cpu=device.type == "cpu")
    split = MeViS(Path(options.mevis_path), options.split, Path(options.cache_dir) if options.cache_dir else None)
    dtype = select_dtype(options.dtype, device)
    loaded = load_flowrvs(options.wan_path, options.dit_ckpt, options.vae_ckpt, options.weights, dtype)
    pipeline = loaded.pipeline.to(state.device if options.device in ("auto", "cuda") else device)
    output_dir = Path(options.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    metrics = evaluate(pipeline, split, output_dir, SegmentOptions.from_flags(options), state)
    if metrics is not None:
        for kind, means in {**metrics.get("kinds", {}), "all": metrics}.items():
            print(f"{kind:10s} J {means['J']:.4f}  F {means['F']:.4f}  J&F {means['J&F']:.4f}")
    if state.is_main_process:
        print(f"Wrote {output_dir}/Annotations" + (f" and {output_dir}/metrics.json" if metrics else ""))


if __name__ == "__main__":
    main()
