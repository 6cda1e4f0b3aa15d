"""Writes a toy MeViS: moving shapes, and captions that need the motion to be understood, in MeViS's layout.

    python -m datasets.toy --out DIR [--seed 0] [--num_train 1500]

Every caption about motion has a look-alike in its video: an object of the same shape, colour, size and texture that
moves differently. Beside the keys of MeViS, ``meta_expressions.json`` has the ``kind`` of each expression and
describes
the ``objects`` of each video.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from tqdm import tqdm

from util.errors import UserError, exit_on_user_error
from util.files import staged_folder
from util.images import write_jpeg
from util.options import OptionParser, int_in
from util.rle import encode_rle

SHAPES = ("circle", "square", "triangle")
COLOURS = {"red": (205, 50, 50), "green": (50, 165, 70), "blue": (60, 90, 210), "yellow": (215, 195, 50)}
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
STILL, TURNS_BACK, CIRCLES = "still", "turns back", "circles"
MOTIONS = (*DIRECTIONS, STILL, TURNS_BACK, CIRCLES)
PLURALS = {"circle": "circles", "square": "squares", "triangle": "triangles", "object": "objects"}
MOTION_CLAUSES = {
    **{name: f"moving {name}" for name in DIRECTIONS},
    STILL: "that stays still",
    TURNS_BACK: "that turns back",
    CIRCLES: "moving in a circle",
}

AREA = (0.05, 0.14)  # share of the frame, per object
TRAVEL = (0.28, 0.5)  # shares of the frame's side, from first to last frame
CIRCLE_RADIUS = (0.1, 0.16)  # share of the frame's side
MIN_VISIBLE = 0.5  # smallest visible share of a target, averaged over the frames
SUPERSAMPLING = 4
MAX_PER_KIND = 2  # most captions of one kind in a video


@dataclass(frozen=True)
class Look:
    """The look of an object; twins share it. ``area`` is a share of the frame, ``texture`` a random seed."""

    shape: str
    colour: str
    area: float
    texture: int


@dataclass(frozen=True)
class Thing:
    """An object: its look, its motion, and its centre in each frame, [T, 2] as (x, y) in shares of the frame."""

    look: Look
    motion: str
    path: NDArray[np.float64]


@dataclass(frozen=True)
class Sentence:
    """A caption, the indices of the objects it means, and its kind: look, motion, several or relation."""

    caption: str
    targets: tuple[int, ...]
    kind: str


@dataclass(frozen=True)
class Video:
    """Frames [T, H, W, 3] uint8, visible masks [N, T, H, W] of the N objects, and captions about them."""

    frames: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    things: list[Thing]
    sentences: list[Sentence]


def make_video(rng: Generator, size: int = 64, num_frames: int = 9) -> Video:
    """Draws worlds until one has fair targets and at least three sentences."""
    while True:
        things = _draw_things(rng, num_frames)
        frames, masks, visible = _render(things, rng, size)
        if visible.min() < MIN_VISIBLE:
            continue
        sentences = _choose(rng, list(_sentences(things)))
        if len(sentences) >= 3:
            return Video(frames, masks, things, sentences)


# -- objects -----------------------------------------------------------------------------------------------------


def _draw_things(rng: Generator, num_frames: int) -> list[Thing]:
    """Draws two to four objects; mostly the second is the twin of the first."""
    num_things = int(rng.integers(2, 5))
    looks = [_draw_look(rng) for _ in range(num_things)]
    motions = [str(rng.choice(MOTIONS)) for _ in range(num_things)]
    if rng.random() < 0.8:
        looks[1] = looks[0]
    return [
        Thing(look, motion, _draw_path(rng, motion, num_frames)) for look, motion in zip(looks, motions, strict=True)
    ]


def _draw_look(rng: Generator) -> Look:
    return Look(
        str(rng.choice(SHAPES)), str(rng.choice(list(COLOURS))), float(rng.uniform(*AREA)), int(rng.integers(1 << 30))
    )


def _draw_path(rng: Generator, motion: str, num_frames: int) -> NDArray[np.float64]:
    time = np.linspace(0, 1, num_frames)
    centre = rng.uniform(0.2, 0.8, 2)
    if motion == STILL:
        return np.tile(centre, (num_frames, 1))
    if motion == CIRCLES:
        angle = rng.uniform(0, 2 * np.pi) + rng.choice([-1, 1]) * 2 * np.pi * rng.uniform(0.8, 1.1) * time
        return centre + rng.uniform(*CIRCLE_RADIUS) * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    travel = rng.uniform(*TRAVEL)
    if motion == TURNS_BACK:
        heading = np.array(DIRECTIONS[str(rng.choice(list(DIRECTIONS)))])
        turn = rng.uniform(0.4, 0.6)
        way = np.where(time < turn, time / turn, (1 - time) / (1 - turn))
        return centre + heading * (travel * 0.9 * (way - 0.5))[:, None]
    heading = np.array(DIRECTIONS[motion])
    # The middle of the path may lie near an edge: such objects enter or leave.
    return centre + heading * (travel * (time - 0.5))[:, None]


# -- frames ------------------------------------------------------------------------------------------------------


def _render(
    things: list[Thing], rng: Generator, size: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.float64]]:
    """Returns frames, visible masks, and the visible share of each object's pixels, averaged over the frames."""
    background = _texture(rng, size, cells=6) * 22 + rng.uniform(70, 150, 3)
    num_frames = len(things[0].path)
    frames = np.empty((num_frames, size, size, 3), np.uint8)
    masks = np.zeros((len(things), num_frames, size, size), bool)
    shares = np.zeros((len(things), num_frames))
    skins = [_skin(thing.look, size) for thing in things]
    for time in range(num_frames):
        frame = background.copy()
        for index, thing in enumerate(things):  # later objects are in front
            centre = thing.path[time] * size
            cover = _cover(thing.look, centre, size)
            frame += cover[..., None] * (_moved(skins[index], centre, size) - frame)
            masks[:, time] &= cover < 0.5
            masks[index, time] = cover >= 0.5
        frames[time] = frame.clip(0, 255).astype(np.uint8)
        for index, thing in enumerate(things):
            shares[index, time] = masks[index, time].sum() / (thing.look.area * size * size)
    return frames, masks, shares.mean(axis=1)


