"""IFEval's constraints on answers that follow them and that don't; their settings; languages."""

# ruff: noqa: RUF001 (texts in other scripts)
from __future__ import annotations

import json
import random
import time

import pytest

from megatron_bar.runtime.errors import BarError
from megatron_bar.verifiers import instructions
from megatron_bar.verifiers.constraints import CONSTRAINTS, count_sentences
from megatron_bar.verifiers.language import is_language

pytestmark = pytest.mark.timeout(30)


@pytest.mark.parametrize(
    ("name", "settings", "right", "wrong"),
    [
        (
            "change_case:capital_word_frequency",
            {"capital_relation": "at least", "capital_frequency": 2},
            "THIS is BIG",
            "This is BIG",
        ),
        ("change_case:english_capital", {}, "THIS IS THE END OF IT", "This IS THE END OF IT"),
        ("change_case:english_lowercase", {}, "this is the end of it", "das ist nicht das ende"),
        (
            "combination:repeat_prompt",
            {"prompt_to_repeat": "Say it."},
            "say it. It.",
            "It. Say it.",
        ),
        ("combination:two_responses", {}, "one\n******\ntwo", "one\n******\none"),
        ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] and [b]", "[a]"),
        (
            "detectable_content:postscript",
            {"postscript_marker": "P.P.S"},
            "Hi.\nP.P.S Bye",
            "P.S. Bye",
        ),
        (
            "detectable_content:postscript",
            {"postscript_marker": "P.S."},
            "Hi.\nP. S. Bye",
            "PS Bye",
        ),
        ("detectable_format:constrained_response", {}, "My answer is maybe.", "Perhaps."),
        ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', "{a: 1}"),
        (
            "detectable_format:multiple_sections",
            {"section_spliter": "SECTION", "num_sections": 2},
            "SECTION 1\nx\nSECTION 2\ny",
            "SECTION 1\nSECTION",
        ),
        ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "* a\n- b\n- c"),
        (
            "detectable_format:number_highlighted_sections",
            {"num_highlights": 2},
            "*a* **b**",
            "*a* **",
        ),
        ("detectable_format:title", {}, "<<Songs>>\nLa", "<< >>\nLa"),
        ("keywords:existence", {"keywords": ["sun", "moon"]}, "Sunday, Moon", "the sun"),
        ("keywords:forbidden_words", {"forbidden_words": ["sun"]}, "Sunday", "the Sun."),
        (
            "keywords:frequency",
            {"keyword": "sun", "frequency": 2, "relation": "less than"},
            "one sun",
            "sun sun",
        ),
        (
            "keywords:letter_frequency",
            {"letter": "q", "let_frequency": 2, "let_relation": "at least"},
            "Quite quick",
            "quiet",
        ),
        (
            "language:response_language",
            {"language": "pt"},
            "O livro que não é para você está em casa.",
            "The book that is not for you is at home.",
        ),
        (
            "length_constraints:nth_paragraph_first_word",
            {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
            "First.\n\nThen, so.",
            "Then.\n\nFirst.",
        ),
        (
            "length_constraints:number_paragraphs",
            {"num_paragraphs": 2},
            "a\n***\nb",
            "a\n***\n***\nb",
        ),
        (
            "length_constraints:number_sentences",
            {"num_sentences": 3, "relation": "less than"},
            "Mr. Bean is 3.5 feet. Yes!",
            "One. Two? Three",
        ),
        (
            "length_constraints:number_words",
            {"num_words": 3, "relation": "at least"},
            "a b c",
            "a b",
        ),
        ("punctuation:no_comma", {}, "a b", "a, b"),
        (
            "startend:end_checker",
            {"end_phrase": "The end."},
            'And so "the end."',
            "The end. Or not",
        ),
        ("startend:quotation", {}, ' "yes" ', '"yes" no'),
    ],
)
def test_instructions(name, settings, right, wrong):
    reference = {"instruction_id_list": [name], "kwargs": [settings | {"unused": None}]}
    assert instructions.score("", right, reference) == 1
    assert instructions.score("", wrong, json.dumps(reference)) == 0
    assert instructions.score("", " ", reference) == 0
    # One that isn't followed spoils all.
    both = {
        "instruction_id_list": [name, "startend:end_checker"],
        "kwargs": [settings, {"end_phrase": "never said"}],
    }
    assert instructions.score("", right, both) == 0


