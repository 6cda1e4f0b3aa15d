"""Writes what a user asked for out of the masks of a video: overlay, mask videos, cutouts, tables.

The frames are read a second time, one by one at source size, beside their mask files.

<folder>/result.mp4                     overlay: all prompts in colour, with a legend
<folder>/overlay/<frame>.jpg            each frame of it (--save_fig)
<folder>/mask_video/<k>.mp4             H.264, black and white
<folder>/mask_video_exact/<k>.mkv       FFV1, equal to the mask files
<folder>/cutout/<k>.mov or .webm        the object on a transparent background
<folder>/side_by_side.mp4               the video beside the overlay
<folder>/rle.json                       masks as COCO RLE
<folder>/masks.csv                      area, box and centre per prompt and frame
"""

import argparse
import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from engine.demo.delivery import OVERLAY, remove_products
from engine.demo.mask_tables import MaskTables
from util.colours import Colour, colours_for
from util.errors import UserError
from util.frames import FrameSource
from util.images import Frame, write_jpeg
from util.legend import Legend
from util.mask_files import read_mask
from util.video_writer import CUTOUT_PRORES, CUTOUT_VP9, H264, MASK_FFV1, MASK_H264, VideoFormat, VideoWriter
from util.visualize import draw_masks
from util.workers import MAX_PENDING, num_cores, ordered_map

NUM_THREADS = min(MAX_PENDING, num_cores())  # that draw; each holds frames at source size
# Colour outside a cutout is kept this far, in pixels, so that its edges have no dark fringe; beyond, it is black.
FRINGE = 8
CUTOUTS = {"mov": CUTOUT_PRORES, "webm": CUTOUT_VP9}
PER_PROMPT = {"mask_video": MASK_H264, "mask_video_exact": MASK_FFV1}

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class OutputOptions:
    """What is written and how it looks; see the flags of ``inference_demo.py``.

    Attributes:
        save: values of ``--save``.
        save_overlays: also write each frame of the overlay as an image.
        style, opacity, legend: of the overlay.
        colours: of the first prompts; the others get colours of their own.
        cutout_format: ``mov`` or ``webm``.
    """

    save: frozenset[str] = frozenset({"overlay"})
    save_overlays: bool = False
    style: str = "fill"
    opacity: float = 0.5
    legend: str = "top"
    colours: tuple[Colour, ...] = ()
    cutout_format: str = "mov"

    @classmethod
    def from_flags(cls, flags: argparse.Namespace) -> "OutputOptions":
        """Reads the flags of ``inference_demo.py``."""
        return cls(
            save=frozenset(flags.save),
            save_overlays=flags.save_fig,
            style=flags.overlay_style,
            opacity=flags.opacity,
            legend=flags.legend,
            colours=tuple(flags.colors or ()),
            cutout_format=flags.cutout_format,
        )

    @property
    def needs_overlay(self) -> bool:
        """Whether masks are drawn on the frames."""
        return bool(self.save & {"overlay", "side_by_side"}) or self.save_overlays

    @property
    def needs_frames(self) -> bool:
        """Whether the frames of the video are needed, beside the masks."""
        return self.needs_overlay or "cutout" in self.save


def write_outputs(
    folder: Path,
    source: FrameSource,
    prompts: list[str],
    size: tuple[int, int],
    num_frames: int,
    options: OutputOptions,
) -> dict[str, Any]:
    """Writes the outputs of a video whose masks are in ``folder``.

    Args:
        size: (H, W) in pixels of the frames.

    Returns:
        Facts for the record: colours, times, mask areas, what was found, what became of the sound.
    """
    remove_products(folder, but=("masks",))  # what a stopped run left may be half written
    colours = colours_for(len(prompts), options.colours)
    tables = MaskTables(prompts, source, size, keeps_rle="rle" in options.save)
    painter = _Painter(folder, source, prompts, colours, size, options)
    with _Videos(folder, source, len(prompts), options) as videos:
        frames: Any = source if options.needs_frames else range(num_frames)
        drawn = ordered_map(painter.draw, enumerate(frames), NUM_THREADS)
        for masks, pictures in tqdm(drawn, desc="write outputs", total=num_frames, unit="frame", leave=False):
            tables.add(masks)
            videos.write(pictures)
        if tables.num_frames != num_frames:
            raise UserError(
                f"--input_path {source.path}: changed while it was read: {num_frames} frames at first, "
                f"{tables.num_frames} now; run again once it is complete"
            )
    sound = videos.sound_notes()
    for name, write in (("rle", tables.write_rle), ("csv", tables.write_csv)):
        if name in options.save:
            write(folder)
    return {
        "colours": colours,
        "fps": float(source.fps),
        "source_frames": source.source_frames,
        "times": [round(float(time), 6) for time in source.source_times],
        "mask_area": tables.areas(),
        "found": tables.found(),
        "sound": sound,
        "save": sorted(options.save),
    }


