"""What the code verifier makes of answers and references as real models and data sets have them."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from megatron_bar.runtime.errors import BarError
from megatron_bar.verifiers import code
from megatron_bar.verifiers.code_blocks import extract

ADD = "def add(a, b):\n    return a + b\n"
WRONG = "def add(a, b):\n    return a - b\n"
TEST = ["assert add(1, 2) == 3"]
STUB = {
    "prompt": 'from typing import List\n\n\ndef total(xs: List[int]) -> int:\n    """Sum."""\n',
    "entry_point": "total",
    "test": "def check(candidate):\n    assert candidate([1, 2]) == 3\n",
}
BODY = "    s = 0\n    for x in xs:\n        s += x\n    return s\n"
FENCED_TEXT = ADD.replace("return", '"""\n    ```\n    add(1, 2)\n    ```\n    """\n    return')


def indented(text, by="   "):
    return "".join(by + line + "\n" for line in text.splitlines())


ANSWERS = {
    "tilde fence": f"~~~python\n{ADD}~~~",
    "longer fence": f"````python\n{ADD}````",
    "[PYTHON] tags": f"[PYTHON]\n{ADD}[/PYTHON]",
    "[BEGIN] tags": f"Here it is.\n[BEGIN]\n{ADD}[DONE]",
    "[BEGIN] around a fence": f"[BEGIN]\n```python\n{ADD}```\n[DONE]",
    "[BEGIN] without an end": f"[BEGIN]\n{ADD}",
    "indented in a list": f"1. Code:\n   ```python\n{indented(ADD)}   ```",
    "fence in the list's line": f"1. ```python\n{indented(ADD)}   ```",
    "block of output after": f"```python\n{ADD}```\nOutput:\n```\n3\n```",
    "block of use after": f"```python\n{ADD}```\nUse:\n```python\nprint(add(1, 2))\n```",
    "block of use without a tag after": f"```python\n{ADD}```\n```\nprint(add(1, 2))\n```",
    "block for a shell after": f"```python\n{ADD}```\nRun:\n```bash\npython add.py\n```",
    "block for a shell before": f"```sh\npip install x\n```\n```python\n{ADD}```",
    "helper in a block before": "```python\ndef plus(a, b): return a + b\n```\nThen:\n"
    "```python\ndef add(a, b):\n    return plus(a, b)\n```",
    "helper in a block after": "```python\ndef add(a, b):\n    return plus(a, b)\n```\n"
    "```python\ndef plus(a, b):\n    return a + b\n```",
    "import in a block before": "```python\nimport operator\n```\n"
    "```python\ndef add(a, b):\n"
    "    return operator.pos(a + b)\n```",
    "broken attempt before": f"```python\ndef add(a, b) return\n```\nBetter:\n```python\n{ADD}```",
    "wrong attempt before": f"```python\n{WRONG}```\nBetter:\n```python\n{ADD}```",
    "attempt after that is cut off": f"```python\n{ADD}```\nOr:\n```python\ndef add(a, b):\n    re",
    "thought before": f"<think>\n```python\n{WRONG}```\n</think>\n```python\n{ADD}```",
    "thought that isn't fenced before": f"<think>\ndef add(a, b): ...\n</think>\n{ADD}",
    "thought that the prompt opened": f"Hm.\n```python\n{WRONG}\n</think>\n```python\n{ADD}```",
    "backticks in a text": f"```python\n{ADD}FENCE = '```'\n```",
    "fences in a docstring": f"```python\n{FENCED_TEXT}```",
    "fences at the margin of a text": f"```python\n{ADD}DOC = '''\n```\nx\n```\n'''\n```\nDone.",
    "glued to the text before": f"Here it is: ```python\n{ADD}```",
    "glued without a tag": f"Here it is:```\n{ADD}```",
    "closing fence glued": f"```python\n{ADD.rstrip()}```",
    "end token": f"```python\n{ADD}```<|endoftext|>",
    "end tokens after plain code": f"{ADD}<|im_end|>\n<|endoftext|>",
    "end token of another kind": f"{ADD}</s>",
    "tag with more": f'```python title="add.py"\n{ADD}```',
    "capital tag": f"```Python\n{ADD}```",
    "carriage returns": f"```python\n{ADD}```".replace("\n", "\r\n"),
    "fence without an end": f"```python\n{ADD}",
    "answer tags": f"<answer>\n```python\n{ADD}```</answer>",
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_the_code_of_an_answer(answer):
    assert code.score("", ANSWERS[answer], TEST) == 1
    assert code.score("", ANSWERS[answer].replace("a + b", "a * b"), TEST) == 0


@pytest.mark.parametrize(
    "answer",
    [
        BODY,
        BODY.lstrip(),
        BODY.replace("    s = 0", "s = 0").replace("\n    ", "\n"),
        "   " + BODY.lstrip(),
        BODY + "```\n",
        BODY + "```",
        f"```python\n{BODY}```",
        f"```python\n{BODY.lstrip()}```",
        BODY + "<|endoftext|>",
        f"```python\n{STUB['prompt']}{BODY}```\nUse:\n```python\nprint(total([1]))\n```",
        f"```python\ndef total(xs):\n{BODY}```\nOutput:\n```\n3\n```",
        f"```python\nfrom __future__ import annotations\ndef total(xs: List[int]):\n{BODY}```",
        f"Here it is:```python\n{STUB['prompt']}{BODY}```",
        "```python\n"
        + STUB["prompt"].replace("Sum.", "Sum.\n    ```\n    total([])\n    ```\n    ")
        + BODY
        + "```",
        "return sum(xs)",
    ],
)
def test_a_function_that_the_prompt_began(answer):
    assert code.score("", answer, STUB) == 1
    assert code.score("", answer.replace("s += x", "s -= x").replace("sum", "len"), STUB) == 0


PAIR = "class Pair:\n    def __init__(self, a, b):\n        self.a, self.b = a, b"
MOVED = PAIR + "\n    def __eq__(self, other):\n        return vars(self) == vars(other)"
UNITTEST = (
    "import unittest\nfrom solution import add as plus\n"
    "class TestAdd(unittest.TestCase):\n"
    "    def setUp(self):\n        self.one = 1\n"
    "    def test_sum(self):\n        self.assertEqual(plus(self.one, 2), 3)\n"
    "    def test_none(self):\n        with self.assertRaises(TypeError): plus(1, None)\n"
    "if __name__ == '__main__':\n    unittest.main()\n"
)
FUNCTIONS = {
    "test_imports": (
        "def f(a):\n    d = {}\n    for x in a: d[x] = d.get(x, 0) + 1\n    return d",
        {
            "test_list": ["assert f([1, 1]) == dict(Counter([1, 1]))"],
            "test_imports": ["from collections import Counter"],
        },
    ),
    "test_imports of a module": (
        "def f(a):\n    return sorted(a)[:1]",
        {
            "test_list": ["assert f([2, 1]) == heapq.nsmallest(1, [2, 1])"],
            "test_imports": ["import heapq"],
        },
    ),
    "test_imports of numpy": (
        "import numpy as np\ndef f(a):\n    return np.array(a) * 2",
        {
            "test_list": ["assert np.array_equal(f([1, 2]), np.array([2, 4]))"],
            "test_imports": ["import numpy as np"],
        },
    ),
    "a class in the setup": (
        "def f(p):\n    return p.b - p.a",
        {"test_list": ["assert f(Pair(5, 24)) == 19"], "test_setup_code": PAIR},
    ),
    "objects of the setup's class come back": (
        "def f(p):\n    return [Pair(p.b, p.a)]",
        {"test_list": ["assert f(Pair(5, 24)) == [Pair(24, 5)]"], "test_setup_code": MOVED},
    ),
    "numbers of numpy": (
        "import numpy as np\ndef f(n):\n    return np.sum([n, 1])",
        ["assert f(2) == 3", "assert isinstance(f(2) + 1, object)"],
    ),
    "truth values of numpy": (
        "import numpy as np\ndef f(n):\n    return np.all([n])",
        ["assert f(1) == True", "assert f(1)", "assert not f(0)"],
    ),
    "linear algebra": (
        "import numpy as np\ndef f(m):\n    return np.linalg.det(np.array(m))",
        ["import math\nassert math.isclose(f([[1, 2], [3, 4]]), -2)"],
    ),
    "arrays of texts": (
        "import numpy as np\ndef f(a):\n    return np.array(a)[::-1]",
        ["assert list(f(['a', 'bc'])) == ['bc', 'a']"],
    ),
    "the standard library": (
        "import re, math, heapq, bisect, itertools, functools, collections, statistics, string\n"
        "from typing import *\nimport hashlib, decimal, fractions, datetime, random, operator\n"
        "def f(n):\n    return hashlib.md5(str(n).encode()).hexdigest()[:4]",
        ["assert f(1) == 'c4ca'"],
    ),
    "a match, of which only the truth is asked": (
        "import re\ndef f(s):\n    return re.search('a+', s)",
        [
            "assert f('baa')",
            "assert not f('b')",
            "assert bool(f('a')) is True",
            "assert f('baa').group() == 'aa'",
        ],
    ),
    "a lambda": (
        "def f(g, xs):\n    return [g(x) for x in xs]",
        [
            "assert f(lambda x: x + 1, [1, 2]) == [2, 3]",
            "assert f(len, ['ab']) == [2]",
            "k = 3\nassert f(lambda x: math.floor(x) * k, [1.5]) == [3]",
            "assert list(filter(None, f(str, [1]))) == ['1']",
        ],
    ),
    "one text of asserts": (ADD, "x = 1\nassert add(x, 2) == 3\n\nassert add(2, 2) == 4"),
    "test_list as one text": (ADD, {"test_list": "assert add(1, 2) == 3\nassert add(0, 0) == 0"}),
    "classes of unittest": (ADD, UNITTEST),
    "functions of pytest": (
        ADD,
        "from solution import add\n\ndef test_add():\n    assert add(1, 2) == 3\n",
    ),
    "a check that is called": (ADD, "def check(f):\n    assert f(1, 2) == 3\ncheck(add)"),
    "HumanEval without a prompt": (
        ADD,
        {"entry_point": "add", "test": "def check(f):\n    assert f(1, 2) == 3"},
    ),
    "fn_name": (ADD, {"fn_name": "add", "inputs": [[1, 2], [2, 2]], "outputs": [3, [4]]}),
    "fn_name as JSON": (ADD, json.dumps({"fn_name": "add", "inputs": ["1\n2"], "outputs": ["3"]})),
    "fn_name of a class": (
        "class Solution:\n    def add(self, a, b):\n        return a + b",
        {"fn_name": "add", "inputs": [[1, 2]], "outputs": [3]},
    ),
    "tuples for JSON's lists": (
        "def f(a): return (a, {1: a})",
        {"fn_name": "f", "inputs": [[2]], "outputs": [[2, {"1": 2}]]},
    ),
    "a method": (
        "class Solution:\n    def add(self, a, b):\n        return a + b",
        {"entry_point": "Solution().add", "test": "def check(f):\n    assert f(1, 2) == 3"},
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_references_for_functions(name):
    source, reference = FUNCTIONS[name]
    assert set(code.outcomes(f"```python\n{source}\n```", reference)) == {True}
    wrong = "def f(*a): return 7\ndef add(*a): return 7\nclass Solution:\n    add = lambda *a: 7"
    assert code.score("", wrong, reference) == 0


SUM = "a, b = map(int, input().split())\nprint(a + b)\n"
LINES = "n = int(input())\nprint(sum(int(input()) for _ in range(n)))\n"
PROGRAMS = {
    "texts": (SUM, [{"input": "1 2", "output": "3\n"}]),
    "numbers as output": (SUM, [{"input": "1 2", "output": 3}]),
    "lists of lines": (LINES, [{"input": ["2", "1", 2], "output": ["3"]}]),
    "one case": (SUM, {"input": "1 2", "output": "3"}),
    "APPS": (SUM, {"inputs": ["1 2\n", "2 2\n"], "outputs": ["3\n", "4\n"]}),
    "a row of APPS": (SUM, {"input_output": json.dumps({"inputs": ["1 2"], "outputs": ["3"]})}),
    "a row of APPS with lists": (LINES, {"inputs": [["2", "1", "2"]], "outputs": [["3"]]}),
}


@pytest.mark.parametrize("end", ["", "exit()", "quit()", "exit(0)", "import sys; sys.exit()"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_references_for_programs(name, end):
    source, reference = PROGRAMS[name]
    assert code.score("", f"```python\n{source}{end}\n```", reference) == 1
    assert code.score("", f"```python\nprint(5)\n{end}\n```", reference) == 0


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (3, "a code reference is"),
        ({}, "a code reference is"),
        ([], "a code reference is"),
        (["assert f("], "isn't Python"),
        ("f(x", "must be JSON or tests in Python"),
        ("x = 1", "no test"),
        ({"inputs": ["1"], "outputs": []}, "1 inputs and 0 outputs"),
        ([{"input": None, "output": "1"}], "neither text nor a number"),
        ({"fn_name": "f", "inputs": [3], "outputs": [3]}, "a list of arguments"),
        ({"fn_name": "f(", "inputs": [[3]], "outputs": [3]}, "isn't a name"),
        ({"inputs": ["1"], "outputs": ["1"], "time_limit": "long"}, "time_limit 'long'"),
    ],
)
def test_broken_references_are_told(reference, message):
    with pytest.raises(BarError, match=message):
        code.score("", ADD, reference)


BROKEN = {
    "syntax": "def add(a, b) return 1",
    "a missing module": f"import no_such_module\n{ADD}",
    "an exit": f"import sys\nsys.exit()\n{ADD}",
    "an error at import": f"{ADD}\nadd(1)",
    "a failing assert": f"{ADD}\nassert add(1, 2) == 4",
    "prose": "I don't know what to do.",
    "nothing": "",
    "no such function": "def plus(a, b): return a + b",
    "a kill": "import os\nos.abort()",
    "null bytes": "\0" * 10,
    "half a character": "x = '\ud83d'",
    "deep nesting": "(" * 10_000,
}


def test_what_fails_at_once_costs_no_time_limit():
    code.score("", ADD, TEST)  # the sandbox has started
    seconds = {}
    for name, source in BROKEN.items():
        started = time.monotonic()
        assert code.score("", f"```python\n{source}\n```", TEST) == 0, name
        seconds[name] = time.monotonic() - started
    assert sorted(seconds.values())[len(seconds) // 2] < 0.3, seconds  # others use the cores, too
    assert max(seconds.values()) < 3, seconds


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_answers_that_hang_stand_beside_the_others():
    """Asleep they cost no core, so that all of them take hardly longer than one."""
    asleep = "import time\ndef add(a, b):\n    time.sleep(1000)"
    answers = [asleep] * 8 + [ADD] * 20
    code.score("", ADD, TEST)
    started = time.monotonic()
    with ThreadPoolExecutor(len(answers)) as threads:
        scores = list(threads.map(lambda answer: code.score("", answer, TEST), answers))
    assert scores == [0] * 8 + [1] * 20
    assert time.monotonic() - started < 12  # one after the other: 16


@pytest.mark.slow
def test_an_endless_loop_costs_its_limit_once():
    cases = {"inputs": ["1"] * 30, "outputs": ["1"] * 30, "time_limit": 0.25}
    started = time.monotonic()
    assert code.outcomes("import time\nwhile True: time.sleep(1)", cases) == [False] * 30
    assert time.monotonic() - started < 10
    assert code.outcomes("print(input())", cases) == [True] * 30
    assert code.outcomes("print(2)", cases) == [False] * 30


@pytest.mark.slow
def test_a_reference_may_allow_more_time():
    slow = (
        "import time\ndef add(a, b):\n    while time.process_time() < 0.8: pass\n    return a + b"
    )
    assert code.score("", slow, {"test_list": TEST}) == 0
    assert code.score("", slow, {"test_list": TEST, "time_limit": 4}) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "thing",
    [
        "```",
        "`",
        "~~~",
        "```\n",
        "```python\n",
        "~~~\n```\n",
        "[BEGIN]",
        "[DONE]\n",
        "<think>",
        "</think>",
        "</s>",
        "\n",
        " ",
        "x = 1\n",
        "import a\n",
        "def f\n",
        "a:",
        "1. ",
        "> ",
    ],
)
def test_code_is_found_in_linear_time(thing):
    """It holds the trainer's lock of Python."""
    for end in ("x", "a" * 100_000, " " * 100_000):
        text = thing * (200_000 // len(thing)) + end
        started = time.thread_time()  # as others use the cores, too
        extract(text, ["f"])
        extract(end + text)
        assert time.thread_time() - started < 4
