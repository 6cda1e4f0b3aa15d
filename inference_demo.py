"""Segment what prompts describe in a video.

    python inference_demo.py --input_path video.mp4 --text_prompts "the dog" "the red car"

Writes <output_dir>/<name>/masks/<k>/<frame>.png, <output_dir>/<name>/result.json and
<output_dir>/<name>_result.mp4.
"""

from util.errors import exit_on_user_error, interruptible_imports
from util.flags import add_device_flags, add_memory_flags, add_segment_flags, add_weight_flags
from util.options import OptionParser, add_flag, float_in, int_in

PROGRAM = "inference_demo.py"
REMOVED_FLAGS = {"--use_dvi": "direct video injection is read from the weights; leave the flag out"}


def build_parser() -> OptionParser:
    parser = OptionParser(prog=PROGRAM, description="Segment what prompts describe in a video.", removed=REMOVED_FLAGS)
    parser.add_argument("--input_path", required=True, metavar="PATH", help="video file, or folder of images")
    parser.add_argument("--text_prompts", required=True, nargs="+", metavar="TEXT", help="one or more prompts")
    parser.add_argument("--output_dir", default="output", metavar="DIR", help="folder for the results")
    parser.add_argument(
        "--fps", type=float_in(0.1, 240),
        help="sample the video at this rate, in frames per second; by default its own rate, 24 for a folder",
    )  # fmt: skip
    parser.add_argument("--max_frames", type=int_in(1), metavar="N", help="segment only the first N frames")
    add_flag(parser, "--save_fig", False, "also save each overlay frame as an image")
    add_weight_flags(parser)
    add_device_flags(parser)
    add_segment_flags(parser)
    add_memory_flags(parser)
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = build_parser().parse_args(arguments)
    with exit_on_user_error(PROGRAM):
        with interruptible_imports(PROGRAM):
            from engine.demo.run import run  # noqa: PLC0415, heavy: --help and refused flags answer without it

        run(options)


if __name__ == "__main__":
    main()
