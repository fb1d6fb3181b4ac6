"""The math verifier: what it finds, what it calls equal, and that no text costs it much."""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from math_verify import parse, verify

from megatron_bar.runtime.errors import BarError
from megatron_bar.verifiers import math
from megatron_bar.verifiers.mathematics.answer import final_answer
from tests.data.conftest import SHARED
from tests.verifiers.math_cases import CASES

HOSTILE = (
    "\\boxed{",
    "\\boxed{x}",
    "{",
    "}",
    "(",
    ")",
    "[",
    "]",
    "\\{",
    "\\}",
    "$",
    "$$",
    "\\(",
    "\\[",
    "\\]",
    "####",
    "answer is ",
    "final answer: ",
    "\n",
    " ",
    "-",
    "\u2212",
    "+",
    "=",
    "<",
    "\\le ",
    ",",
    ";",
    ":",
    ".",
    "/",
    "%",
    "\\%",
    "^",
    "_",
    "**",
    "*",
    "1",
    "0",
    "12",
    "1,000",
    "1e9",
    "e999999999",
    "9" * 50,
    "\\frac",
    "\\frac{1}{0}",
    "\\sqrt",
    "\\sqrt(",
    "\\pm ",
    "\\cup ",
    "\\in ",
    "\\infty",
    "\\text{",
    "\\text{ and }",
    "\\text{cm}^2",
    " and ",
    " or ",
    "x",
    "AB",
    "Monday",
    "per ",
    "square ",
    "km/",
    "21_7",
    "\\begin{pmatrix}",
    "\\\\",
    "&",
    "\\end{pmatrix}",
    "\\ldots",
    "\\left",
    "\u00bd",
    "\u00b2",
    "\u2009",
    "\u0130",
    "\u0663",
    "\ud83d",
    "\ud800",
    "\x00",
    "\u202e",
    "!",
    "|",
    "10^{",
    "i",
    "'",
    '"',
    "$5",
    "\u20ac",
)


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("9 a day.\n#### 18", "18"),
        ("#### 18 eggs.", "18 eggs"),
        ("\\boxed{3}, no, \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("#### 7, which is \\boxed{8}", "8"),
        ("Final Answer: The final answer is $x+1$. I hope it is correct.", "x+1"),
        ("It costs $5 and sells for $8, so 3", "3"),
        ("the answer is $\\frac{3}{4}$.", "\\frac{3}{4}"),
        ("\\[ \\begin{pmatrix} 1 \\end{pmatrix} \\]", "\\begin{pmatrix} 1 \\end{pmatrix}"),
        ("In all, 1,234.50 dollars", "1,234.50"),
        ("I don't know", None),
        ("\\boxed{", None),
    ],
)
def test_final_answer(response, answer):
    assert final_answer(response) == answer


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "expected", "same"),
    [
        ("18.0", "18", True),
        ("$1,234", "1234", True),
        ("-0", "0", True),
        ("1.8", "18", False),
        ("\\frac12", "0.5", True),
        ("x+y", "y+x", True),
        ("(1,2)", "(2,1)", False),
        ("\\frac{\\sqrt{2}}{2}", "\\frac{1}{\\sqrt{2}}", True),
        ("[0,1)", "[0,1]", False),
        ("\\text{Evelyn}", "\\text{Evelyn}", True),
        ("\\text{A}", "\\text{B}", False),
        ("9" * 2000, "9" * 2000, False),
    ],
)
def test_equal_answers(given, expected, same):
    assert math.equal(given, expected) is same


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", CASES)
def test_each_kind_of_answer(kind):
    right, wrong = CASES[kind]
    with ThreadPoolExecutor(2) as threads:
        scores = list(threads.map(lambda case: math.score("", *case), [*right, *wrong]))
    misjudged = [
        (*case, score)
        for case, score, earned in zip(
            [*right, *wrong], scores, [1.0] * len(right) + [0.0] * len(wrong)
        )
        if score != earned
    ]
    assert not misjudged


_TAIL = " This holds because every step above is consistent." * 70


@pytest.mark.parametrize(
    "mark", ["\\boxed{42}", "#### 42\n", "The answer is 42.", "**Answer:** 42\n"]
)
def test_what_follows_a_marked_answer_doesnt_count(mark):
    response = f"Let's see.\n{mark}{_TAIL} I checked it 3 times."
    assert math.score("", response, "42") == 1
    assert math.score("", response, "3") == 0


def test_a_list_of_accepted_answers():
    for reference in (["7", "seven"], [7, "seven"], '["7", "seven"]', ("x", "7")):
        assert math.score("", "\\boxed{7}", reference) == 1
        assert math.score("", "\\boxed{8}", reference) == 0
    assert math.score("", "\\boxed{(1, 2)}", "(1, 2)") == 1  # no list of answers


@pytest.mark.parametrize(
    "reference", [None, "", " ", [], [None], ["7", ""], {"answer": "7"}, [[7]]]
)
def test_a_broken_reference_is_refused(reference):
    with pytest.raises(BarError, match="a math reference is a text, a number, or a list"):
        math.score("", "7", reference)


def test_an_equation_that_is_asked_for_isnt_its_right_side():
    assert math.score("", "\\boxed{0}", "2x - y + 3 = 0") == 0
    assert math.score("", "\\boxed{5}", "x + y = 5") == 0
    assert math.score("", "\\boxed{x + y = 5}", "5") == 1


