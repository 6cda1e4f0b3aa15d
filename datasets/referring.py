"""Clips of referring video datasets: chooses frames, reads, transforms. One path for all datasets.

What is drawn for a sample depends on (seed, epoch, item) only, never on the process that draws.
"""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from datasets.clip import Clip
from datasets.registry import IMAGE, PSEUDO_VIDEO, VIDEO, Source
from datasets.sampling import Key, dense_indices, sample_indices
from datasets.split import Expression
from datasets.transforms import (
    NO_AUGMENTATION,
    Augmentation,
    Box,
    Geometry,
    Shape,
    draw_camera_path,
    draw_geometry,
    draw_shape,
    jitter,
    mirrored_caption,
    recentred,
    to_mask_values,
    to_values,
)

# Streams of random numbers: one more draw in one stream does not change the others.
ITEMS, SHAPE, FRAMES, PLACE, PIXELS, STEP = range(6)
Masks = NDArray[np.bool_]


@dataclass(frozen=True)
class ClipOptions:
    """How clips are made.

    Attributes:
        num_frames: frames per clip of videos and pseudo-videos.
        box: box into which frames are fitted.
        sampling: ``sparse``, ``dense`` or ``mixed``.
        no_target_prob: probability that an epoch keeps an expression without a target in its video.
    """

    num_frames: int
    box: Box
    sampling: str = "sparse"
    augmentation: Augmentation = NO_AUGMENTATION
    no_target_prob: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Item:
    """A training item. Every ``num_frames``-th frame of every expression makes one.

    Attributes:
        source: index of its source.
    """

    source: int
    expression: Expression
    anchor: int


