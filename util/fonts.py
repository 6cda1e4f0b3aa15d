"""Finds fonts of this machine that draw given characters, and loads them."""

import functools
import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from PIL import ImageFont, features

from util.unicode_scripts import is_emoji, script_of, usual_files

# Pillow looks for these in the system's font folders. The first also has Chinese, Japanese and Korean.
DEFAULT_FONTS = ("NotoSansCJK-Regular.ttc", "DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "arial.ttf")
BUNDLED = Path("Aileron")  # stands for the font that comes with Pillow; it has little but ASCII
SUFFIXES = (".ttf", ".ttc", ".otf", ".otc")
BITMAP_SIZES = (109, 136, 160, 128, 96, 64)  # pixels; of fonts that hold images, first that of Noto Color Emoji
TEST_SIZE = 20  # pixels
NO_CHARACTER = "\U0010ffff"  # drawn like every character that a font lacks
BLANK_CATEGORIES = ("Zs", "Cf")  # of characters without a look of their own, such as spaces and joiners
BLANK_SELECTORS = "\ufe0e\ufe0f"
# Fonts with a box for every character, and styles that are taken only where no other font will do.
USELESS = ("lastresort", "adobeblank", "unifont")
ODD_STYLES = ("bold", "italic", "oblique", "black", "light", "thin", "condensed", "mono", "serif", "medium", "math")


@functools.cache
def default_font() -> Path:
    """Returns the font for most texts: the first of ``DEFAULT_FONTS`` that the system has, else ``BUNDLED``."""
    for name in DEFAULT_FONTS:
        try:
            return Path(str(ImageFont.truetype(name, TEST_SIZE).path))
        except OSError:
            continue
    return BUNDLED


@functools.lru_cache(maxsize=256)
def load_font(file: Path, size: int) -> tuple[ImageFont.FreeTypeFont, float]:
    """Loads a font at a size in pixels, or near it, and by how much to scale what it draws to reach that size.

    Raises:
        OSError: if it is not a font that FreeType can read.
    """
    return _loaded(file, size, ImageFont.Layout.RAQM if features.check("raqm") else ImageFont.Layout.BASIC)


def _loaded(file: Path, size: int, layout: ImageFont.Layout) -> tuple[ImageFont.FreeTypeFont, float]:
    if file == BUNDLED:
        font = ImageFont.load_default(size)
        assert isinstance(font, ImageFont.FreeTypeFont)
        return font, 1.0
    # Not ImageFont.truetype, which looks through the system's folders for another file where this one is damaged.
    for candidate in (size, *BITMAP_SIZES):
        try:
            return ImageFont.FreeTypeFont(file, candidate, layout_engine=layout), size / candidate
        except OSError:
            continue
    raise OSError(f"{file}: not a font, or one without any of the sizes {BITMAP_SIZES}")


def font_folders() -> tuple[Path, ...]:
    """Returns the folders in which Linux, macOS and Windows keep fonts, the user's own first; some may not exist."""
    home = Path(os.path.expanduser("~"))  # noqa: PTH111  # Path.home() raises for a user without one
    data_home = os.environ.get("XDG_DATA_HOME") or home / ".local/share"
    data_dirs = (os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share").split(os.pathsep)
    folders = [home / ".fonts", *(Path(folder, "fonts") for folder in (data_home, *data_dirs) if folder)]
    folders += [home / "Library/Fonts", Path("/Library/Fonts"), Path("/System/Library/Fonts")]
    for variable, below in (("LOCALAPPDATA", "Microsoft/Windows/Fonts"), ("WINDIR", "Fonts")):
        if os.environ.get(variable):
            folders.append(Path(os.environ[variable], below))
    return tuple(folders)


def fonts_for(clusters: Iterable[str]) -> dict[str, Path]:
    """Finds a font for each character, given with its marks; leaves out those that no font draws.

    Takes the default font where it will do, and reads the font folders only where it will not. Emoji are taken from
    a font in colour if there is one.
    """
    default = default_font()
    given = frozenset(clusters)
    plain = {cluster for cluster in given if cluster.isascii() or _draws(default, cluster)}
    coloured = {cluster for cluster in given if is_emoji(cluster)}
    if given <= plain - coloured:
        return dict.fromkeys(plain, default)
    return dict.fromkeys(plain, default) | _search(font_folders(), given - plain | coloured, given - plain)


@functools.lru_cache(maxsize=64)
def _search(folders: tuple[Path, ...], clusters: frozenset[str], missing: frozenset[str]) -> dict[str, Path]:
    """Finds a font for each character: first among the usual fonts of its script.

    Args:
        missing: the characters for which all other fonts are tried too.
    """
    files = _font_files(folders)
    found: dict[str, Path] = {}
    for cluster in clusters:
        for name in usual_files(script_of(cluster)):
            file = files.get(name.lower())
            if file and _draws(file, cluster):
                found[cluster] = file
                break
    rest = missing - found.keys()
    for file in files.values():
        if not rest:
            break
        drawn = {cluster for cluster in rest if _draws(file, cluster)}
        found |= dict.fromkeys(drawn, file)
        rest -= drawn
    return found


@functools.lru_cache(maxsize=8)
def _font_files(folders: tuple[Path, ...]) -> dict[str, Path]:
    """Lists the font files in folders and below by their names in lower case, regular styles first."""
    files: dict[str, Path] = {}
    for folder in folders:
        for place, _, names in os.walk(folder):  # passes over what it may not read
            for name in names:
                if name.lower().endswith(SUFFIXES) and not name.lower().startswith(USELESS):
                    files.setdefault(name.lower(), Path(place, name))
    return dict(sorted(files.items(), key=lambda item: (any(style in item[0] for style in ODD_STYLES), item[0])))


def _draws(file: Path, cluster: str) -> bool:
    return all(_draws_character(file, char) for char in cluster if not is_blank(char))


def is_blank(char: str) -> bool:
    """Whether a character has no look of its own."""
    return unicodedata.category(char) in BLANK_CATEGORIES or char in BLANK_SELECTORS


@functools.lru_cache(maxsize=65536)
def _draws_character(file: Path, char: str) -> bool:
    """Whether a font has a character.

    Pillow cannot list the characters of a font. So this compares what the font draws for it with what it draws for a
    character that no font has.
    """
    try:
        look = _look(file, char)
        return any(look[1]) and look != _look(file, NO_CHARACTER)
    except OSError:
        return False


@functools.lru_cache(maxsize=1024)
def _test_font(file: Path) -> ImageFont.FreeTypeFont:
    return _loaded(file, TEST_SIZE, ImageFont.Layout.BASIC)[0]


def _look(file: Path, char: str) -> tuple[tuple[int, int], bytes]:
    mask = _test_font(file).getmask(char)
    return mask.size, bytes(mask)
