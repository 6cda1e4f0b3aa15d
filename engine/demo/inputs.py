"""What ``--input_path`` names: a video, images, several of them, a folder of videos, or a list with sentences."""

import csv
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.demo.names import is_overlay
from models.text import clean_captions
from util.errors import MissingFileError, UserError, did_you_mean
from util.files import read_text
from util.frames import VIDEO_SUFFIXES, is_image, is_video, natural_order, result_name
from util.images import IMAGE_SUFFIXES

LIST_SUFFIXES = (".csv", ".jsonl")
COLUMNS = ("video", "sentence")
# One word of these alone describes no object: quotes around a sentence were forgotten.
NO_OBJECTS = {
    *("a", "an", "the", "of", "on", "in", "at", "to", "by", "with", "and", "or", "from", "that", "which", "who"),
    *("is", "are", "it", "its", "his", "her", "their", "this"),
}


@dataclass(frozen=True)
class Job:
    """A video, or images, and the prompts to segment in it."""

    path: Path
    prompts: list[str]

    @property
    def name(self) -> str:
        """The name of the results, see ``util.frames.result_name``."""
        return result_name(self.path)


def list_jobs(inputs: list[str], prompts: list[str] | None) -> list[Job]:
    """Lists what to segment, without opening any video.

    Args:
        inputs: values of ``--input_path``: video files, images, folders of images, folders of videos, or CSV and JSONL
            files of ``video`` (relative to the list) and ``sentence``.
        prompts: values of ``--text_prompts``; for lists None, since they have sentences of their own.

    Raises:
        UserError: if an input does not exist or is none of these, prompts are missing, or two inputs share a name.
    """
    lists = [Path(one) for one in inputs if Path(one).suffix.lower() in LIST_SUFFIXES]
    if lists and prompts is not None:
        raise UserError(f"--text_prompts: {lists[0]} has its own sentences; leave --text_prompts out")
    if not lists and prompts is None:
        raise UserError('--text_prompts: missing; give one or more sentences in quotes, as "the dog on the left"')
    if prompts is not None:
        prompts = [_as_utf8(prompt) for prompt in prompts]
        check_quotes(prompts)
        clean_captions(prompts)
    jobs = []
    for one in inputs:
        if Path(one) in lists:
            jobs += list(_read_list(Path(one)))
        else:
            assert prompts is not None, "checked above"
            jobs += [Job(path, prompts) for path in _videos_of(Path(one))]
    names: dict[str, Job] = {}
    for job in jobs:
        other = names.setdefault(job.name, job)
        if other is not job and other.path == job.path:
            raise UserError(f"--input_path {job.path}: is given twice; give it once")
        if other is not job:
            raise UserError(
                f"--input_path: {other.path} and {job.path} would both write the result {job.name!r}; rename one, or "
                "segment them in two runs with another --output_dir"
            )
    return jobs


def check_quotes(prompts: list[str]) -> None:
    """Refuses ``--text_prompts the red ball``, which a shell passes on as three prompts.

    Raises:
        UserError: if one of several prompts is an article or a preposition alone.
    """
    if len(prompts) > 1 and all(" " not in prompt.strip() for prompt in prompts):
        alone = [prompt for prompt in prompts if prompt.lower() in NO_OBJECTS]
        if alone:
            raise UserError(
                f"--text_prompts: got {len(prompts)} prompts of one word, among them {alone[0]!r}, which describes no "
                f'object; put a sentence in quotes: --text_prompts "{" ".join(prompts)}"'
            )


def _as_utf8(prompt: str) -> str:
    """Reads a prompt as UTF-8 where Python, told by LC_ALL=C, took the terminal for one without."""
    try:
        return os.fsencode(prompt).decode()
    except UnicodeError:
        return prompt


def _videos_of(path: Path) -> list[Path]:
    """Returns the path itself, or the videos in a folder of videos."""
    if not path.exists():
        raise MissingFileError(
            f"--input_path {path}: no such file or folder; give a video, images, a folder of them, or a list"
        )
    if not path.is_dir():
        return [path]
    files = sorted(path.iterdir(), key=natural_order)
    images = [file for file in files if is_image(file)]
    videos = [file for file in files if is_video(file) and not is_overlay(file)]
    if images and videos:
        raise UserError(
            f"--input_path {path}: holds images ({images[0].name}) and videos ({videos[0].name}); give a folder of one "
            "kind, or the videos themselves"
        )
    if not images and not videos:
        folders = sum(file.is_dir() for file in files)
        also = f"; it holds {folders} folders: give them one by one, or as {path}/*" if folders else ""
        raise UserError(
            f"--input_path {path}: holds no images ({', '.join(IMAGE_SUFFIXES)}) and no videos "
            f"({', '.join(VIDEO_SUFFIXES)}){also}"
        )
    return videos or [path]


def _read_list(file: Path) -> Iterator[Job]:
    """Yields one job per video of a list, with all its sentences, in the order of their first rows."""
    if not file.is_file():
        raise MissingFileError(f"--input_path {file}: no such file; give a list with the columns {', '.join(COLUMNS)}")
    prompts: dict[Path, list[str]] = {}
    for place, video, sentence in _rows(file):
        if not video:
            raise UserError(f"{place}: 'video' must not be empty; write the path of a video or remove the row")
        path = Path(os.path.abspath(file.parent / video))  # noqa: PTH100, a link keeps its own name
        if not path.exists():
            raise MissingFileError(f"{place}: no such video: {path}; write its path relative to the folder of the list")
        if not sentence.strip():
            raise UserError(f"{place}: 'sentence' must not be empty; write it or remove the row")
        prompts.setdefault(path, []).append(sentence.strip())
    if not prompts:
        raise UserError(f"{file}: must hold a video and a sentence per row, got none")
    for path, sentences in prompts.items():
        clean_captions(sentences)
        yield Job(path, sentences)


def _rows(file: Path) -> Iterator[tuple[str, str, str]]:
    """Yields (place for errors, video, sentence) of each row."""
    try:
        text = read_text(file)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file}: must be UTF-8 text, got the byte 0x{error.object[error.start]:02x}; save it as UTF-8 (UTF-16 is "
            "another format)"
        ) from None
    if file.suffix.lower() == ".csv":
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            _check_columns(header, file)
            for number, cells in enumerate(reader, start=2):
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) != len(header):
                    raise UserError(
                        f"{file}: row {number} must have {len(header)} cells, got {len(cells)}; put a sentence with a "
                        "comma in double quotes"
                    )
                row = dict(zip(header, cells, strict=True))
                yield f"{file}: row {number}", row["video"].strip(), row["sentence"]
        except csv.Error as error:
            raise UserError(
                f"{file}: must be CSV ({error}); close every quote, and double one inside a quote"
            ) from None
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{file}: line {number} is not valid JSON ({error}); write one object per line") from None
        if not isinstance(entry, dict) or not all(isinstance(entry.get(name), str) for name in COLUMNS):
            raise UserError(f'{file}: line {number} must be {{"video": "...", "sentence": "..."}}, got {line[:60]}')
        yield f"{file}: line {number}", entry["video"], entry["sentence"]


def _check_columns(header: list[str], file: Path) -> None:
    for name in COLUMNS:
        if name not in header:
            raise UserError(
                f"{file}: row 1 must name the columns {', '.join(COLUMNS)}, separated by commas, got "
                f"{', '.join(header) or 'nothing'}{did_you_mean(name, header)}"
            )
