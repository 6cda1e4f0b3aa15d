"""Segment what prompts describe in a video.

    python inference_demo.py --input_path video.mp4 --text_prompts "the dog" "the red car"

Writes <output_dir>/<name>/masks/<k>/<frame>.png, <output_dir>/<name>/result.json and
<output_dir>/<name>_result.mp4; --save names more. --input_path takes several videos, a folder of them, or a list.
"""

from util.colours import parse_colour
from util.errors import exit_on_user_error, interruptible_imports
from util.flags import (
    CUTOUT_FORMATS,
    LEGEND_PLACES,
    MAX_BOX,
    OUTPUT_CHOICES,
    OVERLAY_STYLES,
    add_device_flags,
    add_memory_flags,
    add_segment_flags,
    add_weight_flags,
)
from util.options import OptionParser, add_flag, float_in, int_in

PROGRAM = "inference_demo.py"
REMOVED_FLAGS = {"--use_dvi": "direct video injection is read from the weights; leave the flag out"}


def build_parser() -> OptionParser:
    parser = OptionParser(prog=PROGRAM, description="Segment what prompts describe in a video.", removed=REMOVED_FLAGS)
    parser.add_argument(
        "--input_path", required=True, nargs="+", metavar="PATH",
        help="video file, image, or folder of images; or several of them, a folder of videos, or a CSV or JSONL file "
        "with 'video' and 'sentence'",
    )  # fmt: skip
    parser.add_argument(
        "--text_prompts", nargs="+", metavar="TEXT",
        help="one or more prompts, each in quotes; not with a CSV or JSONL file, which has its own",
    )  # fmt: skip
    parser.add_argument("--output_dir", default="output", metavar="DIR", help="folder for the results")
    parser.add_argument(
        "--fps", type=float_in(0.1, 240),
        help="sample the video by time at this rate, in frames per second; by default every frame is segmented once. "
        "For images it is the rate of the result, 24 by default",
    )  # fmt: skip
    parser.add_argument("--max_frames", type=int_in(1), metavar="N", help="segment only the first N frames")
    add_flag(parser, "--overwrite", False, "replace an earlier result of other prompts or another input, all of it")
    add_flag(parser, "--skip_done", False, "leave out inputs whose result exists, with the same prompts")
    _add_output_flags(parser)
    _add_mask_flags(parser)
    add_weight_flags(parser)
    add_device_flags(parser)
    add_segment_flags(parser)
    add_memory_flags(parser)
    return parser


def _add_output_flags(parser: OptionParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument(
        "--save", nargs="*", choices=OUTPUT_CHOICES, default=["overlay"], metavar="KIND",
        help=f"what to write beside masks and result.json: any of {', '.join(OUTPUT_CHOICES)}; nothing after --save "
        "writes none of them",
    )  # fmt: skip
    add_flag(group, "--save_fig", False, "also save each overlay frame as an image")
    group.add_argument(
        "--cutout_format", choices=CUTOUT_FORMATS, default="mov",
        help="mov is ProRes 4444 for editors, webm is VP9 for browsers; both with transparency",
    )  # fmt: skip
    group.add_argument(
        "--overlay_style", choices=OVERLAY_STYLES, default="fill",
        help="fill tints the masks, contour outlines them, spotlight darkens everything else",
    )  # fmt: skip
    group.add_argument(
        "--opacity", type=float_in(0, 1), default=0.5, help="strength of the tint, or of the darkening, 0 to 1"
    )
    group.add_argument(
        "--colors", nargs="+", type=parse_colour, metavar="COLOR",
        help="colours of the prompts in order, as orange or #ff8800; by default a list of distinct ones",
    )  # fmt: skip
    group.add_argument(
        "--legend", choices=LEGEND_PLACES, default="top",
        help="where the prompts are listed; the legend covers at most a tenth of the frame",
    )  # fmt: skip


def _add_mask_flags(parser: OptionParser) -> None:
    group = parser.add_argument_group("mask controls", "Applied to every mask in this order; lengths in source pixels.")
    pixels = int_in(0, MAX_BOX)
    group.add_argument(
        "--min_area", type=int_in(0), default=0, metavar="PIXELS",
        help="remove connected components of fewer pixels",
    )  # fmt: skip
    add_flag(group, "--keep_largest", False, "keep only the largest connected component")
    add_flag(group, "--fill_holes", False, "fill holes that the mask encloses")
    group.add_argument("--smooth", type=pixels, default=0, metavar="RADIUS", help="round contours over this radius")
    group.add_argument("--grow", type=pixels, default=0, metavar="RADIUS", help="grow masks by this radius")
    group.add_argument(
        "--shrink", type=pixels, default=0, metavar="RADIUS",
        help="shrink masks by this radius; after --grow it closes gaps",
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    options = build_parser().parse_args(arguments)
    with exit_on_user_error(PROGRAM):
        with interruptible_imports(PROGRAM):
            from engine.demo.run import run  # noqa: PLC0415, heavy: --help and refused flags answer without it

        run(options)


if __name__ == "__main__":
    main()
