"""MeViS's ``mask_dict.json`` as arrays that every process maps instead of holding. Free of torch.

The JSON of the real training split is hundreds of megabytes of text and gigabytes of Python objects, in every loader
process. It is converted once to a folder of flat arrays:

    counts.npy    every compressed COCO RLE, one after the other, bytes
    ends.npy      [M] where each ends; an absent mask has no bytes
    sizes.npy     [M, 2] (H, W) of each; zeros where absent
    objects.json  annotation id -> [first mask, number of masks]
    source.json   size and time of the file it was made from
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from tqdm import tqdm

from util.errors import UserError
from util.files import move_over, staged_folder
from util.masks import checked_rle

SUFFIX = ".store"
FORMAT = 1  # of the folder; another number converts anew


class MaskStore:
    """The masks of every annotation of a split.

    Args:
        source: ``mask_dict.json``: {annotation id: [compressed RLE or null, one per frame]}.
        cache_dir: where the converted arrays are kept; beside ``source`` if None.

    Raises:
        UserError: if ``source`` is damaged, or the arrays cannot be written.
    """

    def __init__(self, source: Path, cache_dir: Path | None = None) -> None:
        self.source = source
        folder = store_folder(source, cache_dir)
        if not _is_current(folder, source):
            _convert_once(source, folder)
        self._counts = np.load(folder / "counts.npy", mmap_mode="r")
        self._ends = np.load(folder / "ends.npy", mmap_mode="r")
        self._sizes = np.load(folder / "sizes.npy", mmap_mode="r")
        self._objects: dict[str, list[int]] = json.loads((folder / "objects.json").read_text(encoding="utf-8"))

    def __contains__(self, annotation: str) -> bool:
        return annotation in self._objects

    @property
    def annotations(self) -> list[str]:
        """Every annotation id."""
        return list(self._objects)

    def num_masks(self, annotation: str) -> int:
        """How many masks, absent ones counted, an annotation lists."""
        return self._objects[annotation][1]

    def size(self, annotation: str, position: int) -> tuple[int, int] | None:
        """(H, W) of a mask; None where the object is absent."""
        height, width = self._sizes[self._objects[annotation][0] + position].tolist()
        return (height, width) if height else None

    def decode(self, annotation: str, position: int) -> NDArray[np.uint8] | None:
        """[H, W] of 0 and 1; None where the object is absent."""
        size = self.size(annotation, position)
        if size is None:
            return None
        number = self._objects[annotation][0] + position
        first = int(self._ends[number - 1]) if number else 0
        counts = self._counts[first : int(self._ends[number])].tobytes()
        mask: NDArray[np.uint8] = coco_mask.decode({"size": list(size), "counts": counts})
        return mask


def store_folder(source: Path, cache_dir: Path | None) -> Path:
    """Where the arrays of a mask file are kept."""
    if cache_dir is None:
        return source.with_name(source.name + SUFFIX)
    place = "-".join(source.absolute().parts[-3:])  # dataset, split and name: one cache serves several
    return cache_dir / (place + SUFFIX)


def _is_current(folder: Path, source: Path) -> bool:
    record = folder / "source.json"
    try:
        return bool(json.loads(record.read_text(encoding="utf-8")) == _identity(source))
    except (OSError, ValueError):
        return False


def _identity(source: Path) -> dict[str, Any]:
    status = source.stat()
    return {
        "format": FORMAT, "path": str(source.absolute()), "bytes": status.st_size, "mtime_ns": status.st_mtime_ns
    }  # fmt: skip


def _convert_once(source: Path, folder: Path) -> None:
    """Converts under a lock: of several processes the first does, the others wait for it."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(f".{folder.name}.lock"))
        with lock:
            if _is_current(folder, source):
                return
            identity = _identity(source)
            arrays = _read(source)
            with staged_folder(folder.parent, folder.name) as staging:
                _write(arrays, staging)
                (staging / "source.json").write_text(json.dumps(identity), encoding="utf-8")
                move_over(staging, folder)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); name a folder for converted masks with --cache_dir"
        ) from None


def _write(arrays: "_Arrays", folder: Path) -> None:
    np.save(folder / "counts.npy", np.frombuffer(arrays.counts, np.uint8))
    np.save(folder / "ends.npy", np.array(arrays.ends, np.int64))
    np.save(folder / "sizes.npy", np.array(arrays.sizes, np.int32).reshape(-1, 2))
    (folder / "objects.json").write_text(json.dumps(arrays.objects), encoding="utf-8")


class _Arrays:
    """What is collected while the JSON is read, object by object."""

    def __init__(self) -> None:
        self.counts = bytearray()
        self.ends: list[int] = []
        self.sizes: list[tuple[int, int]] = []
        self.objects: dict[str, tuple[int, int]] = {}

    def add(self, annotation: str, masks: Any, source: Path) -> None:
        if annotation in self.objects:
            raise UserError(f"{source}: not valid JSON (annotation {annotation} stands in it twice); download it again")
        if not isinstance(masks, list):
            raise UserError(f"{source}: annotation {annotation} must list its masks, got {str(masks)[:60]!r}")
        self.objects[annotation] = (len(self.ends), len(masks))
        for position, rle in enumerate(masks):
            if rle is None:
                self.sizes.append((0, 0))
            else:
                try:
                    size, counts = checked_rle(rle)
                except ValueError as error:
                    raise UserError(
                        f"{source}: annotation {annotation}, mask {position}: {error}; download the file again"
                    ) from None
                self.sizes.append(size)
                self.counts += counts
            self.ends.append(len(self.counts))


def _read(source: Path) -> _Arrays:
    """Goes through the JSON object by object: the whole as Python objects would take gigabytes."""
    arrays = _Arrays()
    try:
        text = source.read_text(encoding="utf-8")
        decoder = json.JSONDecoder()
        with tqdm(
            total=len(text), desc=f"convert {source.parent.name}/{source.name}", unit="B", unit_scale=True
        ) as bar:
            position = _expect(text, 0, "{")
            while text[position] != "}" or arrays.objects:
                annotation, position = decoder.raw_decode(text, position)
                position = _expect(text, position, ":")
                masks, position = decoder.raw_decode(text, position)
                arrays.add(str(annotation), masks, source)
                position = _skip(text, position)
                bar.update(position - bar.n)
                if text[position] == "}":
                    break
                position = _expect(text, position, ",")
            if text[position + 1 :].strip():
                raise ValueError("text after its end")
    except UserError:
        raise
    except (ValueError, IndexError, RecursionError) as error:
        raise UserError(f"{source}: not valid JSON ({error}); download the file again") from None
    return arrays


def _expect(text: str, position: int, character: str) -> int:
    """The position of what follows ``character``, which stands next."""
    position = _skip(text, position)
    if text[position] != character:
        raise ValueError(f"'{character}' expected at character {position}")
    return _skip(text, position + 1)


def _skip(text: str, position: int) -> int:
    """The position of the next character that is no white space."""
    while text[position] in " \t\r\n":
        position += 1
    return position
