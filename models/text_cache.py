"""Caches caption embeddings on disk. Each is computed once, then shared by processes, runs and machines.

An embedding is [256, 4096], but a caption fills about 15 rows; only these are kept. A cache folder has one sub-folder
per text encoder, dtype and length, with these files:

    identity.json       what the embeddings were made with; for people to read
    <hash>.safetensors  ``rows`` [N, D] of up to 512 captions, concatenated; its metadata ``captions`` is a JSON
    object
                        {cleaned caption: number of rows} in the same order
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

from models.text import clean_caption, embed_captions, pad_rows, trim_rows
from util.errors import MissingFileError, UserError
from util.files import write_text_whole
from util.hashes import fingerprint, sha256_of

FORMAT = 1  # version of the files and of how captions are cleaned and embedded; a new number embeds again
SHARD_SIZE = 512  # captions per file; an interruption loses at most the work on so many
BATCH_SIZE = 32

TextLoader: TypeAlias = Callable[[], tuple[UMT5EncoderModel, PreTrainedTokenizerBase]]
_Place: TypeAlias = tuple[Path, int, int]  # file, first row of a caption in it, and end of its rows


class CaptionCache:
    """Caption embeddings that this or any other process added to a folder.

    Opening it reads the captions and their positions, not their embeddings, and writes nothing.

    Args:
        folder: the cache (--text_cache); may be absent, shared, or hold embeddings of other encoders.
        identity: identity of encoder and tokenizer, from ``text_identity``.
        max_length: tokens per caption, and rows of the embeddings that ``lookup`` returns.
        dtype: number format of the encoder that ``add_missing`` loads; the embeddings depend on it.

    Raises:
        UserError: if a file of the cache is damaged.
    """

    def __init__(self, folder: Path, identity: dict[str, str], max_length: int, dtype: torch.dtype) -> None:
        self.max_length = max_length
        self.dtype = dtype
        own = {"format": str(FORMAT), "max_length": str(max_length), "dtype": str(dtype)}
        self._manifest = json.dumps(own | identity, indent=1, sort_keys=True)
        self.folder = folder / hashlib.sha256(self._manifest.encode()).hexdigest()[:16]
        self._places: dict[str, _Place] = {}
        self._shards: set[Path] = set()
        self._read_new_shards()

    def missing(self, captions: Iterable[str]) -> list[str]:
        """Returns the captions that are not in the cache: cleaned, distinct, sorted."""
        return sorted({clean_caption(caption) for caption in captions} - self._places.keys())

    def add_missing(self, captions: Iterable[str], load: TextLoader) -> None:
        """Embeds the captions that are missing. The first process does it; the others wait and find them done.

        Args:
            captions: as the dataset has them; they are cleaned here.
            load: returns the encoder, in ``dtype``, and the tokenizer; called only if something is missing.

        Raises:
            UserError: if the folder cannot be written, or holds a damaged file.
        """
        wanted = self.missing(captions)
        if not wanted:  # the cache may be on a read-only disk
            return
        with self._lock():
            self._read_new_shards()
            missing = self.missing(wanted)
            if not missing:  # another process was faster
                return
            for leftover in self.folder.glob(".*.partial-*"):  # left by a killed process
                leftover.unlink(missing_ok=True)
            write_text_whole(self.folder / "identity.json", self._manifest + "\n")
            self._embed(missing, *load())

    def lookup(self, captions: list[str]) -> Tensor:
        """Reads [B, max_length, D] in the encoder's dtype on the CPU, zero after the last token."""
        return torch.stack([pad_rows(self._read(clean_caption(caption)), self.max_length) for caption in captions])

    def _read(self, caption: str) -> Tensor:
        file, first, end = self._places[caption]
        with _opened(file) as shard:
            return shard.get_slice("rows")[first:end]

    def _lock(self) -> AbstractContextManager[object]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            return FileLock(self.folder / ".lock").acquire()
        except OSError as error:
            raise self._cannot_be_written(error.strerror) from None

    @torch.no_grad()
    def _embed(self, captions: list[str], encoder: UMT5EncoderModel, tokenizer: PreTrainedTokenizerBase) -> None:
        captions = _longest_first(captions, tokenizer)
        with tqdm(total=len(captions), desc="embed captions", unit="caption") as bar:
            for shard in _chunks(captions, SHARD_SIZE):
                rows: list[Tensor] = []
                for batch in _chunks(shard, BATCH_SIZE):
                    padded = embed_captions(encoder, tokenizer, batch, self.max_length, padding="longest")
                    assert padded.dtype == self.dtype, f"the encoder answers in {padded.dtype}, not {self.dtype}"
                    rows += map(trim_rows, padded.cpu())
                    bar.update(len(batch))
                self._write_shard(dict(zip(shard, rows, strict=True)))
                self._read_new_shards()

    def _write_shard(self, rows: dict[str, Tensor]) -> None:
        names = json.dumps({caption: len(own_rows) for caption, own_rows in rows.items()})
        # Named by its captions: if a disk ignores locks, two writers write equal files or different names.
        file = self.folder / f"{hashlib.sha256(names.encode()).hexdigest()[:16]}.safetensors"
        partial = self.folder / f".{file.name}.partial-{os.getpid()}"
        try:
            save_file({"rows": torch.cat(list(rows.values()))}, partial, metadata={"captions": names})
            partial.replace(file)
        except (SafetensorError, OSError) as error:  # SafetensorError if the disk is full
            raise self._cannot_be_written(str(error)) from None
        finally:
            partial.unlink(missing_ok=True)

    def _read_new_shards(self) -> None:
        """Reads the positions of captions in files that appeared since the last call."""
        for file in sorted(set(self.folder.glob("*.safetensors")) - self._shards):
            with _opened(file) as shard:
                num_rows: dict[str, int] = json.loads(shard.metadata()["captions"])
                end = 0
                for caption, count in num_rows.items():
                    first, end = end, end + count
                    self._places[caption] = (file, first, end)
                if shard.get_slice("rows").get_shape()[0] != end:
                    raise ValueError("rows and captions disagree")
            self._shards.add(file)

    def _cannot_be_written(self, reason: str | None) -> UserError:
        return UserError(f"--text_cache {self.folder.parent}: cannot be written ({reason}); make room or name another")


