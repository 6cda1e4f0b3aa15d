"""Stores MeViS's ``mask_dict.json`` as flat files, which processes read instead of holding it in memory.

The JSON of the real training split is hundreds of megabytes of text, and gigabytes of Python objects in every loader
process. It is converted once to a folder:

    counts.bin    every compressed COCO RLE, concatenated
    ends.npy      [M] end of each; an absent mask has no bytes
    sizes.npy     [M, 2] (H, W) of each; zeros if absent
    objects.json  annotation id -> [first mask, number of masks]
    source.json   size and time of the source file
"""

import glob
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from tqdm import tqdm

from datasets.annotations import DuplicateKeyError
from util.errors import UserError
from util.files import move_over, read_text, staged_folder
from util.rle import checked_rle, run_lengths

SUFFIX = ".store"
MANY_RUNS = 2000  # from about here on a loop over runs takes longer than writing every pixel of a 480 x 854 mask
FORMAT = 2  # version of the folder; another number converts again


class MaskStore:
    """The masks of every annotation of a split.

    Args:
        source: ``mask_dict.json``: {annotation id: [compressed RLE or null, one per frame]}.
        cache_dir: folder of the converted files; None is beside ``source``.

    Raises:
        UserError: if ``source`` is damaged, or the files cannot be written.
    """

    def __init__(self, source: Path, cache_dir: Path | None = None) -> None:
        self.source = source
        folder = store_folder(source, cache_dir)
        if not _is_current(folder, source):
            _convert_once(source, folder)
        try:
            self._counts = folder / "counts.bin"
            self._ends = np.load(folder / "ends.npy", mmap_mode="r")
            self._sizes = np.load(folder / "sizes.npy", mmap_mode="r")
            self._objects: dict[str, list[int]] = json.loads(read_text(folder / "objects.json"))
            if self._counts.stat().st_size != (self._ends[-1] if len(self._ends) else 0):
                raise ValueError(f"{self._counts.name} has another length")
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{folder}: the converted masks are damaged ({error}); remove the folder") from None

    def __contains__(self, annotation: str) -> bool:
        return annotation in self._objects

    @property
    def annotations(self) -> list[str]:
        """Every annotation id."""
        return list(self._objects)

    def num_masks(self, annotation: str) -> int:
        """Returns the number of masks of an annotation, absent ones included."""
        return self._objects[annotation][1]

    def size(self, annotation: str, position: int) -> tuple[int, int] | None:
        """Returns (H, W) of a mask; None if the object is absent."""
        height, width = self._sizes[self._objects[annotation][0] + position].tolist()
        return (height, width) if height else None

    def paint(self, annotation: str, position: int, columns: NDArray[np.uint8]) -> None:
        """Sets the pixels of an object to 1; sets none where it is absent.

        Run by run this takes a fifth of pycocotools' decode, which writes every pixel, and it unites several objects.
        A mask of many runs is written as a whole: there a loop over runs takes ten times as long.

        Args:
            columns: [W, H] contiguous: the transposed mask, in the order of run lengths.
        """
        number = self._objects[annotation][0] + position
        first = int(self._ends[number - 1]) if number else 0
        counts = self._read_counts(first, int(self._ends[number]))
        if not counts:
            return
        lengths = run_lengths(counts)
        pixels = columns.reshape(-1)
        if len(lengths) > MANY_RUNS:
            values = np.zeros(len(lengths), np.uint8)
            values[1::2] = 1  # runs alternate, background first
            pixels |= np.repeat(values, lengths)
            return
        ends = np.cumsum(lengths).tolist()
        for start, end in zip(ends[0::2], ends[1::2], strict=False):  # background may come last
            pixels[start:end] = 1

    def _read_counts(self, first: int, end: int) -> bytes:
        # Read, not mapped: mapped pages count as the worker's memory, up to the whole file.
        with self._counts.open("rb", buffering=0) as file:
            file.seek(first)
            return file.read(end - first)