class ReferringClips(Dataset[Clip]):
    """The clips of some sources, indexed by (epoch, item)."""

    def __init__(self, sources: list[Source], options: ClipOptions) -> None:
        self.sources = sources
        self.options = options
        self.items = [
            Item(number, expression, anchor)
            for number, source in enumerate(sources)
            for expression in source.split.expressions
            for anchor in range(0, len(expression.frames), options.num_frames if source.form == VIDEO else 1)
            if expression.annotated is None or anchor in expression.annotated
        ]
        self._sizes: dict[tuple[int, str], tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self.items)

    def items_of(self, epoch: int) -> list[int]:
        """Returns the items that an epoch visits, by the weights of their sources and ``no_target_prob``."""
        draws = np.random.default_rng([self.options.seed, epoch, ITEMS]).random((len(self.items), 2))
        chosen: list[int] = []
        for number, item in enumerate(self.items):
            if item.expression.object_ids == () and draws[number, 0] >= self.options.no_target_prob:
                continue
            whole, share = divmod(self.sources[item.source].weight, 1)
            chosen += [number] * (int(whole) + int(draws[number, 1] < share))
        return chosen

    def bucket_of(self, key: Key) -> Hashable:
        """Returns what all clips of a batch share: number of frames and size."""
        item = self.items[key[1]]
        return self._num_frames(item), self._shape(key, item).size

    def __getitem__(self, key: Key) -> Clip:
        item = self.items[key[1]]
        source, expression = self.sources[item.source], item.expression
        indices = self._indices(key, item)
        size = self.source_size(item)
        source_masks = self._source_masks(item, indices, size)
        geometry, was_recentred = self._geometry(key, item, source_masks)
        files = source.split.iter_frames(expression, indices, geometry.decoded_size(size))
        frames = geometry.move_frames(files, len(indices), size)
        masks = geometry.move_masks(source_masks, size)
        frames, masks = self._change_pixels(key, source.form, frames, masks)
        caption = mirrored_caption(expression.caption) if geometry.is_mirrored else expression.caption
        assert caption is not None, "a clip whose caption has no mirror image is not mirrored"
        return Clip(
            frames=to_values(frames),
            masks=to_mask_values(masks),
            caption=caption,
            key=expression.key,
            frame_indices=tuple(indices) if len(indices) == len(frames) else tuple(indices) * len(frames),
            num_real_frames=len(set(indices)) if source.form == VIDEO else len(frames),
            source_size=size,
            seed=self.step_seed(key),
            was_recentred=was_recentred,
        )

    def captions(self) -> Iterator[str]:
        """Returns every caption that a clip may have, mirrored ones included."""
        for expression in dict.fromkeys(item.expression for item in self.items):
            yield expression.caption
            mirrored = mirrored_caption(expression.caption)
            if self.options.augmentation.flip_prob and mirrored is not None:
                yield mirrored

    def step_seed(self, key: Key) -> int:
        """Returns the random seed of what training draws for a sample."""
        return int(self._rng(key, STEP).integers(1 << 62))

    def source_size(self, item: Item) -> tuple[int, int]:
        """Returns (H, W) in pixels of an item's files; reads it once per video."""
        place = item.source, item.expression.video
        if place not in self._sizes:
            self._sizes[place] = self.sources[item.source].split.source_size(item.expression)
        return self._sizes[place]

    # -- without draws, for caches of latents --------------------------------------------------------------------

    def fixed_indices(self, item: Item) -> list[int]:
        """Returns consecutive frame indices from an item's anchor."""
        return dense_indices(item.anchor, self._num_frames(item), len(item.expression.frames))

    def fixed_frames(self, item: Item) -> Tensor:
        """Returns these frames, uncropped, [T, 3, h, w] in [-1, 1]."""
        geometry, size = self._whole(item)
        indices = self.fixed_indices(item)
        files = self.sources[item.source].split.iter_frames(item.expression, indices, geometry.decoded_size(size))
        return to_values(geometry.move_frames(files, len(indices), size))

    def fixed_masks(self, item: Item) -> Tensor:
        """Returns the masks of these frames, [T, 1, h, w] in {0, 1}."""
        geometry, size = self._whole(item)
        return to_mask_values(geometry.move_masks(self._source_masks(item, self.fixed_indices(item), size), size))

    def _whole(self, item: Item) -> tuple[Geometry, tuple[int, int]]:
        size = self.source_size(item)
        return Geometry(0, 0, *size, self.options.box.size_for(*size), is_mirrored=False), size

    # -- draws ---------------------------------------------------------------------------------------------------

    def _rng(self, key: Key, stream: int) -> Generator:
        return np.random.default_rng([self.options.seed, *key, stream])

    def _num_frames(self, item: Item) -> int:
        return 1 if self.sources[item.source].form == IMAGE else self.options.num_frames

    def _indices(self, key: Key, item: Item) -> list[int]:
        if self.sources[item.source].form != VIDEO:
            return [item.anchor]
        length = len(item.expression.frames)
        return sample_indices(
            self._rng(key, FRAMES), self.options.sampling, item.anchor, self.options.num_frames, length
        )

    def _source_masks(self, item: Item, indices: list[int], size: tuple[int, int]) -> Masks:
        """Reads masks [len(indices), H, W] at source size; decodes repeats of a frame once."""
        distinct = list(dict.fromkeys(indices))
        masks = self.sources[item.source].split.masks(item.expression, distinct, size)
        if len(distinct) == len(indices):
            return masks
        return masks[[distinct.index(index) for index in indices]]

    def _shape(self, key: Key, item: Item) -> Shape:
        crop_prob = self.options.augmentation.crop_prob
        return draw_shape(self._rng(key, SHAPE), self.source_size(item), self.options.box, crop_prob)

    def _geometry(self, key: Key, item: Item, masks: Masks) -> tuple[Geometry, bool]:
        """Draws where the clip is cut from the source; moves a crop that lost the object back onto it, once."""
        rng = self._rng(key, PLACE)
        wants_mirror = rng.random() < self.options.augmentation.flip_prob
        is_mirrored = wants_mirror and mirrored_caption(item.expression.caption) is not None
        geometry = draw_geometry(rng, self._shape(key, item), self.source_size(item), is_mirrored)
        if geometry.shows(masks) or not masks.any():
            return geometry, False
        return recentred(rng, geometry, masks), True

    def _change_pixels(self, key: Key, form: str, frames: Tensor, masks: Masks) -> tuple[Tensor, Masks]:
        rng = self._rng(key, PIXELS)
        if form == PSEUDO_VIDEO:
            path = draw_camera_path(rng, self.options.num_frames, (frames.shape[-2], frames.shape[-1]))
            frames, masks = path.move_frames(frames), path.move_masks(masks)
        if self.options.augmentation.jitter:
            frames = jitter(rng, frames, self.options.augmentation.jitter)
        return frames, masks
