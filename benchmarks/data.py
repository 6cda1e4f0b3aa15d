"""Measures clips per second and memory per worker of the data code, against a plain loader on the same clips.

    PYTHONPATH=. python benchmarks/data.py [--sizes 720 1080] [--grains 2 6] [--num_clips 48] [--num_objects 8000]

The plain loader is what users would write. Pillow decodes each JPEG at full size and resizes it with its bilinear
filter, ``mask_dict.json`` is held as Python objects, pycocotools decodes masks and OpenCV resizes them. Both loaders
choose the same 17 frames, make the same sizes and use two workers; sparse clips without crops, flips or jitter. Grain
is
the deviation of noise on the frames, of 255 levels: at 2, JPEGs are as large as frames of typical web videos, at 6 as
those of a good camera.
"""

import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datasets.clip import collate
from datasets.readers.mevis import MeViS
from datasets.referring import ClipOptions, ReferringClips
from datasets.registry import Source
from datasets.sampling import Batches, Key
from datasets.transforms import Box
from util.options import OptionParser, float_in, int_in

NUM_FRAMES, NUM_WORKERS, ROUNDS = 17, 2, 3
VIDEO_LENGTH, NUM_VIDEOS, OBJECTS_PER_VIDEO = 40, 6, 4
MASK_FILE_FRAMES = 80


class PlainClips(Dataset[tuple[Tensor, Tensor]]):
    """Makes the same clips as ``clips`` in the plain way."""

    def __init__(self, clips: ReferringClips, root: Path) -> None:
        self.clips = clips
        self.masks = json.loads((root / "train" / "mask_dict.json").read_text(encoding="utf-8"))

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor]:
        item = self.clips.items[key[1]]
        split = self.clips.sources[0].split
        frames, masks = [], []
        for index in self.clips._indices(key, item):
            picture = Image.open(split.frame_file(item.expression, index)).convert("RGB")
            height, width = self.clips.options.box.size_for(picture.height, picture.width)
            union = np.zeros((picture.height, picture.width), np.uint8)
            for annotation in item.expression.object_ids or ():
                rle = self.masks[annotation][index]
                if rle is not None:
                    union |= coco_mask.decode(rle)
            frames.append(np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR), np.float32))
            masks.append(cv2.resize(union, (width, height), interpolation=cv2.INTER_NEAREST))
        values = (torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2) / 255 - 0.5) / 0.5
        return values, torch.from_numpy(np.stack(masks))[None].float()


class Nothing(Dataset[int]):
    """A dataset for a worker that holds nothing."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, _: int) -> int:
        return private_megabytes()


class Touched(Dataset[int]):
    """Decodes every mask of a split, then returns the memory that only this worker uses."""

    def __init__(self, split: MeViS) -> None:
        self.split = split

    def __len__(self) -> int:
        return 1

    def __getitem__(self, _: int) -> int:
        for expression in self.split.expressions:
            self.split.masks(expression, [0], (720, 1280))
        return private_megabytes()


def private_megabytes() -> int:
    """Returns the unique set size of this process."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) // 1024


# -- made-up datasets --------------------------------------------------------------------------------------------


