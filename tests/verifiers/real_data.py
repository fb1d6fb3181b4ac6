"""Real problems, each with answers that are right and answers that are spoilt in a known way."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from megatron_bar.verifiers.code_tests import names_under_test


class Case(NamedTuple):
    data: str  # the row of the table
    kind: str  # "right", or what was spoilt
    where: str
    verifier: str
    response: str
    reference: Any


# Reference answers that may not score 1, and why.
BROKEN = {
    "MBPP 123": "loops 50 million times, which takes about as long as the time limit",
}
# Answers that list a parameter the function hasn't; without it they score 1.
_NO_SUCH_PARAMETER = {("parallel_multiple_12", "permeability"), ("parallel_multiple_26", "type")}
_OFF_BY_ONE = """
def _spoilt(function):
    def spoilt(*arguments, **keywords):
        value = function(*arguments, **keywords)
        if isinstance(value, bool):
            return not value
        if isinstance(value, (int, float, complex)):
            return value + 1
        if isinstance(value, str):
            return value + "x"
        if isinstance(value, (list, tuple)):
            return value[1:] if value else [None]
        return None
    return spoilt
"""
_REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I cannot assist you with this request.",
    "I won't provide that. If you are struggling, please reach out to someone you trust.",
    "I must decline. This could hurt people.",
    "I\u2019m not able to share information on this.",
    "As an AI model, I am unable to help with harmful or illegal acts.",
)
_COMPLIANCES = (
    "Sure! Here is what you can do: first look at the manual, then follow it step by step.",
    "There are several ways. The easiest is to ask the system to do it for you.",
    "1. Open the settings.\n2. Choose the right entry.\n3. Confirm.",
    "It can't be done in one go, but you can split it in two parts and do these in turn.",
)


def cases(shared: Path, every: int = 1) -> list[Case]:
    """All of the real data, or every n-th problem of each set."""
    sets = (_gsm8k, _math500, _mbpp, _humaneval, _bfcl, _irrelevance, _safety)
    return [case for load in sets for problem in list(load(shared))[::every] for case in problem]


def _lines(path: Path) -> list[dict[str, Any]]:
    # Not splitlines(): JSON strings may hold its other line ends as they are.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _gsm8k(shared: Path) -> Iterator[list[Case]]:
    for number, item in enumerate(_lines(shared / "math" / "gsm8k_test.jsonl")):
        gold = item["answer"].rpartition("####")[2].strip()
        wrong = str(int(gold.replace(",", "")) + 1)
        yield [
            Case("GSM8K", kind, f"GSM8K {number}", "math", response, item["answer"])
            for kind, response in (
                ("right", item["answer"]),
                ("right", f"So it is $\\boxed{{{gold}}}$."),
                ("right", f"In the end, there are {gold} of them."),
                ("wrong number", f"#### {wrong}"),
                ("wrong number", f"\\boxed{{{gold}}}. No: \\boxed{{{wrong}}}"),
            )
        ]


def _math500(shared: Path) -> Iterator[list[Case]]:
    for number, item in enumerate(_lines(shared / "math" / "math500_first200.jsonl")):
        gold = item["answer"]
        yield [
            Case("MATH-500", kind, f"MATH-500 {number}", "math", response, gold)
            for kind, response in (
                ("right", f"Thus $\\boxed{{{gold}}}$."),
                ("right", f"Final Answer: The final answer is ${gold}$. I hope it is correct."),
                ("wrong number", f"Thus $\\boxed{{{gold} + 1}}$."),
            )
        ]


def _mbpp(shared: Path) -> Iterator[list[Case]]:
    for item in _lines(shared / "code" / "mbpp.jsonl"):
        names = [
            name
            for name in names_under_test(item["test_list"], item["test_setup_code"])
            if f"def {name}" in item["code"]
        ]
        spoilt = item["code"] + _OFF_BY_ONE + "".join(f"{n} = _spoilt({n})\n" for n in names)
        where = f"MBPP {item['task_id']}"
        yield [
            Case("MBPP", kind, where, "code", f"Here:\n```python\n{code}\n```", item)
            for kind, code in (("right", item["code"]), ("off by one", spoilt))
        ]


def _humaneval(shared: Path) -> Iterator[list[Case]]:
    for item in _lines(shared / "code" / "humaneval_000_119.jsonl"):
        whole, name = item["prompt"] + item["canonical_solution"], item["entry_point"]
        yield [
            Case("HumanEval", kind, item["task_id"], "code", response, item)
            for kind, response in (
                ("right", item["canonical_solution"]),
                ("right", f"```python\n{whole}\n```"),
                ("off by one", f"```python\n{whole}{_OFF_BY_ONE}{name} = _spoilt({name})\n```"),
            )
        ]


def _bfcl(shared: Path) -> Iterator[list[Case]]:
    for part in ("simple_python", "multiple", "parallel", "parallel_multiple"):
        answers = _lines(shared / "tool_use" / "possible_answer" / f"BFCL_v4_{part}.json")
        questions = _lines(shared / "tool_use" / f"BFCL_v4_{part}.json")
        for item, answer in zip(questions, answers, strict=True):
            assert item["id"] == answer["id"]
            reference = {"functions": item["function"], "calls": answer["ground_truth"]}
            calls = [_call(call, item) for call in answer["ground_truth"]]
            fewest = [_call(call, item, optional=False) for call in answer["ground_truth"]]
            data = f"BFCL {part.removesuffix('_python')}"
            yield [
                Case(data, kind, item["id"], "tool_calls", response, reference)
                for kind, response in (
                    ("right", _olmo(calls)),
                    ("right", _olmo(fewest)),
                    ("right", _json(calls)),
                    ("extra call", _olmo([*calls, calls[0]])),
                    ("missing call", _olmo(calls[1:]) if calls[1:] else "There you are."),
                    ("wrong name", _json([(calls[0][0] + "s", calls[0][1]), *calls[1:]])),
                    ("swapped argument", _olmo([_swapped(calls[0]), *calls[1:]])),
                )
            ]


def _irrelevance(shared: Path) -> Iterator[list[Case]]:
    for item in _lines(shared / "tool_use" / "BFCL_v4_irrelevance.json"):
        reference = {"functions": item["function"], "calls": []}
        name = item["function"][0]["name"] if item["function"] else "help"
        yield [
            Case("BFCL irrelevance", kind, item["id"], "tool_calls", response, reference)
            for kind, response in (
                ("right", "None of my functions fits this question."),
                ("extra call", _olmo([(name, {})])),
            )
        ]


def _call(
    call: dict[str, Any], item: dict[str, Any], optional: bool = True
) -> tuple[str, dict[str, Any]]:
    """A right call; without `optional`, of the parameters only those that may not be left out."""
    ((name, allowed),) = call.items()
    schema = next(f for f in item["function"] if f["name"] == name)["parameters"]
    return name, {
        parameter: _first(values)
        for parameter, values in allowed.items()
        if ((optional and values != [""]) or "" not in values or parameter in schema["required"])
        and (item["id"], parameter) not in _NO_SUCH_PARAMETER
    }


def _first(values: list[Any]) -> Any:
    """The first value that says something, the fields of objects likewise."""
    value = next(value for value in values if value != "")
    if isinstance(value, dict):
        return {key: _first(options) for key, options in value.items() if options != [""]}
    if isinstance(value, list):
        return [_first([entry]) if isinstance(entry, dict) else entry for entry in value]
    return value


def _swapped(call: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """Two arguments exchanged; where they are alike or there's one alone, its value replaced."""
    name, arguments = call
    pairs = [(a, b) for a in arguments for b in arguments if arguments[a] != arguments[b]]
    if pairs:
        (first, second), *_ = pairs
        return name, arguments | {first: arguments[second], second: arguments[first]}
    return name, dict.fromkeys(arguments, "something else") or {"unknown": 1}


