"""Measures seconds, peak memory and FLOP/s of segmenting a video, with each optimisation on and off.

    PYTHONPATH=. python benchmarks/inference.py [--size mid] [--rows plain ours ...] [--rounds 3] [--chart FILE.svg]

``--size 1.3b`` is Wan2.1-T2V-1.3B at 480 x 832 x 81 with 8 prompts and needs a GPU. ``mid`` is for a CPU: a VAE of
base
width 32 and a DiT 256 wide with 8 layers, at 240 x 416 x 33 with 4 prompts. ``toy`` only shows that the program runs.
Weights are random. The video is an H.264 file of drifting colours, one and a half times that size. Every row runs in
new
processes, rows alternating, so that all see the same machine. Loading weights is not measured.

The plain run does for every prompt what the original's loop does, with the libraries only: decode and resize the
frames,
run the text encoder on 256 tokens, encode the video, evaluate the DiT, decode, resize the logits as float32,
threshold,
write the masks with Pillow. "ours" is all of ``engine.demo.segment_video``, which also writes an overlay video. Rows
of
``dit`` evaluate only the DiT, for all prompts, on latents that are computed before. benchmarks/video_rows.py has the
rows.

TFLOP/s divide the FLOP of the library's modules, counted on the meta device, by the seconds of the stage: one
encoding
in ours and one per prompt in the plain run, DiT and decoder for every prompt. So products that sharing or folding
save
count as if they were computed. The device's rate is that of a large matrix product, in bf16 on CUDA and float32 on a
CPU, measured in each process. Peak memory includes the weights: on CUDA it is the allocated memory, on a CPU the
growth
of resident memory since the imports. In ours the writing threads resize, so these seconds are within those of
writing.
"""

import contextlib
import shlex
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass
from datetime import date
from fractions import Fraction
from functools import partial
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import av
import cv2
import numpy as np
import torch
import torch.nn.functional as F
from diffusers.utils import logging as library_logging
from PIL import Image
from torch import Tensor

import engine.demo.segment_video
import models.flowrvs
from benchmarks.gauges import PeakMemory, in_fresh_processes, machine, matmul_rate, timed
from benchmarks.random_wan import TEXT_LENGTH, VIDEO_SIZES, Parts, Size, build_parts, count_video_flops, keep_bfloat16
from benchmarks.video_report import Measured, chart, dit_table, runs_of, stage_table, whole_table
from benchmarks.video_rows import CUDA, DIT, NUM_TOKENS, PLAIN, ROWS, WHOLE, Row
from engine.demo.outputs import OutputOptions, write_outputs
from engine.demo.result_folder import PartialResult
from engine.demo.segment_video import segment_video
from engine.segment_options import SegmentOptions, make_ready
from models.flow import sigma_schedule
from models.flowrvs import FlowRVS
from models.mask_vae import resize_logits
from models.text import embed_captions
from models.vae_layers import use_fast_layers
from util.device import select_device, select_dtype
from util.errors import TooLittleMemoryError, UserError, exit_on_user_error
from util.flags import DEVICE_HELP, device_name
from util.memory import keep_freed_memory
from util.options import OptionParser, int_in
from util.stopwatch import Stopwatch
from util.video import open_frames
from util.video_writer import VideoWriter

PROMPTS = [
    f"the {colour} {thing} that moves {way}"
    for thing in ("dog", "car")
    for way in ("left", "right")
    for colour in ("black", "white")
]
SOURCE_SCALE = 1.5
WARM_UPS, TIMED = 1, 3  # evaluations of the DiT in each process of its rows


# -- the plain rendering: frozen on 2026-11-21, never touched again ----------------------------------------------


