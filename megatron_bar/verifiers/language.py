"""Is a text in a language? By its script, its letters and its most frequent small words.

Meant for a reward: it tells the languages that IFEval asks for from one another and from English in
an answer of a sentence or more. Single words, and languages not listed here, are beyond it.
"""

# ruff: noqa: RUF001 (letters of other scripts that look like Latin ones are the point here)
from __future__ import annotations

import re
import unicodedata

from megatron_bar.runtime.errors import BarError

_SHARE = 0.6  # of the letters must be of the script
_WORD_SHARE = 0.06  # of the words must be small words of the language
# Script as Unicode names it; words or letters that tell it from its neighbours (None: none share
# the script).
_LANGUAGES: dict[str, tuple[str, str | None]] = {
    "ar": ("ARABIC", "في من على إلى أن هذا هذه التي الذي و لا عن كان هو هي مع"),
    "bg": ("CYRILLIC", "и на за се да от е в с не са по като това ще"),
    "bn": ("BENGALI", None),
    "de": ("LATIN", "der die das und ist nicht ein eine mit zu von für auf den ich sie es im"),
    "en": ("LATIN", "the and of to a in is that it for you with on as are this be i not my we "
                    "was have by or from at an your"),
    "es": ("LATIN", "el la los las de y que en un una es no con para por se del su"),
    "fa": ("ARABIC", "از به که در این را با است برای آن یک می و های"),
    "fi": ("LATIN", "ja on ei se että hän oli ovat mutta kun tai joka minä olen ole kuin myös"),
    "fr": ("LATIN", "le la les des et est un une que en pour dans pas du qui ne sur au ce avec"),
    "gu": ("GUJARATI", None),
    "he": ("HEBREW", None),
    "hi": ("DEVANAGARI", "है के में की और का को से हैं यह पर ने नहीं एक भी कि"),
    "it": ("LATIN", "il lo la gli le di e che un una è non con per in del della sono si"),
    "ja": ("HIRAGANA", None),
    "kn": ("KANNADA", None),
    "ko": ("HANGUL", None),
    "mr": ("DEVANAGARI", "आहे आणि च्या या मध्ये आहेत ते हे तो ती मी एक होते नाही साठी त्या"),
    "ne": ("DEVANAGARI", "छ र को मा हो छन् पनि यो लाई गर्न भएको एक छैन हुन्छ"),
    "pa": ("GURMUKHI", None),
    "pt": ("LATIN", "o a os as de e que em um uma é não com para por se do da no na eu"),
    "ru": ("CYRILLIC", "и в не на что я с он как это по но для из у так мы вы она к"),
    "sw": ("LATIN", "na ya wa kwa ni katika la za cha kama hii huo au yake pia kuwa si mimi"),
    "ta": ("TAMIL", None),
    "te": ("TELUGU", None),
    "th": ("THAI", None),
    "ur": ("ARABIC", "ہے کے میں کی اور کا کو سے ہیں یہ پر نے نہیں ایک بھی کہ"),
    "vi": ("LATIN", "là và của có không cho một các trong được với người những này đã tôi để"),
}
# Hardly any other language of the same script has these.
_LETTERS = {"ru": "ыэё", "vi": "ăđơưạảấầẩẫậắằẳẵặẹẻẽếềểễệỉịọỏốồổỗộớờởỡợụủứừửữựỳỵỷỹ", "fa": "پچژگ",
            "ur": "ٹڈڑےہھ"}
# Japanese writes in three scripts; one of them is its own.
_ALSO = {"HIRAGANA": ("KATAKANA", "CJK")}


def is_language(text: str, code: str) -> bool:
    """Whether `text` is in the language with this ISO 639-1 code, as far as rules can tell.

    Raises BarError for a code that isn't listed.
    """
    if code not in _LANGUAGES:
        raise BarError(f"language {code!r} is unknown; there are {', '.join(_LANGUAGES)}")
    script, _ = _LANGUAGES[code]
    letters = [unicodedata.name(letter, "") for letter in text if letter.isalpha()]
    own = [name for name in letters if name.startswith((script, *_ALSO.get(script, ())))]
    if not letters or len(own) < _SHARE * len(letters):
        return False
    rivals = [other for other, (used, _) in _LANGUAGES.items() if used == script]
    if len(rivals) == 1:
        return True
    marks = {other: _small_words(text, other) for other in rivals}
    return marks[code] >= _WORD_SHARE and marks[code] == max(marks.values())


def _small_words(text: str, code: str) -> float:
    """The share of words that are small words of the language, or hold a letter of its own."""
    # Combining vowel signs are no word characters to `re`, so words are what blanks divide.
    words = [word.strip(".,;:!?\"'()[]*#।،؟") for word in text.lower().split()]
    words = [word for word in words if re.search(r"\w", word)]
    known, letters = set(_LANGUAGES[code][1].split()), set(_LETTERS.get(code, ""))
    return sum(word in known or not letters.isdisjoint(word) for word in words) / len(words)
