"""The final answer of a response: where it is looked for, in which order.

Time grows with the response's length alone: marks are found by searching backwards, few of them are
tried, and patterns see no more than what an answer can be long.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from megatron_bar.verifiers.mathematics.spelling import CHARACTERS, unframed
from megatron_bar.verifiers.mathematics.units import is_unit_name

LONGEST = 1000  # characters; no final answer is longer
_TAIL = 2000  # characters in which an answer without a mark is looked for
_TRIED = 20  # marks of a kind, from the last one backwards
_LONGEST_WORDS = 60  # characters of an answer in words

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*(?=\{)")
_LONGEST_JOINT = 30  # characters
_JOINT = re.compile(
    r"[\s$]*(?:(?:[,;]|\\text\{)?[\s$]*(?:(?:and|or)\b)?)\}?[\s$]*"
    r"(?:\\?\w{1,8}\s*=\s*)?"
)  # $, and $, or $ or $x =
# Behind the word "answer".
_ANNOUNCES = re.compile(
    r"s?[*_]{0,3}\s{0,3}(?:\([^()\n]{0,40}\)\s{0,3})?(?:to [^.:\n]{0,80}? )?"
    r"(?:(?:is|are)\b(?! not\b|n't)|[:=])(?:\s{0,2}[:=])?[*_: \t]{0,9}",
    re.IGNORECASE,
)
_ANNOUNCES_BELOW = re.compile(r"[*_ \t:]{0,9}(?=\n)")
_LATEX = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")  # within a pair of $, a sign that it's money
_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mbox|begin|end|operatorname)\s*\{[^}]*\}|\\[A-Za-z]+")
_NAMES = re.compile(r"(?<![A-Za-z])(?:sin|cos|tan|log|ln|exp|sqrt|pi|and|or)(?![A-Za-z])")
_SENTENCE_END = re.compile(
    r"[.!?;](?=[\s*_]|$)|(?<=\S)\s\((?=[A-Za-z])|"
    r",?\s(?:because|since|so|which|as|hence|when|where|for)\b|"
    r",\s(?=(?!and\b|or\b)[a-z]{2,})|\s-\s(?=[a-z])"
)
_NUMBER = re.compile(  # no part of a word, a power, an index or a longer number
    r"(?<![\w.^{_\\])(?<!\d[,:/])(?:(?<![\w)\]}.])[-+])?[$€£¥]?\s?(?:"
    r"\d{1,3}(?:[, ]\d{3})+(?!\d)|\d+)?(?:[.,]\d+)?(?:[eE][-+]?\d+)?"
    r"(?:\s?(?:x|\u00d7|\*|\u00b7|\\times|\\cdot)\s?10\^\{?[-+]?\d+\}?)?"
    r"(?:(?:\s\d+)?\s?/\s?\d+|:\d+)?(?:\s(?:thousand|[mbt]r?illion)\b)?(?:\s?\\?%)?(?![\d^_])",
    re.ASCII,
)


def final_answer(response: str, in_words: bool = False) -> str | None:
    r"""The answer that a response gives; None if it gives none.

    It is the last \boxed{}, or the last ones if they are joined by commas, "and" or "or"; else what
    follows the last ####; else what "answer is" or "answer:" announces; else the whole response, if
    it's short; else the last LaTeX or number, whichever ends later. Only where an answer
    `in_words` is expected, bare words are one.
    """
    if (marked := marked_answer(response, in_words)) is not None:
        return marked
    if (whole := _whole(response.strip(), in_words)) is not None:
        return whole
    return _last_expression(response[-_TAIL:].translate(CHARACTERS))


def marked_answer(text: str, in_words: bool = True) -> str | None:
    """The answer that a mark announces: a box, ####, or "answer is"."""
    for find in (_boxed, _behind_hashes):
        if (found := find(text)) is not None:
            return found
    return _announced(text, in_words)


def _backwards(text: str, mark: str) -> Iterator[int]:
    """Where the last occurrences of `mark` begin, the last one first."""
    place = len(text)
    for _ in range(_TRIED):
        place = text.rfind(mark, 0, place)
        if place < 0:
            return
        yield place


def _boxed(text: str) -> str | None:
    boxes: list[tuple[int, int, str]] = []  # of one answer, in the text's order
    for place in _backwards(text, "box"):
        start = text.rfind("\\", max(0, place - 7), place)
        match = _BOX.match(text, max(0, start))
        if match is None or not (inner := _braced(text, match.end())):
            continue
        end = match.end() + len(inner) + 2
        if boxes:
            if boxes[0][0] <= end <= boxes[0][1]:  # this one stands around the other
                boxes[0] = (start, end, boxes[0][2])
                continue
            if not _joins(text[end : boxes[0][0]]):
                break
        boxes.insert(0, (start, end, inner.strip()))
    return ", ".join(inner for _, _, inner in boxes) or None


