"""Cuts long videos into overlapping windows and blends their logits. Pure functions.

Every window has the same number of frames; the last one is moved back to end with the video, so that it sees as many
frames as the others. Over the ``overlap`` frames that two successive windows share, the first fades into the second:

    weight of the second window at frame i of the overlap = (i + 1) / (overlap + 1),    i = 0 ... overlap - 1

and the first has the rest of the weight. A video no longer than a window is one window.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from models.vae_stream import FRAMES_PER_CHUNK
from util.errors import UserError

Item = TypeVar("Item")

OVERLAP_SHARE = 5  # the default overlap is a fifth of a window: 16 frames of 81


@dataclass(frozen=True)
class Windows:
    """How a video is cut.

    Attributes:
        length: frames per window, 4n + 1; 0 is the whole video.
        overlap: frames that a window shares with the one before.
    """

    length: int = 0
    overlap: int = 0

    @property
    def stride(self) -> int:
        """Frames from the start of a window to the start of the next."""
        return self.length - self.overlap


def choose_windows(window: int, overlap: int | None = None) -> Windows:
    """Checks ``window`` and ``overlap``; by default the overlap is a fifth of the window.

    Raises:
        UserError: unless ``window`` is 0 or 4n + 1, and ``overlap`` is at most half of it.
    """
    if window < 0 or (window > 0 and (window - 1) % FRAMES_PER_CHUNK):
        below = max(1, window - (window - 1) % FRAMES_PER_CHUNK)
        raise UserError(
            f"window (--window) must be 4n+1 frames for the Wan VAE, or 0 for the whole video, got {window}; use "
            f"{below} or {below + FRAMES_PER_CHUNK}"
        )
    if window == 0:
        if overlap:
            raise UserError(
                f"overlap (--overlap) must be 0 if the whole video is one window, got {overlap}; give --window too"
            )
        return Windows()
    if overlap is None:
        overlap = window // OVERLAP_SHARE
    # So at most two windows share a frame, and no frame is blended twice.
    if not 0 <= overlap <= window // 2:
        raise UserError(
            f"overlap (--overlap) must be between 0 and half the window, {window // 2} of {window} frames, got "
            f"{overlap}; use {window // OVERLAP_SHARE}, or a longer --window"
        )
    return Windows(window, overlap)


@dataclass(frozen=True)
class Joint:
    """What the next window needs to know about the windows before it.

    Attributes:
        start, stop: frames of the last window.
        tail: [P, overlap, h, w] logits of its last frames, to blend with the next window.
    """

    start: int
    stop: int
    tail: Tensor

    @property
    def num_finished(self) -> int:
        """Number of frames that no later window can change."""
        return self.stop - self.tail.shape[1]


def cut(items: Iterable[Item], windows: Windows, after: Joint | None = None) -> Iterator[tuple[int, list[Item]]]:
    """Yields each window, (index of its first item, items), as soon as it is complete.

    At most two windows are held.

    Args:
        items: frames of a video of unknown length; with ``after``, from ``after.start`` on.
        after: the last window that was cut already.
    """
    start, stop = (after.start, after.stop) if after else (0, 0)
    held: list[Item] = []  # frames from ``start`` on; the last window is moved back into them
    for item in items:
        held.append(item)
        needed = windows.length + (windows.stride if stop else 0)
        if windows.length and len(held) == needed:
            start += needed - windows.length
            del held[: needed - windows.length]
            stop = start + windows.length
            yield start, list(held)
    surplus = start + len(held) - stop
    if held and surplus > 0:
        moved = surplus if stop else 0
        yield start + moved, held[moved:]


def spans_of(num_frames: int, windows: Windows) -> list[tuple[int, int]]:
    """Returns the windows [start, stop) of a video of known length."""
    return [(start, start + len(window)) for start, window in cut(range(num_frames), windows)]


@dataclass
class Blend:
    """Blends the logits of windows, added in the order of ``cut``; holds those of one overlap.

    Attributes:
        level: logits above it are foreground.
        joint: the state after the windows so far; pass that of an earlier run to continue it.
        agreements: for each window but the first, [P] IoU with the window before over the shared frames, see
            ``mask_iou``;
            empty without overlap.
    """

    windows: Windows
    level: float = 0.0
    joint: Joint | None = None
    agreements: list[Tensor] = field(default_factory=list)

    def add(self, start: int, logits: Tensor) -> Tensor:
        """Adds a window [P, T, h, w] that begins at frame ``start``; returns the logits [P, N, h, w] finished by it."""
        stop = start + logits.shape[1]
        if self.joint is not None:
            before, earlier = self.joint.num_finished - start, self.joint.tail
            shared = logits[:, before : before + earlier.shape[1]]
            if earlier.shape[1]:
                self.agreements.append(mask_iou(earlier > self.level, shared > self.level))
            weight = fade_in(earlier.shape[1]).to(logits)
            blended = torch.lerp(earlier, shared, weight[:, None, None])
            logits = torch.cat([blended, logits[:, before + earlier.shape[1] :]], dim=1)
        num_finished = max(0, logits.shape[1] - self.windows.overlap)
        # A copy: a view would keep the whole window in memory.
        self.joint = Joint(start, stop, logits[:, num_finished:].clone())
        return logits[:, :num_finished]


def join(finished: Iterable[tuple[int, Tensor]], num_frames: int) -> Tensor:
    """Joins finished logits to [P, num_frames, h, w].

    Args:
        finished: (first frame, [P, N, h, w]) in order; one that holds all frames is returned without a copy.
    """
    joined = None
    for start, logits in finished:
        if logits.shape[1] == num_frames:
            return logits
        if joined is None:
            joined = logits.new_empty(logits.shape[0], num_frames, *logits.shape[2:])
        joined[:, start : start + logits.shape[1]] = logits
    assert joined is not None, "a video has at least one window"
    return joined


def fade_in(overlap: int) -> Tensor:
    """Returns [overlap] float32: the weight of the later window at each shared frame, rising strictly in (0, 1)."""
    return torch.arange(1, overlap + 1) / (overlap + 1)


def mask_iou(first: Tensor, second: Tensor) -> Tensor:
    """Returns [P] intersection over union of masks [P, T, h, w], over all frames together; 1 where both are empty."""
    intersection = (first & second).flatten(1).sum(dim=1)
    union = (first | second).flatten(1).sum(dim=1)
    return torch.where(union == 0, 1.0, intersection / union.clamp(min=1))