def _texture(rng: Generator, size: int, cells: int) -> NDArray[np.float64]:
    """Returns smooth noise of unit scale, [size, size, 3]."""
    return cv2.resize(rng.normal(0, 1, (cells, cells, 3)), (size, size), interpolation=cv2.INTER_CUBIC)


def _skin(look: Look, size: int) -> NDArray[np.float64]:
    """Returns colour and texture of an object, [size, size, 3], centred."""
    rng = np.random.default_rng(look.texture)
    stripes = np.sin(np.arange(size) * 2 * np.pi / (size * rng.uniform(0.08, 0.16)))[:, None, None]
    if rng.random() < 0.5:
        stripes = stripes.transpose(1, 0, 2)
    return np.array(COLOURS[look.colour]) + 14 * stripes + 8 * _texture(rng, size, cells=10)


def _moved(skin: NDArray[np.float64], centre: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    shift = np.array([[1, 0, centre[0] - size / 2], [0, 1, centre[1] - size / 2]])
    return cv2.warpAffine(skin, shift, (size, size), borderMode=cv2.BORDER_REPLICATE)


def _cover(look: Look, centre: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Returns the share of each pixel that the object covers, [size, size] in [0, 1]."""
    fine = size * SUPERSAMPLING
    canvas = np.zeros((fine, fine), np.uint8)
    area = look.area * fine * fine
    x, y = centre * SUPERSAMPLING
    if look.shape == "circle":
        cv2.circle(canvas, (round(x), round(y)), round(math.sqrt(area / math.pi)), 255, -1)
    else:
        half = math.sqrt(area) / 2
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half
        if look.shape == "triangle":
            side = math.sqrt(area * 4 / math.sqrt(3))
            corners = np.array(
                [[0, -side / math.sqrt(3)], [side / 2, side / math.sqrt(12)], [-side / 2, side / math.sqrt(12)]]
            )
        cv2.fillPoly(canvas, [np.round(corners + np.array([x, y])).astype(np.int32)], 255)
    return cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA) / 255


# -- sentences ---------------------------------------------------------------------------------------------------


def _sentences(things: list[Thing]) -> Iterator[Sentence]:
    """Yields every true caption about the objects, each with exactly its targets."""
    indices = range(len(things))
    nouns = {"object": list(indices)} | {
        shape: [index for index in indices if things[index].look.shape == shape] for shape in SHAPES
    }
    for noun, named in nouns.items():
        yield from _look_sentences(things, noun, named)
        yield from _motion_sentences(things, noun, named)
        yield from _several_sentences(things, noun, named)
    yield from _relation_sentences(things, nouns)


def _look_sentences(things: list[Thing], noun: str, named: list[int]) -> Iterator[Sentence]:
    for colour in COLOURS:
        matching = tuple(index for index in named if things[index].look.colour == colour)
        if len(matching) == 1:
            yield Sentence(f"the {colour} {noun}", matching, "look")
        if len(matching) > 1:
            yield Sentence(f"all {colour} {PLURALS[noun]}", matching, "several")


def _motion_sentences(things: list[Thing], noun: str, named: list[int]) -> Iterator[Sentence]:
    for motion, clause in MOTION_CLAUSES.items():
        moving_so = [index for index in named if things[index].motion == motion]
        if len(moving_so) == 1 and _has_look_alike(things, moving_so[0], moving_so):
            yield Sentence(f"the {noun} {clause}", tuple(moving_so), "motion")


def _several_sentences(things: list[Thing], noun: str, named: list[int]) -> Iterator[Sentence]:
    moving = tuple(index for index in named if things[index].motion != STILL)
    if len(moving) > 1 and any(_has_look_alike(things, index, moving) for index in moving):
        yield Sentence(f"all moving {PLURALS[noun]}", moving, "several")
    if noun != "object" and len(named) > 1:
        yield Sentence(f"all {PLURALS[noun]}", tuple(named), "several")


def _has_look_alike(things: list[Thing], index: int, targets: list[int] | tuple[int, ...]) -> bool:
    """Whether an object that is not a target looks exactly like this one."""
    return any(other not in targets and things[other].look == things[index].look for other in range(len(things)))


def _relation_sentences(things: list[Thing], nouns: dict[str, list[int]]) -> Iterator[Sentence]:
    """Yields ``the A left of the B``: there is one B, and exactly one A is on that side in every frame."""
    for axis, sign, words in ((0, -1, "left of"), (0, 1, "right of"), (1, -1, "above"), (1, 1, "below")):
        for anchor_shape in SHAPES:
            if len(nouns[anchor_shape]) != 1:
                continue
            anchor = nouns[anchor_shape][0]
            for shape in SHAPES:
                gaps = {
                    index: sign * (things[index].path - things[anchor].path)[:, axis]
                    for index in nouns[shape]
                    if index != anchor
                }
                beside = [index for index, gap in gaps.items() if gap.min() > 0.1]
                if len(beside) == 1 and all(gap.max() < 0 for index, gap in gaps.items() if index != beside[0]):
                    yield Sentence(f"the {shape} {words} the {anchor_shape}", (beside[0],), "relation")


def _choose(rng: Generator, sentences: list[Sentence]) -> list[Sentence]:
    """Chooses at most two captions of each kind, no caption twice."""
    order = rng.permutation(len(sentences))
    chosen: dict[str, Sentence] = {}
    count: dict[str, int] = {}
    for sentence in (sentences[index] for index in order):
        if count.get(sentence.kind, 0) < MAX_PER_KIND:
            count[sentence.kind] = count.get(sentence.kind, 0) + 1
            chosen[sentence.caption] = sentence
    return list(chosen.values())


# -- files -------------------------------------------------------------------------------------------------------


def write_split(folder: Path, videos: Iterator[Video], num_videos: int, with_masks: bool) -> None:
    """Writes one split in MeViS's layout.

    Args:
        folder: ``train``, ``valid_u`` or ``valid``; created here.
        with_masks: write ``mask_dict.json`` and the targets; otherwise expressions hold only ``exp``.
    """
    meta: dict[str, Any] = {}
    mask_dict: dict[str, Any] = {}
    for number in tqdm(range(num_videos), desc=f"write {folder.name}", unit="video"):
        video = next(videos)
        name = f"toy{number:05d}"
        frame_names = [f"{index:05d}" for index in range(len(video.frames))]
        _write_frames(folder / "JPEGImages" / name, frame_names, video.frames)
        annotation_ids = [len(mask_dict) + index for index in range(len(video.things))] if with_masks else []
        expressions = {
            str(index): _expression(sentence, annotation_ids) for index, sentence in enumerate(video.sentences)
        }
        meta[name] = {"vid_id": number, "frames": frame_names, "expressions": expressions}
        if with_masks:
            meta[name]["objects"] = [
                {**asdict(thing.look), "motion": thing.motion, "anno_id": annotation_ids[index]}
                for index, thing in enumerate(video.things)
            ]
            for annotation_id, masks in zip(annotation_ids, video.masks, strict=True):
                mask_dict[str(annotation_id)] = [encode_rle(mask) for mask in masks]
    (folder / "meta_expressions.json").write_text(json.dumps({"videos": meta}), encoding="utf-8")
    if with_masks:
        (folder / "mask_dict.json").write_text(json.dumps(mask_dict), encoding="utf-8")


def _expression(sentence: Sentence, annotation_ids: list[int]) -> dict[str, Any]:
    if not annotation_ids:
        return {"exp": sentence.caption}
    return {
        "exp": sentence.caption,
        "obj_id": list(sentence.targets),
        "anno_id": [annotation_ids[target] for target in sentence.targets],
        "kind": sentence.kind,
    }


def _write_frames(folder: Path, names: list[str], frames: NDArray[np.uint8]) -> None:
    folder.mkdir(parents=True)
    for name, frame in zip(names, frames, strict=True):
        write_jpeg(folder / f"{name}.jpg", frame)


def _videos(seed: int, split: int, size: int, num_frames: int) -> Iterator[Video]:
    """Yields videos without end; video n of a split does not depend on the number of videos."""
    number = 0
    while True:
        yield make_video(np.random.default_rng([seed, split, number]), size, num_frames)
        number += 1


def write_toy_mevis(
    out: Path, seed: int, *, num_train: int, num_valid_u: int, num_valid: int, size: int = 64, num_frames: int = 9
) -> None:
    """Writes ``out`` with the splits train, valid_u (with masks) and valid (without), whole or not at all.

    Raises:
        UserError: if ``out`` exists.
    """
    if out.exists():
        raise UserError(f"--out {out}: already exists; give a new folder or remove it")
    with staged_folder(out.parent, out.name) as staging:
        for split, (name, number) in enumerate(
            {"train": num_train, "valid_u": num_valid_u, "valid": num_valid}.items()
        ):
            write_split(staging / name, _videos(seed, split, size, num_frames), number, with_masks=name != "valid")
        staging.replace(out)


def main() -> None:
    parser = OptionParser(prog="python -m datasets.toy", description="Write a toy MeViS.")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write; must not exist")
    parser.add_argument("--seed", type=int_in(0), default=0, help="another seed is another world")
    parser.add_argument("--num_train", type=int_in(1), default=1500, help="training videos")
    parser.add_argument("--num_valid_u", type=int_in(1), default=60, help="validation videos with masks")
    parser.add_argument("--num_valid", type=int_in(1), default=10, help="validation videos without")
    parser.add_argument("--size", type=int_in(64, 128), default=64, help="side of the frames in pixels")
    parser.add_argument("--num_frames", type=int_in(9, 33), default=9, help="frames per video")
    options = parser.parse_args()
    with exit_on_user_error(parser.prog):
        write_toy_mevis(
            Path(options.out),
            options.seed,
            num_train=options.num_train,
            num_valid_u=options.num_valid_u,
            num_valid=options.num_valid,
            size=options.size,
            num_frames=options.num_frames,
        )


if __name__ == "__main__":
    main()
