"""Transforms the pixels of a clip: random numbers are drawn once, then applied to every frame and mask alike.

Sizes are shares of the source, so the same draws fit the box of any model. The original's recipe (short side to 400,
500
or 600, a crop of 384 to 600 pixels, then to 480) is written relative to its 480.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from datasets.clip import empty_to_send
from util.images import Frame, fit_size

Size = tuple[int, int]  # (height, width) in pixels
Pixel = TypeVar("Pixel", np.uint8, np.bool_)

SHORT_SIDES = (400, 500, 600)  # short sides to which the source is resized before the crop
CROP_SIDES = (384, 600)
# Width over height of crops; the nearest to the drawn one is used. Few, so that batches find crops of one size.
CROP_ASPECTS = (2 / 3, 3 / 4, 1.0, 4 / 3, 3 / 2, 16 / 9)
VALUES = np.arange(256, dtype=np.float32) / np.float32(127.5) - np.float32(1)  # pixel levels
ALIGNMENT = 8  # multiple of crops, in source pixels: a JPEG decoded at 1/2, 1/4 or 1/8 is cropped at the same place


@dataclass(frozen=True)
class Augmentation:
    """Which augmentations are drawn.

    Attributes:
        crop_prob: probability of a crop instead of the whole frame.
        flip_prob: probability of mirroring, if the caption allows it.
        jitter: largest relative change of brightness, contrast and saturation; 0 is none. Hue never changes: captions
            name
            colours.
    """

    crop_prob: float = 0.5
    flip_prob: float = 0.5
    jitter: float = 0.0


NO_AUGMENTATION = Augmentation(0, 0, 0)


@dataclass(frozen=True)
class Box:
    """The size into which frames are fitted: short and long side in pixels, and the multiple each side is floored to.

    Portrait frames use the box upright.
    """

    short_side: int
    long_side: int
    multiple: int

    def size_for(self, height: float, width: float) -> Size:
        """Returns the clip's size for frames or a crop of some size."""
        box = (self.short_side, self.long_side) if width >= height else (self.long_side, self.short_side)
        # Whole numbers, so that equal ratios give equal sizes.
        return fit_size(round(height * 1000), round(width * 1000), *box, self.multiple)


@dataclass(frozen=True)
class Shape:
    """Size of the crop and of the clip: all that a batch must know beforehand.

    Attributes:
        crop: (height, width) in source pixels; None is the whole frame.
        size: (height, width) of the clip.
    """

    crop: Size | None
    size: Size


