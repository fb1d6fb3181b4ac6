"""Instruction following: IFEval's verifiable constraints, strictly: all of them, or nothing.

The reference has IFEval's fields: `instruction_id_list`, and `kwargs` with the settings of each.
Implemented from the published definitions, with two rules of our own where the original leans on
trained models: how sentences end (`count_sentences`) and what language an answer is in
(language.py). lm-eval's takes 9 times as long and needs a download; all but 0.3 % of judgements are
the same (docs/own-code.md).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from megatron_bar.runtime.errors import BarError
from megatron_bar.verifiers.language import is_language
from megatron_bar.verifiers.reference import structured

_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "at least": lambda count, bound: count >= bound,
    "less than": lambda count, bound: count < bound,
}
_STOCK_REPLIES = ("my answer is yes.", "my answer is no.", "my answer is maybe.")
# Of a longer answer none is followed: it's a loop, and judging it takes more than linear time.
_LONGEST = 20_000
_SENTENCE_END = re.compile(r"(?<![.!?])[.!?]+[\"')\]]*(?=\s|$)")
# A full stop after one of these ends no sentence, and none after a single letter either.
_ABBREVIATION = re.compile(r"\b(?:mr|mrs|ms|dr|prof|st|vs|etc|jr|sr|inc|e\.g|i\.e|[a-z])\.$",
                           re.IGNORECASE)


def score(prompt: str, response: str, reference: Any) -> float:
    """1 if the response follows every instruction of the reference, else 0.

    Raises BarError for a reference of another shape or an instruction that isn't known.
    """
    return float(all(followed(response, reference).values()))


def followed(response: str, reference: Any) -> dict[str, bool]:
    """The instructions that the response follows. An empty or endless one follows none."""
    match structured(reference, "instruction"):
        case {"instruction_id_list": [*names], "kwargs": [*settings]} if (
                names and len(names) == len(settings)):
            pass
        case _:
            raise BarError("an instruction reference is an object with instruction_id_list and "
                           "kwargs, equally long")
    unknown = sorted(set(names) - set(_CHECKS))
    if unknown:
        raise BarError(f"instruction {unknown[0]!r} is unknown; there are {', '.join(_CHECKS)}")
    return {
        name: 0 < len(response.strip()) <= _LONGEST and _CHECKS[name](
            response, **{key: value for key, value in (given or {}).items() if value is not None})
        for name, given in zip(names, settings)
    }


def _compared(count: int, relation: str, bound: int) -> bool:
    if relation not in _COMPARE:
        raise BarError(f"relation {relation!r} is unknown; there are {', '.join(_COMPARE)}")
    return _COMPARE[relation](count, bound)


def _has_keywords(text: str, keywords: list[str]) -> bool:
    return all(re.search(re.escape(word), text, re.IGNORECASE) for word in keywords)


def _keyword_frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    found = re.findall(re.escape(keyword), text, re.IGNORECASE)
    return _compared(len(found), relation, frequency)


def _avoids_words(text: str, forbidden_words: list[str]) -> bool:
    return not any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE)
                   for word in forbidden_words)


def _letter_frequency(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _compared(text.lower().count(letter.lower()), let_relation, let_frequency)


def _word_count(text: str, relation: str, num_words: int) -> bool:
    return _compared(len(re.findall(r"\w+", text)), relation, num_words)


def _sentence_count(text: str, relation: str, num_sentences: int) -> bool:
    return _compared(count_sentences(text), relation, num_sentences)


def count_sentences(text: str) -> int:
    """Sentences end with . ! or ? before a blank, and with an empty line or the text's end.

    The original asks a trained splitter, which differs on abbreviations and lists.
    """
    total = 0
    for paragraph in filter(str.strip, re.split(r"\n\s*\n", text)):
        ends = [match.end() for match in _SENTENCE_END.finditer(paragraph)
                if not _ABBREVIATION.search(paragraph[:match.end()])]
        rest = paragraph[ends[-1]:] if ends else paragraph
        total += len(ends) + bool(re.search(r"\w", rest))
    return total


def _paragraph_count(text: str, num_paragraphs: int) -> bool:
    """Paragraphs are divided by ***; only the first and the last may be empty."""
    parts = re.split(r"\s?\*\*\*\s?", text)
    if any(not part.strip() for part in parts[1:-1]):
        return False
    return sum(bool(part.strip()) for part in parts) == num_paragraphs


def _nth_paragraph_first_word(
    text: str, num_paragraphs: int, nth_paragraph: int, first_word: str
) -> bool:
    """Paragraphs are divided by an empty line."""
    parts = [part.strip() for part in text.split("\n\n") if part.strip()]
    if len(parts) != num_paragraphs or not 1 <= nth_paragraph <= len(parts):
        return False
    word = parts[nth_paragraph - 1].split()[0].lstrip("'\"")
    return re.split(r"[.,?!'\"]", word)[0].lower() == first_word.lower()


def _postscript(text: str, postscript_marker: str) -> bool:
    """On a line of its own, however the letters are spaced; after P.P.S no full stop is needed."""
    letters = re.findall(r"\w", postscript_marker.lower())
    dots = r"\.\s?".join(letters) + (r"\." if postscript_marker.strip().endswith(".") else "")
    return re.search(rf"^[ \t]*{dots}", text.lower(), re.MULTILINE) is not None


def _placeholders(text: str, num_placeholders: int) -> bool:
    """From each [ to the next ] on the same line."""
    found = sum("[" in part for line in text.split("\n") for part in line.split("]")[:-1])
    return found >= num_placeholders


def _bullets(text: str, num_bullets: int) -> bool:
    return len(re.findall(r"^[ \t]*(?:\*[^*\n]|-)", text, re.MULTILINE)) == num_bullets


def _stock_reply(text: str) -> bool:
    return any(reply in text.lower() for reply in _STOCK_REPLIES)


def _highlights(text: str, num_highlights: int) -> bool:
    found = re.findall(r"\*\*([^\n*]*)\*\*|\*([^\n*]*)\*", text)
    return sum(bool((bold or plain).strip()) for bold, plain in found) >= num_highlights


def _sections(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"{re.escape(section_spliter)}\s?\d+", text)) >= num_sections


def _is_json(text: str) -> bool:
    fenced = re.fullmatch(r"```(?:json)?\s*\n(.*?)\n?```", text.strip(), re.DOTALL | re.IGNORECASE)
    try:
        json.loads(fenced.group(1) if fenced else text)
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
    if any(not part for part in parts[1:-1]):
        return False
    answers = [part for part in parts if part]
    return len(answers) == 2 and answers[0] != answers[1]


def _repeats_prompt(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _ends_with(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _quoted(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def _capital_words(text: str, capital_relation: str, capital_frequency: int) -> bool:
    words = re.findall(r"\w[\w'-]*", text)
    return _compared(sum(word.isupper() for word in words), capital_relation, capital_frequency)


_CHECKS: dict[str, Callable[..., bool]] = {
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": lambda text: text.isupper() and is_language(text, "en"),
    "change_case:english_lowercase": lambda text: text.islower() and is_language(text, "en"),
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
    "language:response_language": lambda text, language: is_language(text, language),
    "length_constraints:nth_paragraph_first_word": _nth_paragraph_first_word,
    "length_constraints:number_paragraphs": _paragraph_count,
    "length_constraints:number_sentences": _sentence_count,
    "length_constraints:number_words": _word_count,
    "punctuation:no_comma": lambda text: "," not in text,
    "startend:end_checker": _ends_with,
    "startend:quotation": _quoted,
}