def one(name, **settings):
    return {"instruction_id_list": [name], "kwargs": [settings]}


def test_an_instruction_given_twice_counts_twice():
    name = "keywords:frequency"
    pear, apple = (
        {"keyword": word, "frequency": count, "relation": "at least"}
        for word, count in (("pear", 1), ("apple", 3))
    )
    for settings in ([apple, pear], [pear, apple]):
        reference = {"instruction_id_list": [name, name], "kwargs": settings}
        assert instructions.score("", "apple pear", reference) == 0
        assert instructions.score("", "apple apple pear apple", reference) == 1


WORDS, FIRST = "length_constraints:number_words", "length_constraints:nth_paragraph_first_word"


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({"num_words": "3", "relation": "at least"}, "a b"),
        ({"num_words": 3.0, "relation": "at least"}, "a b"),
        ('{"num_words": 3, "relation": "at least"}', "a b"),
        ({"num_words": 3, "relation": "at most"}, "a b c d"),
        ({"num_words": 4, "relation": "around", "keywords": None}, "a b"),
    ],
)
def test_settings_are_read_as_files_have_them(settings, wrong):
    reference = {"instruction_id_list": [WORDS], "kwargs": [settings]}
    for given in (reference, reference | {"kwargs": json.dumps([settings])}, json.dumps(reference)):
        assert instructions.score("", "a b c", given) == 1
        assert instructions.score("", wrong, given) == 0


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (FIRST, {"keyword": "a", "num_paragraphs": 3}, "no setting keyword; its settings: num_par"),
        ("punctuation:no_comma", {"num_highlights": 3}, "no setting num_highlights.*: none"),
        (FIRST, {"num_paragraphs": 3, "nth_paragraph": 1, "first_word": None}, "needs first_word"),
        (WORDS, {"num_words": "many", "relation": "at least"}, "a whole number, not 'many'"),
        (WORDS, {"num_words": 1.5, "relation": "at least"}, "a whole number, not 1.5"),
        (WORDS, {"num_words": float("nan"), "relation": "at least"}, "a whole number"),
        (WORDS, {"num_words": True, "relation": "at least"}, "a whole number"),
        (
            WORDS,
            {"num_words": 3, "relation": "nearly"},
            "at least, less than, at most, around, not",
        ),
        (WORDS, {"num_words": 3, "relation": ["at least"]}, "relation is one of"),
        ("keywords:existence", {"keywords": 3}, "a list of texts, not 3"),
        ("startend:end_checker", {"end_phrase": 3}, "text, not 3"),
        ("language:response_language", {"language": "xyz"}, "language 'xyz' is unknown"),
        ("punctuation:no_comma", 3, "kwargs of .* are an object, not 3"),
        (3, {}, "3 is unknown"),
        ([], {}, "is unknown"),
        ("x", {}, "'x' is unknown; there are change_case"),
    ],
)
def test_settings_that_cant_be_read_are_told_whatever_the_answer(name, settings, message):
    for response in ("", "1"):
        with pytest.raises(BarError, match=message):
            instructions.score("", response, {"instruction_id_list": [name], "kwargs": [settings]})


@pytest.mark.parametrize(
    "reference",
    [
        3,
        [],
        {},
        {"instruction_id_list": [], "kwargs": []},
        {"instruction_id_list": ["punctuation:no_comma"], "kwargs": None},
        {"instruction_id_list": ["punctuation:no_comma"], "kwargs": []},
    ],
)
def test_a_reference_of_another_shape_is_told(reference):
    with pytest.raises(BarError, match="instruction_id_list and kwargs, equally long"):
        instructions.score("", "a", reference)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("One. Two! Three?", 3),
        ("Mr. Bean is 3.5 feet tall, i.e. small. Yes!", 2),
        ("No end", 1),
        ('Well... perhaps. "Is it?" So he asked.', 3),
        ("今日は晴れです。明日は雨です。", 2),
        ("你好。你怎么样？我很好！", 3),
        ("「はい。」と言った。終わり。", 2),
        ("यह एक वाक्य है। यह दूसरा है।", 2),
        ("یہ ایک جملہ ہے۔ یہ دوسرا ہے۔", 2),
        ("كيف حالك؟ بخير.", 2),
    ],
)
def test_sentences_in_many_scripts(text, count):
    assert count_sentences(text) == count


