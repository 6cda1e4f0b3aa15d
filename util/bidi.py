"""Orders the runs of a line that mixes text from left to right with text from right to left."""

import itertools
import unicodedata
from collections.abc import Hashable, Sequence
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)

RIGHT_TO_LEFT = ("R", "AL")
NUMBERS = ("EN", "AN")
BETWEEN_NUMBERS = ("CS", "ES")  # the point in 3.5


def visual_runs(clusters: Sequence[str], keys: Sequence[Key]) -> list[tuple[str, Key, bool]]:
    """Cuts a line into runs of one direction and one key each, and lists them as they stand from left to right.

    A short form of the bidirectional algorithm of Unicode, without embeddings: it serves one line.

    Args:
        clusters: characters with their marks, in the order of reading.
        keys: a property of each, such as its font; runs end where it changes.

    Returns:
        Triples of text, in the order of reading, its key, and whether it runs from right to left.
    """
    levels = _levels(clusters)
    runs = [
        (level, "".join(cluster for cluster, *_ in members), key)
        for (level, key), members in itertools.groupby(zip(clusters, levels, keys, strict=True), key=lambda it: it[1:])
    ]
    for level in range(max(levels, default=0), 0, -1):
        runs = _reversed_from(runs, level)
    return [(text, key, level % 2 == 1) for level, text, key in runs]


def _levels(clusters: Sequence[str]) -> list[int]:
    """Returns the depth of each cluster: even runs to the right, odd to the left."""
    kinds = [_kind(cluster) for cluster in clusters]
    strong = [kind for kind in kinds if kind in "LR"]
    if "R" not in strong:
        return [0] * len(clusters)
    base = strong[0]
    kinds = _with_numbers(kinds, base)
    levels = []
    for index, kind in enumerate(kinds):
        resolved = kind
        if kind == " ":
            before = next((other for other in reversed(kinds[:index]) if other != " "), base)
            after = next((other for other in kinds[index:] if other != " "), base)
            sides = {"R" if side == "N" else side for side in (before, after)}
            resolved = sides.pop() if len(sides) == 1 else base
        levels.append({"R": 1, "N": 2, "L": 0 if base == "L" else 2}[resolved])
    return levels


def _kind(cluster: str) -> str:
    """Returns L or R for letters, N for digits, a point for what may stand between digits, a space for the rest."""
    kind = unicodedata.bidirectional(cluster[0])
    if kind in BETWEEN_NUMBERS:
        return "."
    return "R" if kind in RIGHT_TO_LEFT else "N" if kind in NUMBERS else "L" if kind == "L" else " "


def _with_numbers(kinds: Sequence[str], base: str) -> list[str]:
    """Joins points between digits to their number; numbers behind letters to the right are like such letters."""
    result: list[str] = []
    strong = base
    for index, kind in enumerate(kinds):
        is_inside = kind == "." and 0 < index < len(kinds) - 1 and kinds[index - 1] == kinds[index + 1] == "N"
        strong = kind if kind in "LR" else strong
        result.append({"N": "N" if strong == "R" else "L", ".": " "}.get("N" if is_inside else kind, kind))
    return result


def _reversed_from(runs: list[tuple[int, str, Key]], level: int) -> list[tuple[int, str, Key]]:
    """Reverses the order of neighbours at ``level`` or deeper."""
    result: list[tuple[int, str, Key]] = []
    for is_deep, group in itertools.groupby(runs, key=lambda run: run[0] >= level):
        members = list(group)
        result += reversed(members) if is_deep else members
    return result
