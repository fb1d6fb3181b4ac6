"""IFEval's verifiable constraints, each a function of the answer and of its settings.

Implemented from the published definitions; where these leave something open, as lm-eval judges it.
What differs is said where it does, and in docs/own-code.md. Each takes time linear in the answer.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Callable
from typing import NewType

from megatron_bar.verifiers.language import is_language, may_be_english

Language = NewType("Language", str)  # the code of a known one


class Relation(enum.Enum):
    """A comparison of a count with a bound. IFEval has the first two, RLVR-IFeval all."""

    AT_LEAST = "at least"
    LESS_THAN = "less than"
    AT_MOST = "at most"
    AROUND = "around"  # within a tenth, and at least one

    def holds(self, count: int, bound: int) -> bool:
        match self:
            case Relation.AT_LEAST:
                return count >= bound
            case Relation.LESS_THAN:
                return count < bound
            case Relation.AT_MOST:
                return count <= bound
            case Relation.AROUND:
                return abs(count - bound) <= max(1, round(bound / 10))


def _has_keywords(text: str, keywords: list[str]) -> bool:
    return all(re.search(re.escape(word), text, re.IGNORECASE) for word in keywords)


def _keyword_frequency(text: str, keyword: str, frequency: int, relation: Relation) -> bool:
    found = re.findall(re.escape(keyword), text, re.IGNORECASE)
    return relation.holds(len(found), frequency)


def _avoids_words(text: str, forbidden_words: list[str]) -> bool:
    return not any(
        re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in forbidden_words
    )


def _letter_frequency(text: str, letter: str, let_frequency: int, let_relation: Relation) -> bool:
    """Of any character: lm-eval knows a to z, and draws another letter in place of a `#`."""
    return let_relation.holds(text.lower().count(letter.lower()), let_frequency)


def _word_count(text: str, relation: Relation, num_words: int) -> bool:
    return relation.holds(len(re.findall(r"\w+", text)), num_words)


def _sentence_count(text: str, relation: Relation, num_sentences: int) -> bool:
    return relation.holds(count_sentences(text), num_sentences)


_SENTENCE_END = re.compile(
    r"(?<![.!?])(?P<stops>[.!?]+)(?P<marks>[\"'\u201d\u2019)\]*_]*)(?=\s|\Z)"
    # In these scripts no blank need follow; a sentence may go on behind what it quotes.
    r"|[\u3002\uff01\uff1f\uff61\u0964\u0965\u061f\u06d4]+(?![\u300d\u300f\u201d\u2019)\uff09]+\w)"
)
_ABBREVIATION = re.compile(
    r"(?:^|[^\w.])(?:mr|mrs|ms|dr|prof|st|jr|sr|inc|vs|etc)\.$", re.IGNORECASE
)
_ABBREVIATED = 6  # characters of the longest of them, with the one before it and the stop
_GOES_ON = re.compile(r"\s+[\"'(\u201c\u2018]*[a-z]")


def count_sentences(text: str) -> int:
    """Sentences end with stops before a blank; not after `Dr.`, nor before a small letter.

    lm-eval asks a splitter that was trained on English and is downloaded: 97 % of counts are equal.
    It doesn't know the stops of other scripts.
    """
    total = end = 0
    for found in _SENTENCE_END.finditer(text):
        if found["stops"] and not found["stops"].strip("."):
            stop = found.start() + 1
            abbreviated = not found["marks"] and _ABBREVIATION.search(
                text[max(0, stop - _ABBREVIATED) : stop]
            )
            if abbreviated or _GOES_ON.match(text, found.end()):
                continue
        total, end = total + 1, found.end()
    return total + (re.search(r"\w", text[end:]) is not None)


def _paragraph_count(text: str, num_paragraphs: int) -> bool:
    """Paragraphs are divided by ***; only the first and the last may be empty."""
    parts = [part.strip() for part in text.split("***")]
    return all(parts[1:-1]) and len(list(filter(None, parts))) == num_paragraphs


def _nth_paragraph_first_word(
    text: str, num_paragraphs: int, nth_paragraph: int, first_word: str
) -> bool:
    """Paragraphs are divided by an empty line. Empty ones aren't counted, but keep their place."""
    parts = [part.strip() for part in text.split("\n\n")]
    count = len(list(filter(None, parts)))
    if count != num_paragraphs or not 1 <= nth_paragraph <= count or not parts[nth_paragraph - 1]:
        return False
    word = parts[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    return re.split(r"[.,?!'\"]", word)[0].lower() == first_word.lower()


def _postscript(text: str, postscript_marker: str) -> bool:
    """Anywhere. The letters of P.S. and P.P.S may be spaced; after P.P.S no full stop is needed."""
    marker = postscript_marker.strip().lower()
    if re.fullmatch(r"(\w\.)+\w?", marker):
        return (
            re.search(
                r"\.\s?".join(map(re.escape, marker.split("."))).removesuffix(r"\s?"), text.lower()
            )
            is not None
        )
    return marker in text.lower()


def _placeholders(text: str, num_placeholders: int) -> bool:
    """From each [ to the next ] on the same line."""
    found = sum("[" in part for line in text.split("\n") for part in line.split("]")[:-1])
    return found >= num_placeholders


_BULLET = re.compile(r"^[^\S\n]*(?:\*[^*].*$|-)", re.MULTILINE)


def _bullets(text: str, num_bullets: int) -> bool:
    return len(_BULLET.findall(text)) == num_bullets


def _stock_reply(text: str) -> bool:
    """To the letter, with other words around it or without."""
    return any(f"My answer is {reply}." in text for reply in ("yes", "no", "maybe"))


def _highlights(text: str, num_highlights: int) -> bool:
    """Between single and between double stars, of which ***three*** are both."""
    found = re.findall(r"\*([^\n*]*)\*", text) + re.findall(r"\*\*([^\n*]*)\*\*", text)
    return sum(bool(part.strip()) for part in found) >= num_highlights


def _sections(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"{re.escape(section_spliter)}\s?\d+", text)) >= num_sections