@pytest.mark.parametrize(
    ("name", "settings", "right", "wrong"),
    [
        *[
            ("detectable_content:postscript", {"postscript_marker": "P.S."}, text, "PS Bye")
            for text in (
                "Hi there. P.S. Bye",
                "Hi.\n**P.S.** Bye",
                "*P.S.* x",
                "> P.S. x",
                "- p. s. x",
            )
        ],
        (
            "detectable_content:postscript",
            {"postscript_marker": "P.P.S"},
            "Hi. **P.P.S.** x",
            "P.S. x",
        ),
        ("detectable_content:postscript", {"postscript_marker": "Note:"}, "So.\nNote: x", "Note x"),
        (
            "detectable_format:constrained_response",
            {},
            "Hm. My answer is no. Ok",
            "My answer is No.",
        ),
        ("detectable_format:constrained_response", {}, "My answer is yes.", "MY ANSWER IS YES."),
        *[
            ("detectable_format:json_format", {}, text, "{a: 1}")
            for text in (
                '```json{"a": 1}```',
                '```JSON\n{"a": 1}\n```',
                "```[1]```",
                '```Json {"a": 1}',
            )
        ],
        (
            "change_case:capital_word_frequency",
            {"capital_relation": "at least", "capital_frequency": 3},
            "IT'S NASA's",
            "WELL-KNOWN A/B",
        ),
        (
            "detectable_format:number_highlighted_sections",
            {"num_highlights": 2},
            "***x***",
            "**x**",
        ),
        (
            FIRST,
            {"num_paragraphs": 2, "nth_paragraph": 1, "first_word": "a"},
            "A.\n\n\n\nb",
            "\n\na\n\nb",
        ),
    ],
)
def test_answers_are_judged_as_by_lm_eval(name, settings, right, wrong):
    assert instructions.score("", right, one(name, **settings)) == 1
    assert instructions.score("", wrong, one(name, **settings)) == 0


@pytest.mark.parametrize(
    "text",
    [
        "HELLO WORLD",
        "YES.",
        "WELCOME HOME",
        "OPEN THE DOOR",
        "THE API RETURNS JSON.",
        "INSTALL PYTHON, RUN PIP, RESTART NGINX.",
        "KUBERNETES SCHEDULES PODS ONTO NODES.",
    ],
)
def test_a_few_english_or_technical_words_in_one_case(text):
    assert instructions.score("", text, one("change_case:english_capital")) == 1
    assert instructions.score("", text.lower(), one("change_case:english_lowercase")) == 1


TEXTS = {
    "ar": "هذا الكتاب مفيد جدا وأنصح الجميع بقراءته.",
    "bg": "Това е книга, която не се чете лесно, но ще я прочета с удоволствие.",
    "de": "Das Buch ist nicht für mich, aber ich lese es mit dir.",
    "en": "The book is not for me, but I will read it with you.",
    "fa": "این کتاب برای من نیست اما آن را با تو می خوانم",
    "gu": "આ પુસ્તક મારા માટે નથી પણ હું તે વાંચીશ.",
    "he": "הספר הזה לא בשבילי אבל אקרא אותו איתך.",
    "hi": "यह किताब मेरे लिए नहीं है लेकिन मैं इसे पढ़ूँगा",
    "it": "Il libro non fa per me, ma lo leggerò con te.",
    "ja": "この本は私のためのものではありませんが、あなたと一緒に読みます。",
    "kn": "ಈ ಪುಸ್ತಕ ನನಗಲ್ಲ ಆದರೆ ನಾನು ಅದನ್ನು ಓದುತ್ತೇನೆ",
    "ko": "이 책은 나를 위한 것이 아니지만 나는 읽을 것이다",
    "ml": "ഈ പുസ്തകം എനിക്കുള്ളതല്ല, പക്ഷേ ഞാൻ അത് വായിക്കും.",
    "mr": "हे पुस्तक माझ्यासाठी नाही आणि मी ते वाचणार आहे",
    "pa": "ਇਹ ਕਿਤਾਬ ਮੇਰੇ ਲਈ ਨਹੀਂ ਹੈ ਪਰ ਮੈਂ ਇਸਨੂੰ ਪੜ੍ਹਾਂਗਾ",
    "pl": "Ta książka nie jest dla mnie, ale przeczytam ją z tobą.",
    "pt": "O livro não é para mim, mas eu leio com você que está na casa.",
    "ru": "Эта книга не для меня, но я её прочитаю вместе с тобой.",
    "sw": "Kitabu hiki si cha kwangu lakini ni kizuri na mimi nitakisoma katika nyumba ya rafiki.",
    "te": "ఈ పుస్తకం నా కోసం కాదు కానీ నేను దాన్ని చదువుతాను.",
    "tr": "Bu kitap benim için değil ama seninle okuyacağım.",
    "uk": "Ця книга не для мене, але я прочитаю її з тобою.",
    "vi": "Cuốn sách này không dành cho tôi nhưng tôi sẽ đọc nó với bạn.",
    "zh-cn": "这本书不适合我，但我会和你一起读。",
    "zh-tw": "這本書不適合我，但我會和你一起讀。",
}


