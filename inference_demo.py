"""Segment what sentences describe in a video.

    python inference_demo.py --input_path video.mp4 --text_prompts "the dog" "the red car"

Writes <output_dir>/<name>/masks/<k>/<frame>.png, <output_dir>/<name>/result.json and
<output_dir>/<name>_result.mp4.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.captions import embed_now
from engine.demo.result_folder import staged_result
from engine.demo.segment_video import hashing, segment_video, write_record
from engine.demo.vram import PRESETS, TILE, Preset, choose_preset, describe, preset_named, run_within_memory, with_flags
from engine.identity import model_identity
from engine.segment_options import SegmentOptions, make_ready
from models.text import clean_captions
from models.vae_stream import set_tiling
from models.weights import load_flowrvs
from models.windows import choose_windows
from util.device import select_device, select_dtype
from util.errors import UserError, exit_on_user_error
from util.flags import DEFAULT_WAN_PATH, add_device_flags, add_memory_flags, add_segment_flags, add_weight_flags
from util.hashes import fingerprint, hash_of
from util.memory import keep_freed_memory, naming_what_saves_memory
from util.options import OptionParser, float_in, int_in
from util.stopwatch import Stopwatch
from util.video import open_frames

PROGRAM = "inference_demo.py"
TOY = Path(__file__).parent / "assets" / "toy"
# What the masks depend on, beside input, weights and device: a stopped run goes on where all of these are the same.
DECISIVE_FLAGS = (
    "text_prompts", "fps", "max_frames", "num_steps", "reso_h", "reso_w", "threshold", "prompt_batch", "window",
    "overlap", "tiling", "vram", "text_on", "compile",
)  # fmt: skip
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
    add_memory_flags(parser)
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = build_parser().parse_args(arguments)
    with exit_on_user_error(PROGRAM):
        run(options)


def run(options: argparse.Namespace) -> None:
    """Checks what can be checked before the weights load, then segments and records."""
    keep_freed_memory()
    device = select_device(options.device)
    dtype = select_dtype(options.dtype, device)
    captions = list(dict.fromkeys(clean_captions(options.text_prompts)))
    if options.window is None and options.overlap is not None:
        raise UserError(f"--overlap {options.overlap}: how much windows may overlap depends on them; give --window too")
    choose_windows(options.window or 0, options.overlap)
    source = open_frames(options.input_path, options.fps, options.max_frames)
    output_dir = Path(options.output_dir)
    wan_path, vae_ckpt = _weights_or_toy(options)
    with staged_result(output_dir, source) as result:
        loaded = load_flowrvs(wan_path, options.dit_ckpt, vae_ckpt, options.weights, dtype, text=False)
        where = {"device": str(device), "dtype": str(dtype).removeprefix("torch."), "seed": options.seed}
        identity = {name: getattr(options, name) for name in DECISIVE_FLAGS} | where | {"input": source.place}
        names = hash_of([file.name for file in source.files])
        identity |= {"frames": fingerprint(source.files), "names": names} | model_identity(loaded, options.weights)
        earlier = result.begin(identity, [preset.name for preset in PRESETS])
        stopwatch = Stopwatch()
        with naming_what_saves_memory():  # of a full GPU not even that can be asked
            preset = preset_named(earlier) if earlier else choose_preset(options.vram, device)

        def segment(preset: Preset) -> dict[str, Any]:
            result.describe(identity, preset.name)
            chosen = with_flags(preset, options)
            with stopwatch.stage("text"):
                embeddings = embed_now(captions, loaded, device, dtype, chosen.text_on)
            pipeline = loaded.pipeline.to(device)
            make_ready(pipeline, options.compile)
            set_tiling(pipeline.vae, TILE if chosen.tiling else None)
            how = replace(SegmentOptions.from_flags(options), window=chosen.window, prompt_batch=chosen.prompt_batch)
            facts = segment_video(
                pipeline, source, options.text_prompts, embeddings, result, how, save_overlays=options.save_fig
            )
            facts["seconds"] |= {"text": round(stopwatch.seconds["text"], 3)}
            return facts | {"tiling": chosen.tiling, "text_on": chosen.text_on}

        def start_anew(smaller: Preset) -> None:
            loaded.pipeline.to("cpu")
            print(f"WARNING: out of memory; once more with {describe(with_flags(smaller, options))}", file=sys.stderr)
            result.clear()

        with hashing(loaded.files) as weight_hashes:
            facts = run_within_memory(segment, preset, options, start_anew)
            write_record(result.folder, {"input": source.place, **facts, **where, "weights": weight_hashes()})
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