def _is_json(text: str) -> bool:
    text = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```"))
    except (ValueError, RecursionError):
        return False
    return True


def _title(text: str) -> bool:
    for line in text.split("\n"):
        _, opened, rest = line.partition("<<")
        title, closed, _ = rest.rpartition(">>")
        if opened and closed and title.strip(" <>"):
            return True
    return False


def _two_responses(text: str) -> bool:
    """Divided by ******, and different."""
    parts = [part.strip() for part in text.split("******")]
    answers = list(filter(None, parts))
    return all(parts[1:-1]) and len(answers) == 2 and answers[0] != answers[1]


def _repeats_prompt(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _ends_with(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _quoted(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


_WORD_END = re.compile(r"[\s\"\u201c\u201d?!;@#$%&()\[\]{}<>]+|--+|[,:](?!\d)|\.\.+")
_CONTRACTED = re.compile(r"(?<=\w)(n't|'(?:s|m|d|ll|re|ve))\b", re.IGNORECASE)


def _capital_words(text: str, capital_relation: Relation, capital_frequency: int) -> bool:
    """As nltk divides words: IT'S is two, WELL-KNOWN one."""
    words = _WORD_END.split(_CONTRACTED.sub(r" \1", text))
    return capital_relation.holds(sum(map(str.isupper, words)), capital_frequency)


def _no_comma(text: str) -> bool:
    return "," not in text


def _english_capital(text: str) -> bool:
    return text.isupper() and may_be_english(text)


def _english_lowercase(text: str) -> bool:
    return text.islower() and may_be_english(text)


def _in_language(text: str, language: Language) -> bool:
    return is_language(text, language)


CONSTRAINTS: dict[str, Callable[..., bool]] = {
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": _english_capital,
    "change_case:english_lowercase": _english_lowercase,
    "combination:repeat_prompt": _repeats_prompt,
    "combination:two_responses": _two_responses,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:constrained_response": _stock_reply,
    "detectable_format:json_format": _is_json,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:title": _title,
    "keywords:existence": _has_keywords,
    "keywords:forbidden_words": _avoids_words,
    "keywords:frequency": _keyword_frequency,
    "keywords:letter_frequency": _letter_frequency,
    "language:response_language": _in_language,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph_first_word,
    "length_constraints:number_paragraphs": _paragraph_count,
    "length_constraints:number_sentences": _sentence_count,
    "length_constraints:number_words": _word_count,
    "punctuation:no_comma": _no_comma,
    "startend:end_checker": _ends_with,
    "startend:quotation": _quoted,
}