@pytest.mark.parametrize("language", TEXTS)
def test_languages_are_told_apart(language):
    assert [other for other in TEXTS if is_language(TEXTS[language], other)] == [language]
    assert is_language(TEXTS[language] + "\x00\ud800", language)


def test_chinese_is_in_either_script_and_no_words_are_in_no_language():
    assert is_language(TEXTS["zh-cn"], "zh") and is_language(TEXTS["zh-tw"], "ZH")
    assert not any(is_language(text, code) for text in ("", "123 🙂", "\x00") for code in TEXTS)


EVERY_INSTRUCTION = {
    "instruction_id_list": list(CONSTRAINTS),
    "kwargs": [
        {"capital_relation": "at least", "capital_frequency": 1},
        {},
        {},
        {"prompt_to_repeat": "x"},
        {},
        {"num_placeholders": 1},
        {"postscript_marker": "P.P.S"},
        {},
        {},
        {"section_spliter": "SECTION", "num_sections": 1},
        {"num_bullets": 1},
        {"num_highlights": 1},
        {},
        {"keywords": ["x"]},
        {"forbidden_words": ["x"]},
        {"keyword": "x", "frequency": 1, "relation": "at least"},
        {"letter": "x", "let_frequency": 1, "let_relation": "at least"},
        {"language": "en"},
        {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": "x"},
        {"num_paragraphs": 1},
        {"num_sentences": 1, "relation": "at least"},
        {"num_words": 1, "relation": "at least"},
        {},
        {"end_phrase": "x"},
        {},
    ],
}
_PIECES = (
    "a",
    "A",
    ". ",
    "!",
    "。",
    "।",
    "mr. ",
    "e.g. ",
    "\n",
    "\n\n",
    " ",
    "***",
    "******",
    "*",
    "* ",
    "- ",
    "**x**",
    "[",
    "]",
    "<<",
    ">>",
    "{",
    '"',
    "'",
    "```json",
    "P.",
    "p.s.",
    "\t",
    "SECTION 1",
    "\x00",
    "\ud800",
    "\u200b",
    "é",
    "ß",
    "İ",
    "今日",
    "है",
    ")",
    "--",
    "n't",
    "9" * 5000,
    "\u2028",
    "🙂",
)


@pytest.mark.slow
def test_hostile_text_is_judged_at_once():
    chance = random.Random(0)
    slowest = (0.0, "")
    for number in range(300):
        unit = "".join(chance.choices(_PIECES, k=1 + number % 5))
        response = (unit * (chance.choice((1, 3, 19_999)) // len(unit) + 1))[:20_000]
        started = time.thread_time()
        assert instructions.score("", response, EVERY_INSTRUCTION) in (0, 1)
        assert len(instructions.followed(response, EVERY_INSTRUCTION)) == len(CONSTRAINTS)
        slowest = max(slowest, (time.thread_time() - started, unit))
    assert slowest[0] < 1, slowest
