"""A large JSON object, one item at a time."""

import json
from collections.abc import Iterator
from typing import Any


def object_items(text: str) -> Iterator[tuple[str, Any, int]]:
    """Yields (key, value, position after them) of the object that ``text`` holds.

    Raises:
        ValueError: if ``text`` is no JSON, or no object.
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
    """The position of what follows ``character``, which stands next."""
    position = _skip(text, position)
    if not text.startswith(character, position):
        raise ValueError(f"'{character}' expected at character {position}")
    return _skip(text, position + 1)


def _skip(text: str, position: int) -> int:
    """The position of the next character that is no white space."""
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position