def text_weight_files(wan_folder: Path) -> tuple[Path, ...]:
    """Returns the weight files of the text encoder in a Wan folder: safetensors, or pickles if there are none."""
    encoder = wan_folder / "text_encoder"
    return tuple(sorted(encoder.glob("*.safetensors")) or sorted(encoder.glob("*.bin")))


def text_identity(wan_folder: Path) -> dict[str, str]:
    """Returns what distinguishes text encoder and tokenizer from others, from the files of a Wan folder.

    Configurations and tokenizer are hashed as a whole, weight files by ``util.hashes.fingerprint``: reading 11 GB
    would take
    a minute at every start.

    Raises:
        UserError: if the folder holds no text encoder or no tokenizer.
    """
    encoder, tokenizer = wan_folder / "text_encoder", wan_folder / "tokenizer"
    weights = text_weight_files(wan_folder)
    vocabulary = [file for file in tokenizer.glob("[!.]*") if file.is_file()]
    if not weights or not vocabulary:
        raise MissingFileError(
            f"--wan_path {wan_folder}: text_encoder or tokenizer has no files; download the folder again"
        )
    hashes = {file: sha256_of((file,)) for file in [*encoder.glob("*.json"), *vocabulary]}
    hashes |= {file: fingerprint((file,)) for file in weights}
    return {file.relative_to(wan_folder).as_posix(): value for file, value in hashes.items()}


def _longest_first(captions: list[str], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Sorts captions by number of tokens: little padding, and too little memory shows in the first batch."""
    counts = [len(ids) for chunk in _chunks(captions, SHARD_SIZE) for ids in tokenizer(chunk).input_ids]
    return [caption for _, caption in sorted(zip(counts, captions, strict=True), key=lambda pair: (-pair[0], pair[1]))]


def _chunks(captions: list[str], size: int) -> Iterator[list[str]]:
    return (captions[first : first + size] for first in range(0, len(captions), size))


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """Opens a file of the cache; turns any fault into one line that names the file."""
    try:
        with safe_open(file, framework="pt") as shard:
            yield shard
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file}: damaged or missing ({error}); remove it, and the next start embeds its captions again"
        ) from None
