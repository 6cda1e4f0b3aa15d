"""Runs the demo: from the flags of ``inference_demo.py`` to masks, overlay video and record."""

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
from util.errors import UserError
from util.flags import DEFAULT_WAN_PATH
from util.hashes import fingerprint, hash_of
from util.memory import keep_freed_memory, naming_what_saves_memory
from util.stopwatch import Stopwatch
from util.video import open_frames

TOY = Path(__file__).parents[2] / "assets" / "toy"
# What the masks depend on, beside input, weights and device: a stopped run continues only if all of these are equal.
DECISIVE_FLAGS = (
    "text_prompts", "fps", "max_frames", "num_steps", "reso_h", "reso_w", "threshold", "prompt_batch", "window",
    "overlap", "tiling", "vram", "text_on", "compile",
)  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Segments a video and writes the result.

    Raises:
        UserError: if input, weights or options cannot be used; checked before the weights load where possible.
    """
    keep_freed_memory()
    device = select_device(options.device)
    dtype = select_dtype(options.dtype, device)
    captions = list(dict.fromkeys(clean_captions(options.text_prompts)))
    if options.window is None and options.overlap is not None:
        raise UserError(f"--overlap {options.overlap}: needs the length of the windows; give --window too")
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

        def start_again(smaller: Preset) -> None:
            loaded.pipeline.to("cpu")
            print(
                f"WARNING: out of memory; starting again with {describe(with_flags(smaller, options))}", file=sys.stderr
            )
            result.clear()

        with hashing(loaded.files) as weight_hashes:
            facts = run_within_memory(segment, preset, options, start_again)
            write_record(result.folder, {"input": source.place, **facts, **where, "weights": weight_hashes()})
    print(f"Wrote {output_dir / source.name}_result.mp4, and masks and result.json in {output_dir / source.name}/")


def _weights_or_toy(options: argparse.Namespace) -> tuple[str | None, str | None]:
    """Returns ``--wan_path`` and ``--vae_ckpt``; those of the toy, with a warning, if there are no weights."""
    given = options.wan_path or options.dit_ckpt or options.vae_ckpt
    if given or Path(DEFAULT_WAN_PATH).exists():
        return options.wan_path, options.vae_ckpt
    print(
        f"WARNING: no weights: there is no folder {DEFAULT_WAN_PATH} here and no --wan_path was given. The toy model "
        "of assets/toy runs instead. It only knows the shapes of its toy world; its masks of other videos are "
        "meaningless. README.md says where to download weights.",
        file=sys.stderr,
    )
    return str(TOY / "flowrvs"), str(TOY / "mask_vae")
