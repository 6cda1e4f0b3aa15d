"""The sentences of Ref-DAVIS17's two annotators, from their four text files."""

import re
from pathlib import Path

from util.errors import MissingFileError, UserError

# In the order of expression ids: annotator 1 by the first frame and by the full video, then annotator 2.
TEXT_FILES = (
    ("Davis17_annot1.txt", "utf-8-sig"),
    ("Davis17_annot1_full_video.txt", "utf-8-sig"),
    ("Davis17_annot2.txt", "latin-1"),
    ("Davis17_annot2_full_video.txt", "latin-1"),
)
LINE = re.compile(r'(\S+)\s+(\d+)\s+"(.*)"\s*')
# As the text files misspell them, and as DAVIS names its folders.
RENAMED = {"clasic-car": "classic-car", "dog-scale": "dogs-scale", "motor-bike": "motorbike"}

Key = tuple[str, str]  # sequence, object id


def read_sentences(folder: Path) -> dict[str, dict[str, list[str]]]:
    """{sequence: {object id: its four sentences}}; object ids sorted as texts, as expression ids count them.

    Raises:
        UserError: if a file is missing or damaged, or lacks a sentence that another has.
    """
    by_file = [_read_file(folder / name, encoding) for name, encoding in TEXT_FILES]
    keys = sorted(set().union(*by_file))
    for (name, _), sentences in zip(TEXT_FILES, by_file, strict=True):
        for sequence, number in keys:
            if (sequence, number) not in sentences:
                raise UserError(
                    f"{folder / name}: must have a sentence for object {number} of sequence {sequence} as the other "
                    "files of the annotators have, got none; download the files again"
                )
    expressions: dict[str, dict[str, list[str]]] = {}
    for sequence, number in keys:
        expressions.setdefault(sequence, {})[number] = [sentences[sequence, number] for sentences in by_file]
    return expressions


def _read_file(file: Path, encoding: str) -> dict[Key, str]:
    if not file.is_file():
        raise MissingFileError(f"--text_annotations {file.parent}: {file} is missing; give the folder of the texts")
    try:
        text = file.read_bytes().decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file}: must be {encoding} text ({error.reason} at byte {error.start}); download it again"
        ) from None
    sentences: dict[Key, str] = {}
    # Not splitlines: byte 0x85 is an ellipsis of Windows, and as Latin-1 a line end.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        match = LINE.fullmatch(line)
        if match is None:
            raise UserError(
                f'{file}: line {number} must be: sequence object "sentence", got {line.strip()[:60]!r}; '
                "download the file again"
            )
        key = (RENAMED.get(match[1], match[1]), str(int(match[2])))
        if key in sentences:
            raise UserError(
                f"{file}: line {number} must be the only one for object {key[1]} of sequence {key[0]}; remove one"
            )
        sentences[key] = match[3].strip()
    return sentences
