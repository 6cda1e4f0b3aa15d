"""Segment what sentences describe in a video.

    python inference_demo.py --input_path video.mp4 --text_prompts "the dog" "the red car"

Writes <output_dir>/<name>/masks/<k>/<frame>.png, <output_dir>/<name>/result.json and
<output_dir>/<name>_result.mp4.
"""

import argparse
import sys
from pathlib import Path

from engine.demo import hashing, segment_video, staged_result, write_record
from engine.segment import SegmentOptions
from models.dit_speed import prepare_for_inference
from models.text import clean_captions
from models.weights import load_flowrvs
from util.device import select_device, select_dtype
from util.errors import exit_on_user_error
from util.flags import DEFAULT_WAN_PATH, add_device_flags, add_segment_flags, add_weight_flags
from util.options import OptionParser, float_in, int_in
from util.video import open_frames

PROGRAM = "inference_demo.py"
TOY = Path(__file__).parent / "assets" / "toy"
REMOVED_FLAGS = {"--use_dvi": "direct video injection is read off the weights; leave the flag out"}


def build_parser() -> OptionParser:
    parser = OptionParser(
        prog=PROGRAM, description="Segment what sentences describe in a video.", removed=REMOVED_FLAGS
    )
    parser.add_argument("--input_path", required=True, metavar="PATH", help="video file, or folder of images")
    parser.add_argument("--text_prompts", required=True, nargs="+", metavar="TEXT", help="one or more sentences")
    parser.add_argument("--output_dir", default="output", metavar="DIR", help="where the results go")
    parser.add_argument(
        "--fps", type=float_in(0.1, 240), help="sampling rate, which the output keeps; the file's own, 24 for a folder"
    )
    parser.add_argument("--max_frames", type=int_in(1), help="segment only the first frames")
    parser.add_flag("--save_fig", default=False, help="save each overlay as a picture, too")
    add_weight_flags(parser)
    add_device_flags(parser)
    add_segment_flags(parser)
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = build_parser().parse_args(arguments)
    with exit_on_user_error(PROGRAM):
        run(options)


def run(options: argparse.Namespace) -> None:
    """Checks what can be checked before the weights load, then segments and records."""
    device = select_device(options.device)
    dtype = select_dtype(options.dtype, device)
    clean_captions(options.text_prompts)
    source = open_frames(options.input_path, options.fps, options.max_frames)
    output_dir = Path(options.output_dir)
    wan_path, vae_ckpt = _weights_or_toy(options)
    with staged_result(output_dir, source) as folder:
        loaded = load_flowrvs(wan_path, options.dit_ckpt, vae_ckpt, options.weights, dtype)
        loaded.pipeline.to(device)
        prepare_for_inference(loaded.pipeline.transformer)
        how = SegmentOptions.from_flags(options)
        with hashing(loaded.files) as weight_hashes:
            facts = segment_video(
                loaded.pipeline, source, options.text_prompts, folder, how, save_overlays=options.save_fig
            )
            where = {"device": str(device), "dtype": str(dtype).removeprefix("torch."), "seed": options.seed}
            write_record(folder, {"input": source.place, **facts, **where, "weights": weight_hashes()})
    print(f"Wrote {output_dir / source.name}_result.mp4, and masks and result.json in {output_dir / source.name}/")


def _weights_or_toy(options: argparse.Namespace) -> tuple[str | None, str | None]:
    """``--wan_path`` and ``--vae_ckpt``; where no weights were given or found, the toy's, with a warning."""
    given = options.wan_path or options.dit_ckpt or options.vae_ckpt
    if given or Path(DEFAULT_WAN_PATH).exists():
        return options.wan_path, options.vae_ckpt
    print(
        f"WARNING: no weights: there is no folder {DEFAULT_WAN_PATH} here and no --wan_path was given. The toy model "
        "of assets/toy runs instead: it knows the shapes of its toy world, its masks of anything else mean nothing. "
        "README.md says where to download weights.",
        file=sys.stderr,
    )
    return str(TOY / "flowrvs"), str(TOY / "mask_vae")


if __name__ == "__main__":
    main()