def _joins(between: str) -> bool:
    """Whether two formulas with this between them are one answer."""
    return (
        len(between) <= _LONGEST_JOINT
        and re.search("[,;]|and|or", between) is not None
        and _JOINT.fullmatch(between) is not None
    )


def _braced(text: str, opening: int) -> str | None:
    window = text[opening : opening + LONGEST + 2]
    depth = 0
    for match in re.finditer(r"\\[{}]|[{}]", window):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0 and match.group() == "}":
            return window[1 : match.start()] if window[1 : match.start()].strip() else None
    return None


def _behind_hashes(text: str) -> str | None:
    for place in _backwards(text, "####"):
        line = _line(text, place + 4)
        if line:
            return _of_a_phrase(line, in_words=True) or line
    return None


def _announced(text: str, in_words: bool) -> str | None:
    lower = text.lower()
    if len(lower) != len(text):  # a few letters become two
        lower = text
    for place in _backwards(lower, "answer"):
        behind = place + len("answer")
        match = _ANNOUNCES.match(text, behind, behind + 200)
        if match is None and lower.startswith("final ", max(0, place - 6)):
            match = _ANNOUNCES_BELOW.match(text, behind, behind + 200)
        if match is None:
            continue
        rest = text[match.end() : match.end() + LONGEST].translate(CHARACTERS).lstrip(" \n\t*_:")
        if (display := _LATEX.match(rest)) and rest.startswith(("$$", "\\[")):
            return _inside(display)
        if found := _of_a_phrase(rest.split("\n", 1)[0], in_words):
            return found
    return None


def _line(text: str, start: int) -> str:
    """What follows on the same line."""
    return text[start : start + LONGEST].split("\n", 1)[0].translate(CHARACTERS).strip(" \t*_#:")


def _of_a_phrase(phrase: str, in_words: bool) -> str | None:
    """The answer that a phrase begins with, or holds alone: LaTeX, a quantity, a few words."""
    phrase = unframed(phrase.strip("*_ "))
    spans = _spans(phrase)
    if spans and not re.search(r"\d", phrase[: spans[0].start()]):
        joined = spans[:1]
        for span in spans[1:]:
            if not _joins(phrase[joined[-1].end() : span.start()]):
                break
            joined.append(span)
        unit = phrase[joined[-1].end() :] if len(joined) == 1 else ""
        return ", ".join(map(_inside, joined)) + (unit if re.match(r"\s?\\?%", unit) else "")
    phrase = unframed(_SENTENCE_END.split(phrase, maxsplit=1)[0].rstrip("*_ "))
    if not phrase or len(phrase) > 200:
        return None
    numbers = _numbers(phrase)
    if not numbers:
        is_formula = not _prose(phrase)
        return phrase if is_formula or (in_words and len(phrase) <= _LONGEST_WORDS) else None
    before, after = phrase[: numbers[0].start()], phrase[numbers[-1].end() :]
    if not _prose(before):
        return phrase
    return (numbers[0].group() + after).strip() if len(numbers) == 1 else None


def _whole(response: str, in_words: bool) -> str | None:
    """A response that's nothing but an answer."""
    if not response or len(response) > 200 or "\n" in response or "boxed" in response:
        return None
    words = response.translate(CHARACTERS)
    if not _prose(words):
        return unframed(words)
    return unframed(words) if in_words and len(words) <= _LONGEST_WORDS else None


def _prose(text: str) -> bool:
    """Whether a text has words that are neither LaTeX nor units."""
    words = re.findall("[A-Za-z]{2,}", _NAMES.sub(" ", _TEXT.sub(" ", text)))
    return any(not is_unit_name(word) or word == "in" for word in words)


def _spans(text: str) -> list[re.Match[str]]:
    return [
        match for match in _LATEX.finditer(text) if not _WORD.search(_TEXT.sub("", match.group()))
    ]


def _inside(latex: re.Match[str]) -> str:
    return next(group for group in latex.groups() if group).strip()


def _numbers(text: str) -> list[re.Match[str]]:
    return [match for match in _NUMBER.finditer(text) if re.search(r"\d", match.group())]


def _last_expression(text: str) -> str | None:
    spans, numbers = _spans(text), _numbers(text)[-1:]
    last = spans[-1:]
    for span in spans[-2::-1]:
        if not _joins(text[span.end() : last[0].start()]):
            break
        last.insert(0, span)
    if numbers and (not last or numbers[0].end() > last[-1].end()):
        return unframed(numbers[0].group())
    return ", ".join(map(_inside, last)) or None
