"""Is a text in a language? By CLD2, the detector of Chromium, whose tables come with its wheel.

Chosen over langdetect, which lm-eval's IFEval asks: that one draws at random, takes 30 times as
long, and takes a few words in capitals for any language (docs/own-code.md).
"""

from __future__ import annotations

import re

import pycld2

from megatron_bar.runtime.errors import BarError

# Other names of a language, or of one of its scripts: what CLD2 calls it.
_NAMES = {
    "he": ("iw",),
    "jv": ("jw",),
    "nb": ("no",),
    "fil": ("tl",),
    "zh": ("zh", "zh-Hant"),
    "zh-cn": ("zh",),
    "zh-hans": ("zh",),
    "zh-tw": ("zh-Hant",),
    "zh-hant": ("zh-Hant",),
}
_CODES = {code for name, code in pycld2.LANGUAGES if name in pycld2.DETECTED_LANGUAGES}
_UNKNOWN = "un"
# Control characters and halves of characters, which it refuses.
_NO_TEXT = re.compile(
    "[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufdcf\ufdf0-\ufffd\U00010000-\U0010fffd]"
)


def known_language(code: str) -> str:
    """The code itself. Raises BarError for one that no text can be found to be in."""
    if code.lower() not in {*_NAMES, *_CODES}:
        raise BarError(
            f"language {code!r} is unknown; there are {', '.join(sorted({*_CODES, *_NAMES}))}"
        )
    return code


def is_language(text: str, code: str) -> bool:
    """Whether most of `text` is in the language with this ISO 639-1 code; zh is in either script.

    False for a text without words. A single word may be taken for another language's.
    """
    return _detected(text, bestEffort=True) in _NAMES.get(code.lower(), (code.lower(),))


def may_be_english(text: str) -> bool:
    """Whether nothing speaks for another language: names and a few words tell none."""
    return _detected(text, hintLanguage="en") in ("en", _UNKNOWN)


def _detected(text: str, **how: object) -> str:
    try:
        return pycld2.detect(_NO_TEXT.sub(" ", text), isPlainText=True, **how)[2][0][1]
    except pycld2.error:
        return _UNKNOWN