@pytest.fixture
def no_algebra(monkeypatch):
    """Fails a test that asks the process for algebra."""

    def pool():
        raise AssertionError("algebra was asked for")

    monkeypatch.setattr(math, "_pool", pool)


@pytest.mark.parametrize(
    ("given", "expected", "same"),
    [
        ("1,234,567.5", "1234567.5", True),
        ("3 \\times 10^8", "3e8", True),
        ("6\\frac12", "6.5", True),
        ("25\\%", "\\frac14", True),
        ("2, 1", "1, 2", True),
        ("(1,2)", "(2,1)", False),
        ("\\{1, 2\\}", "\\{2, 1, 1\\}", True),
        ("x < 3", "(-\\infty, 3)", True),
        ("-2 \\le x \\le 7", "[-2, 7]", True),
        ("5\\text{ km}", "5000\\text{ m}", True),
        ("x = 5", "5", True),
        ("\\text{Monday}", "monday", True),
        ("Monday", "5", False),
        ("21_7", "21", False),
        ("2:3", "4:6", True),
        ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{bmatrix}1\\\\2.0\\end{bmatrix}", True),
    ],
)
def test_what_needs_no_algebra_takes_milliseconds(given, expected, same, no_algebra):
    started = time.process_time()
    for _ in range(10):
        assert math.equal(given, expected) is same
        assert math.equal(expected, given) is same
    assert time.process_time() - started < 0.2


def test_no_text_is_too_much_for_reading(monkeypatch):
    """All that runs in the trainer's process: it never fails, and takes no time worth a word."""

    class AlgebraNeeded(Exception):
        pass

    def pool():
        raise AlgebraNeeded

    monkeypatch.setattr(math, "_pool", pool)
    shuffled = random.Random(5)
    references = (
        "\\frac{1}{2}",
        "5",
        "(1, 2)",
        "x < 3",
        "\\{1,2\\}",
        "\\text{Monday}",
        "y = 2x",
        "2:3",
    )
    for number in range(500):
        length = shuffled.choice((3, 10, 40, 400))
        text = "".join(shuffled.choices(HOSTILE, k=length))
        response = f"\\boxed{{{text}}}" if number % 3 == 0 else text
        reference = references[number % len(references)]
        started = time.process_time()
        try:
            assert math.score("", response, reference) in (0.0, 1.0)
            math.score("", f"\\boxed{{{reference}}}", text if text.strip() else "1")
        except AlgebraNeeded:
            pass
        except BarError as error:
            assert text.lstrip().startswith("["), error
        assert time.process_time() - started < 0.5, text


@pytest.mark.parametrize(
    "piece",
    [
        "\\boxed{",
        "answer is ",
        "#### ",
        "$",
        "1 ",
        "1,",
        "(",
        "\\text{a",
        "-1e",
        "[",
        "\\frac{1",
        "a and ",
        "\\",
        "_7",
        "x<",
    ],
)
def test_time_grows_with_the_length_alone(piece):
    response = piece * (1_000_000 // len(piece))
    started = time.process_time()
    final_answer(response, in_words=True)
    assert time.process_time() - started < 0.5
    started = time.process_time()
    with contextlib.suppress(math._NeedsAlgebra):
        math.same(math.read(piece * (1000 // len(piece))), math.read("5"), math._NoAlgebra())
    assert time.process_time() - started < 0.5


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="shared/data isn't beside the project")
@pytest.mark.parametrize(
    "every",
    [
        pytest.param(20, id="sample"),
        pytest.param(1, id="all", marks=[pytest.mark.sandbox, pytest.mark.timeout(600)]),
    ],
)
def test_judges_real_answers_as_math_verify_does(every):
    """Each reference as an answer to its own problem, to the next one, and spoilt."""
    asked = []
    for name, spoilt in (("math500_first200.jsonl", "{} + 1"), ("gsm8k_test.jsonl", "{}1")):
        lines = (SHARED / "math" / name).read_text(encoding="utf-8").split("\n")
        golds = [json.loads(line)["answer"].rpartition("####")[2].strip() for line in lines if line]
        for gold, other in list(zip(golds, golds[1:] + golds[:1]))[::every]:
            asked += [(gold, gold), (other, gold), (spoilt.format(gold), gold)]
    with ThreadPoolExecutor(2) as threads:
        ours = list(
            threads.map(lambda pair: math.score("", f"\\boxed{{{pair[0]}}}", pair[1]), asked)
        )
    assert not [
        (*pair, score) for pair, score in zip(asked, ours) if score != _by_math_verify(*pair)
    ]


def _by_math_verify(answer, gold):
    parsed = [parse(text, parsing_timeout=None) for text in (f"${gold}$", f"$\\boxed{{{answer}}}$")]
    return float(verify(*parsed, timeout_seconds=None))


@pytest.mark.slow
@pytest.mark.parametrize("hostile", ["9^{9^{9^9}}", "\\sqrt{" * 100])
def test_a_hostile_expression_is_given_up_in_time_from_a_thread(hostile):
    math.equal("x", "y")  # the worker has started
    scores = []
    started = time.monotonic()
    thread = threading.Thread(
        target=lambda: scores.append(math.score("", f"\\boxed{{{hostile}}}", "\\frac{1}{2}"))
    )
    thread.start()
    thread.join()
    assert scores == [0.0]
    assert time.monotonic() - started < math._SECONDS + 2
    assert math.equal("x+y", "y+x")
