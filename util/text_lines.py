"""Measures and draws lines of text in any script, each character in a font that has it."""

import bisect
import logging
import math
import unicodedata
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from util.bidi import visual_runs
from util.fonts import default_font, fonts_for, is_blank, load_font
from util.unicode_scripts import EMOJI, SYMBOL, is_emoji, language_of, script_name, script_of, script_package

logger = logging.getLogger(__name__)

ELLIPSIS = "…"
FIRST_FLAG_HALF, LAST_FLAG_HALF = "\U0001f1e6", "\U0001f1ff"  # stand for A to Z; two make a flag
JOINER = "\u200d"  # makes one emoji of two
# Marks that the order of a line is found without, and characters that have no look.
DROPPED = frozenset("\u00ad\u061c\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff")
WHITE = (255, 255, 255)


@dataclass(frozen=True)
class Run:
    """Neighbours on a line that have the same font and direction; the text is in the order of reading."""

    text: str
    file: Path
    is_leftwards: bool
    is_coloured: bool  # images, as of emoji


class Panel:
    """A black image, and where it must hide what lies below: under emoji, but not between letters."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width, height))
        self.opaque = Image.new("L", (width, height))


class Writer:
    """Measures and draws the given lines, shortened or not, at any size.

    What no font draws is replaced by something readable, such as ``[Chinese]`` or the name of an emoji, and one
    warning says what to install.

    Attributes:
        lines: the texts as they will be drawn.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        lines = [_printable(text) for text in texts]
        clusters = {cluster for line in lines for cluster in _clusters(line)}
        self._files = fonts_for(clusters)
        missing = clusters - self._files.keys()
        if missing:
            _warn_of(missing)
            lines = [_without(line, missing) for line in lines]
        self._files |= fonts_for({cluster for line in [*lines, ELLIPSIS] for cluster in _clusters(line)})
        self.lines = lines
        self._widths: dict[tuple[str, int], float] = {}

    def width(self, line: str, size: int) -> float:
        """Returns the width in pixels of a line at a font size in pixels."""
        if (line, size) not in self._widths:
            self._widths[line, size] = sum(self._run_width(run, size) for run in self._runs(line))
        return self._widths[line, size]

    def shortened(self, line: str, size: int, room: float) -> str:
        """Cuts a line with an ellipsis if it is wider than ``room`` pixels; at the least the ellipsis is left."""
        if self.width(line, size) <= room:
            return line
        clusters = _clusters(line)

        def cut(count: int) -> str:
            return "".join(clusters[:count]).rstrip() + ELLIPSIS

        count = bisect.bisect_right(range(len(clusters)), room, key=lambda count: self.width(cut(count), size)) - 1
        while count > 0 and self.width(cut(count), size) > room:  # letters that join may take less room than fewer
            count -= 1
        return cut(max(0, count))

    def draw(self, line: str, size: int, panel: Panel, left: int, middle: int) -> None:
        """Draws a line at a font size in pixels, in white, or in the colours that an emoji has.

        Args:
            left, middle: where the line begins and the height of its middle, in pixels.
        """
        place = float(left)
        ascent, descent = load_font(default_font(), size)[0].getmetrics()
        baseline = middle + round((ascent - descent) / 2)
        for run in self._runs(line):
            if run.is_coloured:
                _paste(panel, run, size, round(place), baseline)
            else:
                font = load_font(run.file, size)[0]
                anchor, height = ("lm", middle) if run.file == default_font() else ("ls", baseline)
                ImageDraw.Draw(panel.image).text(
                    (place, height), _shaped(run, font), WHITE, font, anchor, direction=_direction(run, font)
                )
            place += self._run_width(run, size)

    def _runs(self, line: str) -> list[Run]:
        clusters = _clusters(line)
        runs = visual_runs(clusters, self._looks(clusters))
        return [Run(text, file, is_leftwards, is_coloured) for text, (file, is_coloured), is_leftwards in runs]

    def _looks(self, clusters: Sequence[str]) -> list[tuple[Path, bool]]:
        """Returns the font of each character and whether it is coloured; a space between two words goes with them."""
        default = default_font()
        looks = [
            (file, file != default and (is_emoji(cluster) or load_font(file, 1)[1] != 1))
            for cluster, file in ((cluster, self._files.get(cluster, default)) for cluster in clusters)
        ]
        for index in range(1, len(looks) - 1):
            if is_blank(clusters[index][0]) and looks[index - 1] == looks[index + 1] and not looks[index - 1][1]:
                looks[index] = looks[index - 1]
        return looks

    def _run_width(self, run: Run, size: int) -> float:
        font, scale = load_font(run.file, size)
        return scale * font.getlength(_shaped(run, font), direction=_direction(run, font))


