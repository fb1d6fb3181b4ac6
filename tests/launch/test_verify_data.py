"""`megatron-bar verify-data`: references and verifiers that don't fit together are listed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_bar.cli import main
from tests.data.conftest import SHARED
from tests.launch.sample_data import write_lines
from tests.verifiers.real_data import cases

_MINE = """
def score(prompt, response, reference):
    if prompt == "fails":
        return {}[response]
    return 0.5 if prompt == "half" else response == reference

def anything(prompt, response, reference):
    return 1
"""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def item(answer: Any, question: str = "?", reply: str | None = None) -> dict[str, Any]:
    said = [] if reply is None else [{"role": "assistant", "content": reply}]
    return {"messages": [{"role": "user", "content": question}, *said], "answer": answer}


def verify(*tasks: dict[str, Any], rlvr: list[dict[str, Any]] | None = None) -> int:
    domain = {"tasks": list(tasks)}
    if rlvr:
        domain["rlvr"] = {"steps": 1, "data": rlvr}
    Path("recipe.yaml").write_text(
        yaml.safe_dump(
            {
                "name": "law",
                "anchor": "nowhere",
                "domains": {
                    "law": {"sft": {"steps": 1, "data": [{"path": "chats.jsonl"}]}, **domain}
                },
            }
        )
    )
    return main(["verify-data", "recipe.yaml"])


def listed() -> list[tuple[str, str]]:
    lines = Path("runs/law/verify-data.jsonl").read_text().splitlines()
    return [(Path(entry["where"]).name, entry["fault"]) for entry in map(json.loads, lines)]


@pytest.mark.timeout(60)
def test_all_domains_of_the_toy_are_well(here, capsys):
    assert (
        verify(
            *({"toy": domain, "count": 20} for domain in ("math", "code", "tool_use")),
            rlvr=[{"toy": "safety", "count": 20}, {"toy": "general", "count": 20}],
        )
        == 0
    )
    said = capsys.readouterr().out
    judged = (
        "all 20 reference answers earn 1, all 20 empty answers earn 0, all 20 wrong answers earn 0"
    )
    for where in ("law/rlvr, safety: verifier toy/safety", "tasks of law, code: verifier toy/code"):
        assert f"{where}: {judged}" in said
    assert said.count(judged) == 5 and not (here / "runs").exists()


@pytest.mark.timeout(60)
def test_what_is_judged_otherwise_is_listed_with_its_place(here, capsys):
    write_lines(
        here / "sums.jsonl",
        [item("4"), item("4", reply="It is 4."), item("5", reply="It is 4."), item("5", reply="6")],
    )
    Path("mine.py").write_text(_MINE)
    write_lines(
        here / "law.jsonl", [item("2", "?", "2"), item("2", "half", "2"), item("2", "fails", "2")]
    )
    write_lines(here / "likes.jsonl", [item("2", "?", "2")] * 12)
    assert (
        verify(
            {"path": "sums.jsonl", "verifier": "math"},
            {"path": "law.jsonl", "verifier": "mine.py:score"},
            rlvr=[{"path": "likes.jsonl", "verifier": "mine.py:anything"}],
        )
        == 1
    )
    said = capsys.readouterr()
    assert said.err.splitlines() == [
        "megatron-bar: answers that aren't judged as they should be: 32; all are listed in "
        "runs/law/verify-data.jsonl"
    ]
    assert "likes: verifier mine.py:anything: all 12 reference answers earn 1, 0 of 12 empty" in (
        said.out
    )
    assert f"  {here}/likes.jsonl:1: an empty answer earns 1, not 0\n" in said.out
    assert "\n  ... and 14 more\n" in said.out
    found = [entry for entry in listed() if not entry[0].startswith("likes")]
    fails = "verifier mine.py:score can't score an answer to this item of source law: KeyError:"
    assert found == [
        ("sums.jsonl:3", "the reference answer earns 0, not 1"),
        ("sums.jsonl:4", "the reference answer earns 0, not 1"),
        ("law.jsonl:2", "the reference answer earns 0.5, not 1"),
        ("law.jsonl:2", "an empty answer earns 0.5, not 0"),
        ("law.jsonl:2", "a wrong answer earns 0.5, not 0"),
        ("law.jsonl:3", f"the reference answer: {fails} '2' (mine.py:4)"),
        ("law.jsonl:3", f"an empty answer: {fails} '' (mine.py:4)"),
        ("law.jsonl:3", f'a wrong answer: {fails} "I don\'t know." (mine.py:4)'),
    ]
    # What is mended is no longer listed.
    assert verify({"toy": "math", "count": 3}) == 0
    assert not Path("runs/law/verify-data.jsonl").exists()


@pytest.mark.timeout(60)
def test_every_broken_item_is_listed_unless_such_are_left_out(here, capsys):
    write_lines(
        here / "asked.jsonl",
        [item("refuse"), item("comply"), item("neither"), {"messages": []}, item("refuse")],
    )
    source = {"path": "asked.jsonl", "verifier": "safety"}
    assert verify(source) == 1
    assert [where for where, _ in listed()] == ["asked.jsonl:4", "asked.jsonl:3"]
    capsys.readouterr()
    assert verify(source | {"on_bad_item": "skip"}) == 0
    said = capsys.readouterr().out
    assert "asked: 2 bad items were left out, such as" in said and "all 3 reference" in said


def test_sources_and_verifiers_that_are_not_there(here, capsys):
    write_lines(here / "asked.jsonl", [item("refuse")])
    assert (
        verify(
            {"path": "none.jsonl"},
            {"path": "asked.jsonl", "verifier": "savety"},
            {"path": "asked.jsonl", "verifier": "mine.py:score"},
        )
        == 1
    )
    said = capsys.readouterr().err
    assert f"tasks of law: {here}/none.jsonl is not a file" in said
    assert "verifier 'savety' is unknown; there are code, exact" in said
    assert f"verifier {here}/mine.py:score: {here}/mine.py is not a file" in said


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="shared/data isn't beside the project")
@pytest.mark.timeout(120)
def test_real_references_are_well(here, capsys):
    by_data: dict[str, dict[str, Any]] = {}
    for case in cases(SHARED, every=60):
        by_data.setdefault(case.data, {})[case.where] = case
    tasks = []
    for number, items in enumerate(by_data.values()):
        write_lines(
            here / f"part{number}.jsonl",
            [item(case.reference, case.where) for case in items.values()],
        )
        tasks.append({"path": f"part{number}.jsonl", "verifier": case_of(items).verifier})
    assert verify(*tasks) == 0, capsys.readouterr().out
    said = capsys.readouterr().out
    assert said.count("wrong answers earn 0") == len(tasks) == len(by_data)


def case_of(items: dict[str, Any]) -> Any:
    return next(iter(items.values()))


def test_held_out_items_that_training_gives_away_are_listed(here, capsys):
    """They are no fault; a source that isn't there is told."""
    question = "Which of the two parties pays for the repair of a rented boat after a storm?"
    write_lines(
        Path("chats.jsonl"),
        [
            {
                "messages": [
                    {"role": "user", "content": f"Say: {question.upper()}"},
                    {"role": "assistant", "content": "The owner."},
                ]
            },
            {
                "messages": [
                    {"role": "user", "content": "Hello"},
                    {"role": "assistant", "content": "Hello, how can I help you today?"},
                ]
            },
        ],
    )
    other = item("y", "Who keeps the harbour's books?")
    write_lines(Path("exam.jsonl"), [item("x", question), other])
    assert verify({"path": "exam.jsonl", "verifier": "exact"}) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "tasks of law, exam: 1 of 2 items share 50% of their words or more, in runs of 8" in said
    (line,) = Path("runs/law/contamination.jsonl").read_text().splitlines()
    found = json.loads(line)
    assert (found["item"], found["share"], found["in"]) == (1, 1.0, "law/sft")
    write_lines(Path("exam.jsonl"), [other])
    Path("chats.jsonl").unlink()
    assert verify({"path": "exam.jsonl", "verifier": "exact"}) == 0
    assert "chats isn't searched for held-out items" in " ".join(capsys.readouterr().out.split())
    assert not Path("runs/law/contamination.jsonl").exists()
