"""A video and sentences to masks, an overlay video and a record of the run."""

import contextlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from engine.segment import SegmentOptions
from models.flowrvs import FlowRVS
from models.mask_vae import logits_to_masks, resize_logits
from util.checkpoint import read_json, sha256_of
from util.errors import UserError
from util.files import move_over, staged_folder
from util.frames import Frame, resize_frame
from util.masks import write_mask
from util.parallel import ordered_map
from util.stopwatch import Stopwatch
from util.video import FrameSource, VideoWriter
from util.visualize import Legend, colours_for, draw_masks

RECORD = "result.json"


@contextlib.contextmanager
def staged_result(output_dir: Path, source: FrameSource) -> Iterator[Path]:
    """A folder to fill with ``masks/``, ``result.mp4``, ``result.json`` and perhaps ``overlay/``.

    If the block succeeds they take their places, ``<output_dir>/<name>/`` and
    ``<output_dir>/<name>_result.mp4``, over an earlier result of the same input; otherwise nothing is left.

    Raises:
        UserError: if the place cannot be written, or holds something else than such a result.
    """
    target = output_dir / source.name
    _check_target(target, source)
    with staged_folder(output_dir, source.name) as staging:
        yield staging
        target.mkdir(exist_ok=True)
        (target / RECORD).unlink(missing_ok=True)  # until all is in place this is no result
        for part in ("masks", "overlay"):
            if (staging / part).exists() or (target / part).exists():
                (staging / part).mkdir(exist_ok=True)
                move_over(staging / part, target / part)
            with contextlib.suppress(OSError):
                (target / part).rmdir()  # empty: the earlier result had it, this one has not
        move_over(staging / "result.mp4", output_dir / f"{source.name}_result.mp4")
        move_over(staging / RECORD, target / RECORD)


def segment_video(
    pipeline: FlowRVS,
    source: FrameSource,
    prompts: list[str],
    folder: Path,
    options: SegmentOptions,
    *,
    save_overlays: bool = False,
) -> dict[str, Any]:
    """Segments a video and writes its masks and overlay video into ``folder``.

    The frames are read twice: fitted to the model's size first, all of them in memory; then at source size,
    one at a time, for the overlay.

    Args:
        save_overlays: write each overlay as a picture too, into ``overlay/``.

    Returns:
        Facts for the record: prompts, colours, sizes, options, mask area in pixels and seconds per stage.
    """
    stopwatch = Stopwatch()
    with stopwatch.stage("read"):
        frames, source_size = _read_fitted(pipeline, source, options)
    result = pipeline(frames, prompts, **asdict(options))
    colours = colours_for(len(prompts))
    with stopwatch.stage("write"):
        areas = _write_results(
            folder,
            source,
            result.logits,
            Legend(prompts, colours, *source_size),
            size=source_size,
            threshold=options.threshold,
            save_overlays=save_overlays,
        )
    return {
        "prompts": prompts,
        "colours": colours,
        "fps": float(source.fps),
        "num_frames": len(frames),
        "size": {"height": source_size[0], "width": source_size[1]},
        "model_size": {"height": frames.shape[1], "width": frames.shape[2]},
        "num_steps": options.num_steps,
        "threshold": options.threshold,
        "mask_area": areas,
        "seconds": {name: round(value, 3) for name, value in (stopwatch.seconds | result.seconds).items()},
    }