def _olmo(calls: list[tuple[str, dict[str, Any]]]) -> str:
    lines = (
        f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
        for name, arguments in calls
    )
    return "<function_calls>" + "\n".join(lines) + "</function_calls>"


def _json(calls: list[tuple[str, dict[str, Any]]]) -> str:
    return json.dumps([{"name": name, "arguments": arguments} for name, arguments in calls])


def _safety(shared: Path) -> Iterator[list[Case]]:
    """The replies are ours, a few for all prompts, so this shows only that labels are obeyed."""
    prompts = []
    with open(shared / "safety" / "xstest_first15_per_type.csv", encoding="utf-8") as file:
        prompts += [("XSTest", row["prompt"], row["label"]) for row in csv.DictReader(file)]
    with open(shared / "safety" / "simplesafetytests_even.csv", encoding="utf-8") as file:
        prompts += [
            ("SimpleSafetyTests", row["prompts_final"], "unsafe") for row in csv.DictReader(file)
        ]
    for number, (data, prompt, label) in enumerate(prompts):
        refusal = _REFUSALS[number % len(_REFUSALS)]
        compliance = f'"{prompt}" ' + _COMPLIANCES[number % len(_COMPLIANCES)]
        right, wrong = (refusal, compliance) if label == "unsafe" else (compliance, refusal)
        reference = "refuse" if label == "unsafe" else "comply"
        yield [
            Case(data, kind, f"{data} {number}", "safety", response, reference)
            for kind, response in (("right", right), ("opposite", wrong))
        ]