@dataclass(frozen=True)
class Geometry:
    """The region of the source that becomes the clip, the clip's size, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    size: Size
    is_mirrored: bool

    def decoded_size(self, source: Size) -> Size:
        """Returns the smallest size at which the source may be decoded so that nothing is enlarged without need."""
        return (
            math.ceil(source[0] * self.size[0] / self.height),
            math.ceil(source[1] * self.size[1] / self.width),
        )

    def move_frames(self, frames: Iterable[Frame], num_frames: int, source: Size) -> Tensor:
        """T frames [H, W, 3], decoded at ``source`` size or a reduced one, to [T, 3, h, w] uint8; taken one by one."""
        pixels = torch.empty(num_frames, 3, *self.size, dtype=torch.uint8)
        for moved, frame in zip(pixels, frames, strict=True):
            moved.copy_(self._resized(self._cropped(frame, source))[0])
        return pixels.flip(-1) if self.is_mirrored else pixels

    def move_masks(self, masks: NDArray[np.bool_], source: Size) -> NDArray[np.bool_]:
        """[T, H, W] at ``source`` size to [T, h, w], each pixel the nearest one's."""
        moved = np.stack([self._nearest(self._cropped(mask, source).view(np.uint8)) for mask in masks]).view(bool)
        return moved[..., ::-1] if self.is_mirrored else moved

    def _nearest(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width = self.size
        if mask.strides[0] < mask.strides[1]:  # column by column, like run lengths, until it is resized
            return cv2.resize(mask.T, (height, width), interpolation=cv2.INTER_NEAREST_EXACT).T
        return cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)

    def shows(self, masks: NDArray[np.bool_]) -> bool:
        """Whether any object pixel of [T, H, W] masks lies in the crop."""
        return bool(masks[:, self.top : self.top + self.height, self.left : self.left + self.width].any())

    def _resized(self, frame: Frame) -> Tensor:
        """Resizes [H, W, 3] to [1, 3, h, w]. Torch's filter equals Pillow's up to one level, in a third of the time."""
        pixels = torch.from_numpy(np.require(frame, requirements="W")).permute(2, 0, 1)[None]
        return F.interpolate(pixels, self.size, mode="bilinear", antialias=True, align_corners=False)

    def _cropped(self, picture: NDArray[Pixel], source: Size) -> NDArray[Pixel]:
        reduction = round(source[0] / picture.shape[0])
        if (self.height, self.width) == source:
            return picture
        top, left, height, width = (value // reduction for value in (self.top, self.left, self.height, self.width))
        return picture[top : top + height, left : left + width]


def draw_shape(rng: Generator, source: Size, box: Box, crop_prob: float) -> Shape:
    """Draws whether to crop, the size of the crop, and the size of the clip."""
    is_crop = rng.random() < crop_prob
    short_side = rng.choice(SHORT_SIDES)
    sides = rng.uniform(*CROP_SIDES, 2) / short_side * min(source)  # in source pixels
    if not is_crop:
        return Shape(None, box.size_for(*source))
    height, width = np.minimum(sides, source)
    aspect = min(CROP_ASPECTS, key=lambda ratio: abs(math.log(ratio * height / width)))
    crop = (min(height, width / aspect), min(width, height * aspect))
    aligned = tuple(_aligned(side, limit) for side, limit in zip(crop, source, strict=True))
    return Shape((aligned[0], aligned[1]), box.size_for(1, aspect))


def draw_geometry(rng: Generator, shape: Shape, source: Size, is_mirrored: bool) -> Geometry:
    """Draws the position of the crop."""
    height, width = shape.crop or source
    top, left = (_place(rng, side, limit) for side, limit in zip((height, width), source, strict=True))
    return Geometry(top, left, height, width, shape.size, is_mirrored)


def recentred(rng: Generator, geometry: Geometry, masks: NDArray[np.bool_]) -> Geometry:
    """Moves a crop that lost the object onto a random pixel of it, from non-empty masks [T, H, W]."""
    source = (masks.shape[1], masks.shape[2])
    pixels = np.flatnonzero(masks.any(axis=0))
    row, column = divmod(int(rng.choice(pixels)), source[1])
    top, left = (
        min(max(0, centre - side // 2), limit - side) // ALIGNMENT * ALIGNMENT
        for centre, side, limit in zip((row, column), (geometry.height, geometry.width), source, strict=True)
    )
    return Geometry(top, left, geometry.height, geometry.width, geometry.size, geometry.is_mirrored)


def _aligned(side: float, limit: int) -> int:
    """Rounds a crop's side to a multiple of ``ALIGNMENT``; a smaller source is used as a whole."""
    return limit if side >= limit else min(limit, max(1, round(side / ALIGNMENT)) * ALIGNMENT)


def _place(rng: Generator, side: int, limit: int) -> int:
    return int(rng.integers((limit - side) // ALIGNMENT + 1)) * ALIGNMENT


# -- mirroring ---------------------------------------------------------------------------------------------------

# left, right, and their compounds: leftmost, left-hand, rightwards, left-facing.
SIDE_WORD = re.compile(r"\b(left|right)(?=(?:-?(?:most|wards?|hand(?:ed)?|sided?|facing))?(?![\w-]))", re.IGNORECASE)
# Here swapping words would be wrong: turning, "left" the verb, "right" the adverb. Some sides match too ("on the right
# behind the car"): such a clip is not mirrored.
OTHER_SENSE = re.compile(
    r"clockwise"
    r"|\b(?:who|that|which|has|have|had|it|he|she|they) left\b(?! of| side)|\bleft (?:behind|alone|over)\b"
    r"|\bright (?:away|after|before|behind|beside|next|now|here|there|above|below|under|in front|at the)\b",
    re.IGNORECASE,
)
OTHER_SIDE = {"left": "right", "right": "left", "Left": "Right", "Right": "Left", "LEFT": "RIGHT", "RIGHT": "LEFT"}


def mirrored_caption(caption: str) -> str | None:
    """Swaps left and right in a caption, as words and in compounds (leftmost, left-hand), for a mirrored clip.

    Returns:
        None if swapping would be wrong: "clockwise", "the man who left", "right behind the car", "leftover".
    """
    unknown = re.search(r"\b(?:left|right)", SIDE_WORD.sub("", caption), re.IGNORECASE)
    if unknown or OTHER_SENSE.search(caption):
        return None
    return SIDE_WORD.sub(lambda match: OTHER_SIDE.get(match[0], OTHER_SIDE[match[0].lower()]), caption)


# -- images as videos, and light -----------------------------------------------------------------------------------

MAX_TURN = 10.0  # degrees from the middle of the path
MAX_ZOOM = 0.12
MAX_SHIFT = 0.1  # share of each side
MAX_DIMMING = 0.15


@dataclass(frozen=True)
class CameraPath:
    """A smooth camera movement over an image: [T, 2, 3] affine matrices in clip pixels, and light.

    ``light`` [T] multiplies the pixels.
    """

    matrices: NDArray[np.float64]
    light: NDArray[np.float64]

    def move_frames(self, frames: Tensor) -> Tensor:
        """[1, 3, h, w] uint8, or T alike frames, to [T, 3, h, w]."""
        picture = np.ascontiguousarray(frames[0].permute(1, 2, 0).numpy())
        moved = [self._moved(picture, matrix, cv2.INTER_LINEAR) for matrix in self.matrices]
        lit = [(frame * light).clip(0, 255).astype(np.uint8) for frame, light in zip(moved, self.light, strict=True)]
        return torch.from_numpy(np.stack(lit)).permute(0, 3, 1, 2)

    def move_masks(self, masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """[1, h, w], or T alike masks, to [T, h, w]."""
        mask = np.ascontiguousarray(masks[0]).view(np.uint8)
        return np.stack([self._moved(mask, matrix, cv2.INTER_NEAREST) for matrix in self.matrices]).view(bool)

    @staticmethod
    def _moved(picture: NDArray[np.uint8], matrix: NDArray[np.float64], filter_: int) -> NDArray[np.uint8]:
        height, width = picture.shape[:2]
        # Frames and masks are reflected alike, so a reflected object keeps its label.
        return cv2.warpAffine(picture, matrix, (width, height), flags=filter_, borderMode=cv2.BORDER_REFLECT_101)


def draw_camera_path(rng: Generator, num_frames: int, size: Size) -> CameraPath:
    """Draws a path through two random poses, with a smooth start and end."""
    height, width = size
    start, end = rng.uniform(-1, 1, (2, 5))
    ease = (1 - np.cos(np.linspace(0, np.pi, num_frames))) / 2 if num_frames > 1 else np.zeros(1)
    pose = start + (end - start) * ease[:, None]
    matrices = []
    for turn, zoom, x, y, _ in pose:
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), MAX_TURN * turn, 1 + MAX_ZOOM * (1 + zoom) / 2)
        matrix[:, 2] += MAX_SHIFT * x * width, MAX_SHIFT * y * height
        matrices.append(matrix)
    return CameraPath(np.stack(matrices), 1 + MAX_DIMMING * pose[:, 4])


def jitter(rng: Generator, frames: Tensor, strength: float) -> Tensor:
    """Changes brightness, contrast and saturation of [T, 3, h, w] uint8, each by one factor for the whole clip.

    Args:
        strength: factors are drawn from 1 - strength to 1 + strength.
    """
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3)
    values = frames.float() * brightness
    grey = (values * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    values = grey + saturation * (values - grey)
    mean = grey.mean()
    return (mean + contrast * (values - mean)).round().clamp(0, 255).to(torch.uint8)


def to_values(frames: Tensor) -> Tensor:
    """Converts [T, 3, h, w] uint8 to float32 in [-1, 1]: mean 0.5, deviation 0.5 on [0, 1], for every dataset.

    The memory layout is that of a batch, channels first, so stacking does not copy.
    """
    num_frames, channels, height, width = frames.shape
    values = empty_to_send(channels, num_frames, height, width)
    for channel in range(channels):
        for frame in range(num_frames):
            cv2.LUT(frames[frame, channel].numpy(), VALUES, dst=values[channel, frame].numpy())
    return values.transpose(0, 1)


def to_mask_values(masks: NDArray[np.bool_]) -> Tensor:
    """Converts [T, h, w] to float32 [T, 1, h, w] in {0, 1}."""
    values = empty_to_send(len(masks), 1, *masks.shape[1:])
    values[:, 0].copy_(torch.from_numpy(np.ascontiguousarray(masks)))
    return values
