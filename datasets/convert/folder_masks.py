"""Reads the masks of a user's own video: images of object numbers, or a folder of binary images per object."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.convert.folder_frames import Frames
from util.errors import MissingFileError, UserError
from util.frames import natural_order
from util.images import read_palette
from util.rle import encode_rle

Masks = list[dict[str, Any] | None]  # compressed RLE per frame, None if the object is absent


def read_masks(folder: Path, frames: Frames, objects: list[int]) -> dict[int, Masks]:
    """Reads the masks of some objects at every frame; None for an object where no mask shows it.

    Args:
        folder: holds ``<frame>.png`` whose values are object numbers, or ``<object>/<frame>.png`` of 0 and 255, where
            a
            missing file means that the object is absent.

    Raises:
        UserError: if masks are missing, do not match the frames, or have other values.
    """
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: no such folder; put the masks of video {frames.video} there")
    images, objects_folders = _pngs(folder), _object_folders(folder)
    if bool(images) == bool(objects_folders):
        raise UserError(
            f"{folder}: must hold either .png files or a folder of them per object number, got "
            f"{'both' if images else 'neither'}; see python -m datasets.convert folder --help"
        )
    if images:
        return _read_numbered(images, frames, objects)
    return _read_binary(objects_folders, folder, frames, objects)


def _read_numbered(images: list[Path], frames: Frames, objects: list[int]) -> dict[int, Masks]:
    positions = _positions([image.stem for image in images], images[0].parent, frames, all_frames=True)
    masks: dict[int, Masks] = {number: [None] * frames.count for number in objects}
    for image in images:
        values = _read(image, frames)
        for number in objects:
            masks[number][positions[image.stem]] = encode_rle(values == number)
    return masks


def _read_binary(
    objects_folders: dict[int, Path], folder: Path, frames: Frames, objects: list[int]
) -> dict[int, Masks]:
    images = {number: _pngs(objects_folder) for number, objects_folder in objects_folders.items()}
    stems = {image.stem: image for listed in images.values() for image in listed}
    names = [image.stem for image in sorted(stems.values(), key=_by_name)]
    # If frames have no names, a missing file shows only by comparison with other objects.
    positions = _positions(names, folder, frames, all_frames=frames.names is None)
    masks: dict[int, Masks] = {number: [None] * frames.count for number in objects}
    for number in objects:
        for image in images.get(number, []):
            values = _read(image, frames)
            others = set(np.unique(values).tolist()) - {0, 255}
            if others:
                raise UserError(
                    f"{image}: the mask of one object must hold 0 and 255 alone, got {min(others)}; "
                    "write it without smoothing"
                )
            masks[number][positions[image.stem]] = encode_rle(values == 255)
    return masks


def _positions(stems: list[str], folder: Path, frames: Frames, all_frames: bool) -> dict[str, int]:
    """Returns the frame index of each mask: by name for a folder of images, in order for a video file."""
    if all_frames and len(stems) != frames.count:
        remedy = (
            "write one for every frame, a black one where no object is"
            if frames.names is not None
            else "write one for every frame, a black one where no object is, or give the images that the masks are of"
        )
        raise UserError(
            f"{folder}: must hold a mask for every frame of video {frames.video}, got {len(stems)} masks for "
            f"{frames.count} frames; {remedy}"
        )
    if frames.names is None:
        return {stem: position for position, stem in enumerate(stems)}
    positions = {name: position for position, name in enumerate(frames.names)}
    for stem in stems:
        if stem not in positions:
            raise UserError(
                f"{folder}: a mask must have the name of a frame of video {frames.video}, as {frames.names[0]}.png, "
                f"got {stem}.png; rename it"
            )
    return positions


def _read(image: Path, frames: Frames) -> NDArray[np.uint8]:
    values = read_palette(image)
    if values.shape != frames.size:
        raise UserError(
            f"{image}: must have the size of the frames of video {frames.video}, {frames.size[1]} x "
            f"{frames.size[0]}, got {values.shape[1]} x {values.shape[0]}; resize it without smoothing"
        )
    return values


def _pngs(folder: Path) -> list[Path]:
    files = [file for file in folder.iterdir() if file.suffix.lower() == ".png" and not file.name.startswith(".")]
    return sorted(files, key=_by_name)


def _by_name(file: Path) -> list[tuple[int, int, str]]:
    return natural_order(Path(file.stem))


def _object_folders(folder: Path) -> dict[int, Path]:
    folders: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if not path.is_dir() or path.name.startswith("."):
            continue
        if not path.name.isdecimal() or int(path.name) in folders:
            raise UserError(f"{path}: folders of masks must be called by object numbers, each once; rename it")
        folders[int(path.name)] = path
    return folders