class _Painter:
    """Draws one frame of every output; called on threads."""

    def __init__(
        self,
        folder: Path,
        source: FrameSource,
        prompts: list[str],
        colours: list[Colour],
        size: tuple[int, int],
        options: OutputOptions,
    ) -> None:
        self.folder, self.source, self.colours, self.size, self.options = folder, source, colours, size, options
        self.num_prompts = len(prompts)
        aspect = float(source.pixel_aspect)
        self.legend = Legend(prompts, colours, *size, place=options.legend, pixel_aspect=aspect)
        if options.save_overlays:
            (folder / "overlay").mkdir(exist_ok=True)

    def draw(self, numbered: tuple[int, Any]) -> tuple[NDArray[np.bool_], dict[str, Picture]]:
        """Returns the masks [P, H, W] of a frame, and its picture for each video by the name of its file."""
        index, frame = numbered
        name = self.source.frame_name(index)
        files = [self.folder / "masks" / str(prompt) / f"{name}.png" for prompt in range(self.num_prompts)]
        masks = np.stack([read_mask(file, self.size) for file in files])
        pictures: dict[str, Picture] = {}
        if self.options.needs_overlay:
            overlay = draw_masks(frame, masks, self.colours, self.options.opacity, self.options.style)
            self.legend.draw(overlay)
            if self.options.save_overlays:
                write_jpeg(self.folder / "overlay" / f"{name}.jpg", overlay)
            pictures[OVERLAY] = overlay
            if "side_by_side" in self.options.save:
                pictures["side_by_side.mp4"] = np.concatenate([frame, overlay], axis=1)
        for prompt, mask in enumerate(masks):
            white = mask.view(np.uint8) * np.uint8(255)
            for kind, form in PER_PROMPT.items():
                if kind in self.options.save:
                    pictures[f"{kind}/{prompt}{form.suffix}"] = white
            if "cutout" in self.options.save:
                suffix = CUTOUTS[self.options.cutout_format].suffix
                pictures[f"cutout/{prompt}{suffix}"] = _cutout(frame, white)
        return masks, pictures


def _cutout(frame: Frame, white: Picture) -> Picture:
    """Returns [H, W, 4]: the frame with the mask as its opacity."""
    brush = np.ones((2 * FRINGE + 1, 2 * FRINGE + 1), np.uint8)
    around = cv2.copyTo(frame, cv2.dilate(white, brush))
    return np.dstack([around, white])


class _Videos:
    """The video files of a result, each opened when its first frame comes."""

    def __init__(self, folder: Path, source: FrameSource, num_prompts: int, options: OutputOptions) -> None:
        self.folder, self.source = folder, source
        self.formats: dict[str, VideoFormat] = {}
        if "overlay" in options.save:
            self.formats[OVERLAY] = H264
        if "side_by_side" in options.save:
            self.formats["side_by_side.mp4"] = H264
        kinds = PER_PROMPT | {"cutout": CUTOUTS[options.cutout_format]}
        for kind, form in kinds.items():
            if kind in options.save:
                (folder / kind).mkdir(exist_ok=True)
                self.formats |= {f"{kind}/{prompt}{form.suffix}": form for prompt in range(num_prompts)}
        self.writers: dict[str, VideoWriter] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "_Videos":
        self._stack.__enter__()
        sound = self.source.sound
        try:
            for name, form in self.formats.items():
                writer = VideoWriter(
                    self.folder / name, self.source.clock, form, pixel_aspect=self.source.pixel_aspect, sound=sound
                )
                self.writers[name] = self._stack.enter_context(writer)
        except BaseException:
            self._stack.close()
            raise
        return self

    def write(self, pictures: dict[str, Picture]) -> None:
        for name, writer in self.writers.items():
            writer.write(pictures[name])

    def sound_notes(self) -> dict[str, str]:
        """Returns what became of the sound in each file; empty if the source has none."""
        return {name: writer.sound_note for name, writer in self.writers.items() if writer.sound_note}

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)