def write_videos(root: Path, height: int, grain: float) -> None:
    """Writes videos of moving texture and grain in MeViS's layout."""
    rng = np.random.default_rng(0)
    width = height * 16 // 9
    videos: dict[str, Any] = {}
    masks: dict[str, Any] = {}
    for number in range(NUM_VIDEOS):
        coarse = rng.normal(0, 40, (height // 24, width // 24, 3))
        picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) + 120
        picture = (picture + rng.normal(0, grain, picture.shape)).clip(0, 255).astype(np.uint8)
        folder = root / "train" / "JPEGImages" / f"v{number}"
        folder.mkdir(parents=True)
        names = [f"{index:05d}" for index in range(VIDEO_LENGTH)]
        for index, name in enumerate(names):
            frame = np.roll(picture, 5 * index, axis=1)
            cv2.imwrite(str(folder / f"{name}.jpg"), frame, [cv2.IMWRITE_JPEG_QUALITY, 90])
        annotations = [number * OBJECTS_PER_VIDEO + thing for thing in range(OBJECTS_PER_VIDEO)]
        for annotation in annotations:
            masks[str(annotation)] = [blob(rng, height, width) for _ in names]
        expressions = {
            str(thing): {"exp": f"thing {thing}", "obj_id": [thing], "anno_id": [annotation]}
            for thing, annotation in enumerate(annotations)
        }
        videos[f"v{number}"] = {"vid_id": number, "frames": names, "expressions": expressions}
    write_annotations(root, videos, masks)


def write_mask_file(root: Path, num_objects: int) -> None:
    """Writes only annotations, as many as the real training split has."""
    rng = np.random.default_rng(0)
    rles = [blob(rng, 720, 1280) for _ in range(64)]
    names = [f"{index:05d}" for index in range(MASK_FILE_FRAMES)]
    masks = {str(number): [rles[(number + frame) % 64] for frame in range(len(names))] for number in range(num_objects)}
    videos = {
        f"v{number}": {"frames": names, "expressions": {"0": {"exp": "x", "obj_id": [0], "anno_id": [number]}}}
        for number in range(num_objects)
    }
    (root / "train").mkdir(parents=True)
    write_annotations(root, videos, masks)


def write_annotations(root: Path, videos: dict[str, Any], masks: dict[str, Any]) -> None:
    (root / "train" / "meta_expressions.json").write_text(json.dumps({"videos": videos}), encoding="utf-8")
    (root / "train" / "mask_dict.json").write_text(json.dumps(masks), encoding="utf-8")


def blob(rng: np.random.Generator, height: int, width: int) -> dict[str, Any]:
    """Returns a compressed RLE of an irregular object."""
    canvas = np.zeros((height, width), np.uint8)
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    radii = height * (0.15 + 0.01 * rng.normal(0, 1, 60))
    centre = rng.uniform(0.3, 0.7, 2) * (width, height)
    points = centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    cv2.fillPoly(canvas, [points.astype(np.int32)], 1)
    rle = coco_mask.encode(np.asfortranarray(canvas))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}


# -- measuring ---------------------------------------------------------------------------------------------------


def clips_per_second(dataset: Dataset[Any], batches: list[list[Key]], collate_fn: Any) -> float:
    loader = DataLoader(dataset, batch_sampler=batches, collate_fn=collate_fn, num_workers=NUM_WORKERS)
    first_of: Iterator[Any] = iter(loader)
    next(first_of)  # workers have started
    start = time.perf_counter()
    for _ in first_of:
        pass
    return (len(batches) - 1) / (time.perf_counter() - start)


def measure_speed(height: int, grain: float, num_clips: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_videos(root, height, grain)
        clips = ReferringClips([Source("mevis", MeViS(root, "train"))], ClipOptions(NUM_FRAMES, Box(480, 832, 16)))
        stream = iter(Batches(clips.items_of, None, 1, seed=0))
        batches = [next(stream) for _ in range(num_clips)]
        plain = PlainClips(clips, root)
        files = list(root.rglob("*.jpg"))
        kilobytes = sum(file.stat().st_size for file in files) / len(files) / 1000
        rates: dict[str, list[float]] = {"plain": [], "ours": []}
        for _ in range(ROUNDS):  # alternating: both see the same machine
            rates["plain"].append(clips_per_second(plain, batches, lambda made: made[0]))
            rates["ours"].append(clips_per_second(clips, batches, collate))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratio = medians["ours"] / medians["plain"]
    what = f"{height}p, grain {grain:g} ({kilobytes:.0f} kB a frame)"
    print(f"{what}: plain {medians['plain']:.2f} clips/s, ours {medians['ours']:.2f} clips/s, {ratio:.2f} times")


def measure_memory(num_objects: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_mask_file(root, num_objects)
        size = (root / "train" / "mask_dict.json").stat().st_size / 2**20
        MeViS(root, "train")  # converts the mask file
        split = MeViS(root, "train")
        bare = next(iter(DataLoader(Nothing(), num_workers=1))).item()
        full = next(iter(DataLoader(Touched(split), num_workers=1))).item()
    print(
        f"a mask file of {num_objects} objects x {MASK_FILE_FRAMES} frames ({size:.0f} MiB): a worker that decoded "
        f"from all has {full} MiB to itself, a bare one {bare}: {full - bare} more"
    )


def main() -> None:
    parser = OptionParser(prog="benchmarks/data.py", description="Speed and memory of the data path.")
    parser.add_argument("--sizes", nargs="+", type=int_in(64), default=[720, 1080], help="heights of the sources")
    parser.add_argument("--grains", nargs="+", type=float_in(0, 100), default=[2, 6], help="of the sources")
    parser.add_argument("--num_clips", type=int_in(2), default=48, help="clips per measurement")
    parser.add_argument("--num_objects", type=int_in(1), default=8000, help="objects of the mask file; 80 frames each")
    options = parser.parse_args()
    for height, grain in itertools.product(options.sizes, options.grains):
        measure_speed(height, grain, options.num_clips)
    measure_memory(options.num_objects)


if __name__ == "__main__":
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    main()