def _printable(text: str) -> str:
    """Returns a text on one line, without what cannot be drawn; letters and marks that can be one character are."""
    text = "".join(char for char in " ".join(text.split()) if unicodedata.category(char) != "Cc")
    text = "".join("?" if unicodedata.category(char) == "Cs" else char for char in text if char not in DROPPED)
    return unicodedata.normalize("NFC", text)


def _clusters(text: str) -> list[str]:
    """Cuts a text into characters, each with its marks; a flag or a group of joined emoji is one."""
    clusters: list[str] = []
    for char in text:
        if clusters and (_is_added(char) or clusters[-1].endswith(JOINER) or _completes_flag(clusters[-1], char)):
            clusters[-1] += char
        else:
            clusters.append(char)
    return clusters


def _is_added(char: str) -> bool:
    is_tone_or_tag = "\U0001f3fb" <= char <= "\U0001f3ff" or "\U000e0020" <= char <= "\U000e007f"
    return is_tone_or_tag or unicodedata.category(char)[0] == "M" or (is_blank(char) and not char.isspace())


def _completes_flag(cluster: str, char: str) -> bool:
    return len(cluster) == 1 and _is_flag_half(cluster) and _is_flag_half(char)


def _is_flag_half(char: str) -> bool:
    return FIRST_FLAG_HALF <= char <= LAST_FLAG_HALF


def _without(line: str, missing: set[str]) -> str:
    """Replaces what no font draws: by a simpler form of it, its language in brackets or, of symbols, its name."""
    clusters = _clusters(line)
    scripts = {script_of(cluster) for cluster in clusters}
    words: list[str] = []
    for cluster in clusters:
        word = _stand_in(cluster, scripts) if cluster in missing else cluster
        last = next((other for other in reversed(words) if not other.isspace()), "")
        if word != last or not word.startswith("["):  # a sentence becomes one word
            words.append(word)
    return " ".join("".join(words).split())


def _stand_in(cluster: str, scripts: Set[str]) -> str:
    simple = "".join(char for char in unicodedata.normalize("NFKD", cluster) if unicodedata.category(char)[0] != "M")
    if simple and len(fonts_for(set(simple))) == len(set(simple)):
        return simple
    script = script_of(cluster)
    if script not in (EMOJI, SYMBOL):
        return f"[{language_of(script, scripts)}]"
    if _is_flag_half(cluster[0]):
        return "[" + "".join(chr(ord(half) - ord(FIRST_FLAG_HALF) + ord("A")) for half in cluster[:2]) + "]"
    name = unicodedata.name(cluster[0], "").lower()
    return "?" if not name else " " if unicodedata.category(cluster[0])[0] == "P" else f"[{name}]"


def _warn_of(missing: Iterable[str]) -> None:
    scripts = {script_of(cluster) for cluster in missing}
    names = ", ".join(sorted({script_name(script) for script in scripts}))
    packages = " ".join(sorted({script_package(script) for script in scripts}))
    logger.warning(
        "legend: no font of this machine has these characters of the prompts: %s; words in brackets stand for them; "
        "install a font that has them, for instance: apt install %s",
        names,
        packages,
    )


def _shaped(run: Run, font: ImageFont.FreeTypeFont) -> str:
    """Returns the text as Pillow wants it: in the order of reading if it shapes letters, else from left to right."""
    if font.layout_engine == ImageFont.Layout.RAQM:
        return run.text
    clusters = [
        "".join(char for char in cluster if char == " " or not is_blank(char)) for cluster in _clusters(run.text)
    ]
    return "".join(reversed(clusters) if run.is_leftwards else clusters)


def _direction(run: Run, font: ImageFont.FreeTypeFont) -> str | None:
    if font.layout_engine != ImageFont.Layout.RAQM:
        return None
    return "rtl" if run.is_leftwards else "ltr"


def _paste(panel: Panel, run: Run, size: int, left: int, baseline: int) -> None:
    """Draws a run of a font in colours, which may hold images of one size only."""
    font, scale = load_font(run.file, size)
    ascent, descent = font.getmetrics()
    length = font.getlength(_shaped(run, font), direction=_direction(run, font))
    drawn = Image.new("RGBA", (math.ceil(length) + 1, ascent + descent))
    ImageDraw.Draw(drawn).text(
        (0, ascent), _shaped(run, font), WHITE, font, "ls", direction=_direction(run, font), embedded_color=True
    )
    if scale != 1:
        drawn = drawn.resize((max(1, round(scale * drawn.width)), max(1, round(scale * drawn.height))))
    place = (left, baseline - round(scale * ascent))
    panel.image.paste(drawn, place, drawn)
    panel.opaque.paste(255, (*place, place[0] + drawn.width, place[1] + drawn.height), drawn)