def _write_results(
    folder: Path,
    source: FrameSource,
    logits: Tensor,
    legend: Legend,
    *,
    size: tuple[int, int],
    threshold: float,
    save_overlays: bool,
) -> list[list[int]]:
    """Writes masks, video and overlays at source size; returns the mask area in pixels, per prompt and frame."""
    num_prompts, num_frames = logits.shape[:2]
    mask_folders = [folder / "masks" / str(prompt) for prompt in range(num_prompts)]
    for made in [*mask_folders, *([folder / "overlay"] if save_overlays else [])]:
        made.mkdir(parents=True)

    def finish(numbered: tuple[int, Frame]) -> tuple[Frame, list[int]]:
        """One frame to its overlay and mask areas; writes its masks, and its overlay if wanted."""
        index, frame = numbered
        masks = logits_to_masks(resize_logits(logits[:, index], size), threshold)
        for mask_folder, mask in zip(mask_folders, masks, strict=True):
            write_mask(mask_folder / f"{source.frame_name(index)}.png", mask)
        overlay = draw_masks(frame, masks, legend.colours)
        legend.draw(overlay)
        if save_overlays:
            Image.fromarray(overlay).save(folder / "overlay" / f"{source.frame_name(index)}.jpg", quality=95)
        return overlay, [int(np.count_nonzero(mask)) for mask in masks]

    areas: list[list[int]] = []
    with VideoWriter(folder / "result.mp4", source.fps) as video:
        finished = ordered_map(finish, enumerate(source))
        for overlay, frame_areas in tqdm(finished, desc="write results", total=num_frames, unit="frame"):
            video.write(overlay)
            areas.append(frame_areas)
    return [list(prompt_areas) for prompt_areas in zip(*areas, strict=True)]


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Writes ``result.json`` into ``folder``."""
    (folder / RECORD).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def hashing(files: dict[str, tuple[Path, ...]]) -> Iterator[Callable[[], dict[str, Any]]]:
    """Hashes weight files on a thread beside the block, which may call for ``{part: {"files", "sha256"}}``.

    The text encoder alone is 11 GB: beside the model's work its hash costs no waiting.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        digests = {part: pool.submit(sha256_of, paths) for part, paths in files.items()}
        try:
            yield lambda: {
                part: {"files": [str(path) for path in files[part]], "sha256": digest.result()}
                for part, digest in digests.items()
            }
        finally:
            pool.shutdown(cancel_futures=True)


def _read_fitted(
    pipeline: FlowRVS, source: FrameSource, options: SegmentOptions
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """All frames at the model's size, [T, h, w, 3], and the source size (H, W)."""
    pipeline.check_length(source.num_frames or 1)

    def fit(frame: Frame) -> tuple[Frame, tuple[int, int]]:
        size = (frame.shape[0], frame.shape[1])
        return resize_frame(frame, *pipeline.fitted_size(*size, options.box_height, options.box_width)), size

    fitted: list[Frame] = []
    sizes: set[tuple[int, int]] = set()
    for frame, size in tqdm(ordered_map(fit, source), desc="read frames", total=source.num_frames, unit="frame"):
        fitted.append(frame)
        sizes.add(size)
        pipeline.check_length(len(fitted))
    (source_size,) = sizes  # a FrameSource gives frames of one size
    return np.stack(fitted), source_size


def _check_target(target: Path, source: FrameSource) -> None:
    if source.path.is_dir() and source.path.resolve() in (target.resolve(), *target.resolve().parents):
        raise UserError(
            f"--output_dir {target.parent}: results would land in the input folder {target}; choose another"
        )
    video = target.with_name(f"{target.name}_result.mp4")
    if video.is_dir() or (video.exists() and not (target / RECORD).is_file()):
        raise UserError(f"--output_dir {target.parent}: {video} is no result of this program; choose another folder")
    if not target.exists():
        return
    if not target.is_dir() or (any(target.iterdir()) and not (target / RECORD).is_file()):
        raise UserError(
            f"--output_dir {target.parent}: {target} exists and is no result of this program; choose another folder"
        )
    if (target / RECORD).is_file():
        earlier = _earlier_input(target / RECORD)
        if earlier != source.place:
            raise UserError(
                f"--output_dir {target.parent}: {target} holds the result of another input ({earlier}); "
                "choose another folder"
            )


def _earlier_input(record: Path) -> str | None:
    """The input of an earlier result; None where the record is damaged, which makes it another's."""
    try:
        return read_json(record).get("input")
    except UserError:
        return None
