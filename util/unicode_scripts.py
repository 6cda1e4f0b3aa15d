"""Tells the script of a character (its writing system), what people call it, and which fonts usually have it."""

import unicodedata
from collections.abc import Sequence, Set

EMOJI, SYMBOL = "EMOJI", "SYMBOL"  # beside the scripts of Unicode
FIRST_EMOJI, LAST_EMOJI = "\U0001f1e6", "\U0001faff"
COLOUR_SELECTOR = "\ufe0f"  # behind a character that is to look like an emoji

# Files with a script, the best first: Noto, then what comes with macOS, Windows and Linux.
CHINESE_FILES = (
    *("NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "NotoSansSC-Regular.otf", "SourceHanSans-Regular.ttc"),
    *("PingFang.ttc", "Hiragino Sans GB.ttc", "STHeiti Light.ttc", "msyh.ttc", "simsun.ttc"),
    *("wqy-microhei.ttc", "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf", "DroidSansFallback.ttf"),
)
JAPANESE_FILES = ("NotoSansCJKjp-Regular.otf", "YuGothR.ttc", "msgothic.ttc", "ipaexg.ttf", "TakaoGothic.ttf")
KOREAN_FILES = ("NotoSansCJKkr-Regular.otf", "AppleSDGothicNeo.ttc", "malgun.ttf", "NanumGothic.ttf")
FILES = {
    "CJK": CHINESE_FILES,
    "HIRAGANA": (*JAPANESE_FILES, *CHINESE_FILES),
    "KATAKANA": (*JAPANESE_FILES, *CHINESE_FILES),
    "HANGUL": (*KOREAN_FILES, *CHINESE_FILES),
    EMOJI: ("NotoColorEmoji.ttf", "Apple Color Emoji.ttc", "seguiemj.ttf", "Twemoji.ttf", "NotoEmoji-Regular.ttf"),
    SYMBOL: ("NotoSansSymbols-Regular.ttf", "NotoSansSymbols2-Regular.ttf", "Apple Symbols.ttf", "seguisym.ttf"),
    "ARABIC": ("NotoSansArabic-Regular.ttf", "NotoNaskhArabic-Regular.ttf", "GeezaPro.ttc", "segoeui.ttf"),
    "HEBREW": ("NotoSansHebrew-Regular.ttf", "ArialHB.ttc", "segoeui.ttf"),
    "DEVANAGARI": ("NotoSansDevanagari-Regular.ttf", "Kohinoor.ttc", "Nirmala.ttc", "Nirmala.ttf", "mangal.ttf"),
    "THAI": ("NotoSansThai-Regular.ttf", "Thonburi.ttc", "LeelawUI.ttf", "tahoma.ttf"),
}
FILES_WITH_MANY = ("NotoSans-Regular.ttf", "DejaVuSans.ttf", "Arial Unicode.ttf")
NAMES = {"CJK": "Chinese", "HIRAGANA": "Japanese", "KATAKANA": "Japanese", "HANGUL": "Korean", SYMBOL: "symbols"}
NAMES |= {"FULLWIDTH": "wide letters", "MATHEMATICAL": "mathematical letters"}
PACKAGES = dict.fromkeys(("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "FULLWIDTH"), "fonts-noto-cjk")
PACKAGES[EMOJI] = "fonts-noto-color-emoji"


def script_of(cluster: str) -> str:
    """Returns the script of a character and its marks as Unicode's names begin: ``CJK``, ``THAI``, or ``EMOJI``."""
    if is_emoji(cluster):
        return EMOJI
    if unicodedata.category(cluster[0])[0] not in "LMN":
        return SYMBOL
    return unicodedata.name(cluster[0], SYMBOL).split()[0].split("-")[0]


def is_emoji(cluster: str) -> bool:
    """Whether a character and its marks ask to be drawn in colour."""
    return FIRST_EMOJI <= cluster[0] <= LAST_EMOJI or COLOUR_SELECTOR in cluster


def script_name(script: str) -> str:
    """Returns what people call a script, or the language that is written in it."""
    return NAMES.get(script, script.lower() if script == EMOJI else script.title())


def language_of(script: str, scripts: Set[str]) -> str:
    """Returns the name of a script in a text with these scripts: Chinese characters may be part of Japanese."""
    if script == "CJK":
        script = next((other for other in ("HIRAGANA", "KATAKANA", "HANGUL") if other in scripts), script)
    return script_name(script)


def script_package(script: str) -> str:
    """Returns the package of Debian and Ubuntu with a font for a script."""
    return PACKAGES.get(script, "fonts-noto-core")


def usual_files(script: str) -> Sequence[str]:
    """Returns the names of font files that usually have a script, the best first."""
    own = FILES.get(script, (f"NotoSans{script.title()}-Regular.ttf",))
    return (*own, *FILES_WITH_MANY)