@torch.no_grad()
def plain_rendering(parts: Parts, file: Path, prompts: list[str], out: Path, size: Size, watch: Stopwatch) -> None:
    """Does what the original does for each prompt, with torch, diffusers and transformers only."""
    num_frames, height, width = size.clip
    device, dtype = parts.vae.device, parts.vae.dtype
    mean = torch.tensor(parts.vae.config.latents_mean, device=device, dtype=dtype).view(1, -1, 1, 1, 1)
    std = torch.tensor(parts.vae.config.latents_std, device=device, dtype=dtype).view(1, -1, 1, 1, 1)
    for number, prompt in enumerate(prompts):
        with watch.stage("read"):
            with av.open(str(file)) as container:
                pictures = [frame.to_image() for frame in container.decode(video=0)]
            source = (pictures[0].height, pictures[0].width)
            fitted = [np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR)) for picture in pictures]
            video = torch.from_numpy(np.stack(fitted)).permute(3, 0, 1, 2)[None].to(device).float() / 127.5 - 1
        with watch.stage("text"):
            tokens = parts.tokenizer(
                [prompt], padding="max_length", max_length=256, truncation=True, return_attention_mask=True,
                return_tensors="pt",
            ).to(device)  # fmt: skip
            text = parts.encoder(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
            text = text * tokens.attention_mask[..., None].to(text.dtype)
        with watch.stage("encode"):
            latents = (parts.vae.encode(video.to(dtype)).latent_dist.mean - mean) / std
        with watch.stage("dit"):
            timestep = torch.full((1,), 1000.0, device=device)
            both = torch.cat([latents, latents], dim=1)
            velocity = parts.dit(both, timestep, text, return_dict=False)[0]
        with watch.stage("decode"):
            logits = parts.vae.decode(latents - velocity).sample[0, 0].float()  # [T, h, w]
        with watch.stage("resize"):
            logits = F.interpolate(logits[None], size=source, mode="bilinear", align_corners=False)[0].cpu()
        with watch.stage("write"):
            folder = out / "masks" / str(number)
            folder.mkdir(parents=True)
            for index, frame_logits in enumerate(logits[:num_frames]):
                Image.fromarray((frame_logits > 0).numpy().astype(np.uint8) * np.uint8(255)).save(
                    folder / f"{index:05d}.png"
                )


# -- measuring ---------------------------------------------------------------------------------------------------


def measure(name: str, size: Size, device: torch.device, file: Path, num_threads: int) -> Measured | None:
    """Measures one run of a row in this process; returns None if it runs out of memory."""
    library_logging.set_verbosity_error()
    torch.set_num_threads(num_threads)
    if name != PLAIN and ROWS[name].keeps_memory:
        keep_freed_memory()
    if device.type == "cuda":
        torch.cuda.set_device(device)  # clocks and memory of this device
    gauges = Gauges(PeakMemory(device), matmul_rate(size.matmul, device))
    prompts = PROMPTS[: size.batch]
    try:
        with redirect_stderr(StringIO()):  # the parent process shows the progress bar
            parts = build_parts(size, device, out_channels=1)
            if device.type == "cuda":
                keep_bfloat16(parts.dit)
            if name == PLAIN:
                return measure_whole(lambda out, watch: plain_rendering(parts, file, prompts, out, size, watch), gauges)
            row = ROWS[name]
            pipeline = our_pipeline(row, parts, size)
            if row.part == DIT:
                return measure_dit(row, pipeline, size, gauges)
            return measure_whole(lambda out, watch: our_rendering(row, pipeline, file, prompts, out, watch), gauges)
    except (torch.OutOfMemoryError, TooLittleMemoryError):
        return None


@dataclass(frozen=True)
class Gauges:
    """Measurements of this process: its memory, and FLOP/s of the matrix product."""

    memory: PeakMemory
    matmul: float


def our_pipeline(row: Row, parts: Parts, size: Size) -> FlowRVS:
    """Builds the pipeline as the scripts do, then applies the row's change."""
    pipeline = FlowRVS(
        parts.dit, parts.vae, parts.encoder, parts.tokenizer, box_height=size.clip[1], box_width=size.clip[2]
    )
    use_fast_layers(parts.vae)
    make_ready(pipeline)
    row.change(pipeline)
    return pipeline


@torch.no_grad()
def our_rendering(row: Row, pipeline: FlowRVS, file: Path, prompts: list[str], out: Path, watch: Stopwatch) -> None:
    """Does what inference_demo.py does, without loading."""
    with watch.stage("text"):
        length = pipeline.config.max_sequence_length
        embeddings = embed_captions(pipeline.text_encoder, pipeline.tokenizer, prompts, length)
        drop_text_encoder(pipeline)
    options = SegmentOptions(prompt_batch=row.prompt_batch)
    source = open_frames(file)
    progress, _ = segment_video(pipeline, source, prompts, embeddings, PartialResult(out), options)
    write_outputs(out, source, prompts, progress.size, progress.joint.stop, OutputOptions())


def drop_text_encoder(pipeline: FlowRVS) -> None:
    """Frees the text encoder before the other networks run, as the demo does; other references to it exist here."""
    pipeline.text_encoder.to("meta")
    pipeline.register_modules(text_encoder=None)


def measure_whole(run: Callable[[Path, Stopwatch], None], gauges: Gauges) -> Measured:
    """Measures from video file to mask files: ``run`` gets a folder to fill and a stopwatch to use."""
    with tempfile.TemporaryDirectory() as folder, gauged(gauges.memory) as (watch, seconds, peaks):
        start = time.perf_counter()
        run(Path(folder), watch)
        wall = time.perf_counter() - start
        files = [sorted(prompt.iterdir()) for prompt in sorted((Path(folder) / "masks").iterdir())]
        masks = np.array([[np.asarray(Image.open(mask)) > 0 for mask in each] for each in files])  # [P, T, H, W]
    return Measured(seconds, peaks, [wall], gauges.matmul, np.packbits(masks))


@torch.no_grad()
def measure_dit(row: Row, pipeline: FlowRVS, size: Size, gauges: Gauges) -> Measured:
    """Measures only the DiT, in wall-clock and processor seconds."""
    device = pipeline.device
    generator = torch.Generator().manual_seed(2)
    latent_size = (1 + (size.clip[0] - 1) // 4, size.clip[1] // 8, size.clip[2] // 8)
    video = torch.randn(1, 16, *latent_size, generator=generator).to(device)
    captions = torch.zeros(size.batch, TEXT_LENGTH, size.text["d_model"])
    captions[:, :NUM_TOKENS] = torch.randn(size.batch, NUM_TOKENS, size.text["d_model"], generator=generator)
    sigmas = sigma_schedule(row.num_steps).to(device)
    drop_text_encoder(pipeline)
    solved: list[Tensor] = []

    def evaluations() -> Iterator[None]:
        while True:
            batches = captions.to(device).split(row.prompt_batch)
            solved[:] = [pipeline.predict_mask_latents(video, batch, sigmas) for batch in batches]
            yield

    gauges.memory.reset()
    wall, processor = timed(evaluations(), WARM_UPS + TIMED, device)
    seconds = {"dit": statistics.median(wall[WARM_UPS:]), "processor": statistics.median(processor[WARM_UPS:])}
    output = torch.cat(solved).float().cpu().numpy()
    return Measured(seconds, {"dit": gauges.memory.read()}, wall[WARM_UPS:], gauges.matmul, output)


@contextlib.contextmanager
def gauged(memory: PeakMemory) -> Iterator[tuple[Stopwatch, dict[str, float], dict[str, int]]]:
    """Yields a stopwatch, and the seconds and peaks by stage of all stopwatches that are made in the block."""
    seconds: dict[str, float] = {}
    peaks: dict[str, int] = {}

    class Gauge(Stopwatch):
        @contextlib.contextmanager
        def stage(self, name: str) -> Iterator[None]:
            before = self.seconds.get(name, 0.0)
            memory.reset()
            with super().stage(name):
                yield
            peaks[name] = max(peaks.get(name, 0), memory.read())
            seconds[name] = seconds.get(name, 0.0) + self.seconds[name] - before

    lock = threading.Lock()

    def timed_resize(logits: Tensor, size: tuple[int, int]) -> Tensor:
        start = time.perf_counter()
        resized = resize_logits(logits, size)
        with lock:
            seconds["resize"] = seconds.get("resize", 0) + time.perf_counter() - start
        return resized

    with (
        patch.object(engine.demo.segment_video, "Stopwatch", Gauge),
        patch.object(models.flowrvs, "Stopwatch", Gauge),
        patch.object(engine.demo.segment_video, "resize_logits", timed_resize),
    ):
        yield Gauge(torch.device("cuda") if memory.is_cuda else None), seconds, peaks


def write_source(file: Path, size: Size) -> None:
    """Writes a video of drifting colours as an H.264 file."""
    num_frames, height, width = size.clip
    source = (round(SOURCE_SCALE * width / 2) * 2, round(SOURCE_SCALE * height / 2) * 2)
    rng = np.random.default_rng(0)
    begin, end = rng.integers(0, 256, (2, 9, 16, 3)).astype(np.float32)
    with VideoWriter(file, Fraction(24)) as video:
        for share in np.linspace(0, 1, num_frames):
            coarse = (1 - share) * begin + share * end
            video.write(cv2.resize(coarse, source, interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8))


def main() -> None:
    parser = OptionParser(prog="benchmarks/inference.py", description="Speed and memory of segmenting a video.")
    parser.add_argument("--size", choices=tuple(VIDEO_SIZES), default="mid", help="of models and video")
    parser.add_argument("--rows", nargs="+", choices=(PLAIN, *ROWS), default=[PLAIN, *ROWS], help="what to run")
    parser.add_argument("--rounds", type=int_in(1), default=3, help="of all rows")
    parser.add_argument("--device", type=device_name, default="auto", help=DEVICE_HELP)
    parser.add_argument("--chart", metavar="FILE", help="write the seconds per stage as an SVG picture")
    options = parser.parse_args()
    with exit_on_user_error(parser.prog), tempfile.TemporaryDirectory() as folder:
        device, size = select_device(options.device), VIDEO_SIZES[options.size]
        if options.size == "1.3b" and device.type == "cpu":
            raise UserError("--size 1.3b: needs a GPU, got cpu; use --size mid")
        if options.chart and all(name in ROWS and ROWS[name].part == DIT for name in options.rows):
            raise UserError(f"--chart {options.chart}: shows the stages of whole renderings; add ours to --rows")
        absent = {name for name in options.rows if name in ROWS and ROWS[name].needs == CUDA and device.type != "cuda"}
        file = Path(folder) / "source.mp4"
        write_source(file, size)
        flops = count_video_flops(size)
        one = partial(measure, size=size, device=device, file=file, num_threads=torch.get_num_threads())
        results = in_fresh_processes(one, [name for name in options.rows if name not in absent], options.rounds)
    num_frames, height, width = size.clip
    dtype = str(select_dtype("auto", device)).removeprefix("torch.")
    print(
        f"    PYTHONPATH=. python {shlex.join(sys.argv)}\n\n{machine(device)}; {date.today()}; random weights, "
        f"{dtype}, {height} x {width} x {num_frames}, {size.batch} prompts; medians of {options.rounds} rounds."
    )
    for text in (whole_table(results, size), *(table(results, size, flops) for table in (stage_table, dit_table))):
        if text:
            print(f"\n{text}")
    failed = [name for name, runs in results.items() if None in runs]
    if failed:
        print(f"\nOut of memory: {', '.join(failed)}.")
    for name in sorted(absent):
        print(f"\nLeft out: {name}, which needs CUDA.")
    if options.chart and runs_of(results, WHOLE):
        Path(options.chart).write_text(chart(results, size), encoding="utf-8")


if __name__ == "__main__":
    main()
