"""Runs the demo: from the flags of ``inference_demo.py`` to masks, videos and records."""

import argparse
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from engine.captions import embed_now
from engine.demo.delivery import check_target, is_done, staged_result
from engine.demo.inputs import Job, list_jobs
from engine.demo.outputs import OutputOptions, write_outputs
from engine.demo.record import hashing, write_record
from engine.demo.result_folder import PartialResult
from engine.demo.segment_video import segment_video
from engine.demo.vram import PRESETS, TILE, Preset, choose_preset, describe, preset_named, run_within_memory, with_flags
from engine.identity import model_identity
from engine.segment_options import SegmentOptions, make_ready
from models.text import clean_captions
from models.vae_stream import set_tiling
from models.weights import LoadedFlowRVS, load_flowrvs
from models.windows import choose_windows
from util.device import select_device, select_dtype
from util.errors import UserError
from util.flags import DEFAULT_WAN_PATH
from util.frames import FrameSource, place_of
from util.hashes import fingerprint, hash_of
from util.mask_controls import MaskControls
from util.memory import keep_freed_memory, naming_what_saves_memory
from util.options import from_flags
from util.stopwatch import Stopwatch
from util.video import open_frames

TOY = Path(__file__).parents[2] / "assets" / "toy"
# What the masks depend on, beside input, weights and device: a stopped run continues only if all of these are equal.
DECISIVE_FLAGS = (
    "fps", "max_frames", "num_steps", "reso_h", "reso_w", "threshold", "prompt_batch", "window", "overlap", "tiling",
    "vram", "text_on", "compile", "min_area", "fill_holes", "keep_largest", "grow", "shrink", "smooth",
)  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Segments one or more videos and writes a result for each.

    Raises:
        UserError: if inputs, weights or options cannot be used; checked before the weights load where possible. One of
            several videos that fails does not end the others; the error at the end names it.
    """
    keep_freed_memory()
    device = select_device(options.device)
    dtype = select_dtype(options.dtype, device)
    if options.window is None and options.overlap is not None:
        raise UserError(f"--overlap {options.overlap}: needs the length of the windows; give --window too")
    choose_windows(options.window or 0, options.overlap)
    output_dir = Path(options.output_dir)
    jobs = list_jobs(options.input_path, options.text_prompts)
    if options.skip_done:
        jobs = _not_done(jobs, output_dir)
    for job in jobs:
        check_target(output_dir, job, overwrite=options.overwrite)
    if len(jobs) == 1:
        with staged_result(output_dir, jobs[0], overwrite=options.overwrite) as result:
            source = open_frames(jobs[0].path, options.fps, options.max_frames)
            demo = _Demo(jobs, options, device, dtype)
            with hashing(demo.loaded.files) as weight_hashes:
                facts = demo.segment(jobs[0], source, result, weight_hashes)
        _report(jobs[0], facts, options)
    elif jobs:
        _segment_all(jobs, _Demo(jobs, options, device, dtype), options)


def _not_done(jobs: list[Job], output_dir: Path) -> list[Job]:
    todo = [job for job in jobs if not is_done(output_dir, job)]
    if len(todo) < len(jobs):
        print(f"--skip_done: {len(jobs) - len(todo)} of {len(jobs)} results exist already and stay as they are")
    return todo


def _segment_all(jobs: list[Job], demo: "_Demo", options: argparse.Namespace) -> None:
    failed: list[str] = []
    with hashing(demo.loaded.files) as weight_hashes:
        for job in tqdm(jobs, desc="videos", unit="video"):
            try:
                with staged_result(Path(options.output_dir), job, overwrite=options.overwrite) as result:
                    source = open_frames(job.path, options.fps, options.max_frames)
                    facts = demo.segment(job, source, result, weight_hashes)
                _report(job, facts, options)
            except Exception as error:
                if not isinstance(error, UserError | OSError):  # a fault of ours: show it, and go on
                    traceback.print_exc()
                reason = str(error) if str(job.path) in str(error) else f"{job.path}: {error}"
                tqdm.write(f"WARNING: {job.path.name} failed, its error is below", file=sys.stderr)
                failed.append(reason)
    if failed:
        others = "; the others are written" if len(failed) < len(jobs) else ""
        raise UserError(f"{len(failed)} of {len(jobs)} videos failed{others}: {' | '.join(failed)}")


def _report(job: Job, facts: dict[str, Any], options: argparse.Namespace) -> None:
    """Prints what was not found, what became of the sound, and where the results are."""
    lines = [
        f"not found: {prompt!r} has no mask in any frame"
        for prompt, found in zip(job.prompts, facts["found"], strict=True)
        if not found
    ]
    lines += [f"sound: {note}" for note in sorted(set(facts["sound"].values()))]
    folder = Path(options.output_dir) / job.name
    written = ["masks", *sorted(set(options.save) - {"overlay"}), "result.json"]
    overlay = f"{folder}_result.mp4, and " if "overlay" in options.save else ""
    lines.append(f"Wrote {overlay}{', '.join(written[:-1])} and {written[-1]} in {folder}/")
    tqdm.write("\n".join(lines))


class _Demo:
    """The loaded model and everything that the videos of a run share.

    Args:
        jobs: all that will be segmented; their captions are embedded together.
    """

    def __init__(self, jobs: list[Job], options: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> None:
        self.options, self.device, self.dtype = options, device, dtype
        self.how = SegmentOptions.from_flags(options)
        self.controls = from_flags(MaskControls, options)
        self.outputs = OutputOptions.from_flags(options)
        self.is_single = len(jobs) == 1
        self.captions = list(dict.fromkeys(caption for job in jobs for caption in clean_captions(job.prompts)))
        wan_path, vae_ckpt = _weights_or_toy(options)
        self.loaded: LoadedFlowRVS = load_flowrvs(
            wan_path, options.dit_ckpt, vae_ckpt, options.weights, dtype, text=False
        )
        self.where = {"device": str(device), "dtype": str(dtype).removeprefix("torch."), "seed": options.seed}
        self.identity = {name: getattr(options, name) for name in DECISIVE_FLAGS} | self.where
        self.identity |= model_identity(self.loaded, options.weights)
        with naming_what_saves_memory():  # of a full GPU not even that can be asked
            self.preset = choose_preset(options.vram, device)
        self.embeddings: Tensor | None = None  # [C, L, D] of the captions
        self.seconds_of_text = 0.0

    def segment(
        self, job: Job, source: FrameSource, result: PartialResult, weight_hashes: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Segments one video and writes everything about it into the folder of its result; returns the record.

        Args:
            weight_hashes: from ``hashing``.
        """
        prompts = job.prompts
        identity = self.identity | {"text_prompts": prompts, "input": place_of(job.path)}
        identity |= {"frames": fingerprint(source.files), "names": hash_of([file.name for file in source.files])}
        earlier = result.begin(identity, [preset.name for preset in PRESETS], overwrite=self.options.overwrite)
        stopwatch = Stopwatch()

        def predict(preset: Preset) -> dict[str, Any]:
            result.describe(identity, preset.name)
            chosen = self._prepare(preset)
            captions = list(dict.fromkeys(clean_captions(prompts)))
            assert self.embeddings is not None, "the pipeline is prepared"
            embeddings = self.embeddings[[self.captions.index(caption) for caption in captions]]
            how = replace(self.how, window=chosen.window, prompt_batch=chosen.prompt_batch)
            progress, facts = segment_video(
                self.loaded.pipeline,
                source,
                prompts,
                embeddings,
                result,
                how,
                controls=self.controls,
                keep_bars=self.is_single,
            )
            with stopwatch.stage("draw"):
                facts |= write_outputs(result.folder, source, prompts, progress.size, progress.joint.stop, self.outputs)
            seconds = {"text": self.seconds_of_text} | progress.seconds | stopwatch.seconds
            facts["seconds"] = {name: round(value, 3) for name, value in seconds.items()}
            return facts | {"tiling": chosen.tiling, "text_on": chosen.text_on}

        def start_again(smaller: Preset) -> None:
            self.preset = smaller  # of the next videos too
            self.loaded.pipeline.to("cpu")
            print(
                f"WARNING: out of memory; starting again with {describe(with_flags(smaller, self.options))}",
                file=sys.stderr,
            )
            result.clear()

        preset = preset_named(earlier) if earlier else self.preset
        facts = run_within_memory(predict, preset, self.options, start_again)
        record = {"input": place_of(job.path), "prompts": prompts, **facts, **self.where, "weights": weight_hashes()}
        write_record(result.folder, record)
        return record

    def _prepare(self, preset: Preset) -> Preset:
        """Embeds the captions once, then moves the pipeline to the device; returns the preset with the flags given."""
        chosen = with_flags(preset, self.options)
        if self.embeddings is None:
            stopwatch = Stopwatch()
            with stopwatch.stage("text"):
                self.embeddings = embed_now(self.captions, self.loaded, self.device, self.dtype, chosen.text_on)
            self.seconds_of_text = stopwatch.seconds["text"]
        pipeline = self.loaded.pipeline.to(self.device)
        make_ready(pipeline, self.options.compile)
        set_tiling(pipeline.vae, TILE if chosen.tiling else None)
        return chosen


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