def store_folder(source: Path, cache_dir: Path | None) -> Path:
    """Returns the folder of the converted files of a mask file."""
    if cache_dir is None:
        return source.with_name(source.name + SUFFIX)
    place = "-".join(source.absolute().parts[-3:])  # dataset, split and name: datasets may share a cache
    return cache_dir / (place + SUFFIX)


def _is_current(folder: Path, source: Path) -> bool:
    record = folder / "source.json"
    try:
        return bool(json.loads(read_text(record)) == _identity(source))
    except (OSError, ValueError):
        return False


def _identity(source: Path) -> dict[str, Any]:
    status = source.stat()
    return {
        "format": FORMAT, "path": str(source.absolute()), "bytes": status.st_size, "mtime_ns": status.st_mtime_ns
    }  # fmt: skip


def _convert_once(source: Path, folder: Path) -> None:
    """Converts under a lock: the first process does it, the others wait."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(f".{folder.name}.lock"))
        with lock:
            if _is_current(folder, source):
                return
            for leftover in folder.parent.glob(f".{glob.escape(folder.name)}.partial-*"):  # left by a killed process
                shutil.rmtree(leftover, ignore_errors=True)
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
    (folder / "counts.bin").write_bytes(arrays.counts)
    np.save(folder / "ends.npy", np.array(arrays.ends, np.int64))
    np.save(folder / "sizes.npy", np.array(arrays.sizes, np.int32).reshape(-1, 2))
    (folder / "objects.json").write_text(json.dumps(arrays.objects), encoding="utf-8")


class _Arrays:
    """Collects masks while the JSON is read, object by object."""

    def __init__(self) -> None:
        self.counts = bytearray()
        self.ends: list[int] = []
        self.sizes: list[tuple[int, int]] = []
        self.objects: dict[str, tuple[int, int]] = {}

    def add(self, annotation: str, masks: Any, source: Path) -> None:
        if annotation in self.objects:
            raise DuplicateKeyError(
                f"{source}: not valid JSON (annotation {annotation} stands in it twice); download it again"
            )
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
    """Reads the JSON object by object: as a whole its Python objects would take gigabytes."""
    arrays = _Arrays()
    try:
        text = read_text(source)
        title = f"convert {source.parent.name}/{source.name}"
        with tqdm(total=len(text), desc=title, unit="B", unit_scale=True) as bar:
            for annotation, masks, position in object_items(text):
                arrays.add(annotation, masks, source)
                bar.update(position - bar.n)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror}); check its permissions and its disk") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source}: not valid JSON ({error}); download the file again") from None
    return arrays


def object_items(text: str) -> Iterator[tuple[str, Any, int]]:
    """Yields (key, value, position after them) of the JSON object in ``text``.

    Raises:
        ValueError: if ``text`` is not JSON, or not an object.
        RecursionError: if a value is nested too deeply.
    """
    decoder = json.JSONDecoder()
    position = _expect(text, 0, "{")
    is_first = True
    while not (is_first and text.startswith("}", position)):
        key, position = decoder.raw_decode(text, position)
        if not isinstance(key, str):
            raise ValueError(f"a key is {str(key)[:60]!r}, no text")
        value, position = decoder.raw_decode(text, _expect(text, position, ":"))
        position = _skip(text, position)
        yield key, value, position
        is_first = False
        if text.startswith("}", position):
            break
        position = _expect(text, position, ",")
    if _expect(text, position, "}") != len(text):
        raise ValueError("text after its end")


def _expect(text: str, position: int, character: str) -> int:
    """Returns the position after ``character``, which must be next."""
    position = _skip(text, position)
    if not text.startswith(character, position):
        raise ValueError(f"'{character}' expected at character {position}")
    return _skip(text, position + 1)


def _skip(text: str, position: int) -> int:
    """Returns the position of the next character that is not white space."""
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position
