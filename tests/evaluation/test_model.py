"""Answers and scores of a checkpoint: the same in every layout, greedy or drawn by the seed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_bar.cli import main
from megatron_bar.data.tokenizer import train_tokenizer
from megatron_bar.data.toy import CHAT_TEMPLATE, texts
from megatron_bar.runtime.files import read_json
from tests.layouts import EXPERTS
from tests.models_hf import imported, random_experts

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]

QUESTIONS = [
    "Tom has 7 cups.",
    "How many?",
    "Say it in a few words, and then say it once more.",
    "2 + 2",
    "Who are you?",
    "Copy: blue",
    "Begin",
]
LENGTH = 6


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A random model of two experts with a tokenizer, as an import leaves it."""
    folder = tmp_path_factory.mktemp("evaluated")
    tokenizer = train_tokenizer(
        list(texts("general", "train", 40, 0)), 320, folder / "hf", CHAT_TEMPLATE
    )
    return imported(random_experts(2, vocab_size=len(tokenizer)), folder)


def ask(checkpoint: Path, items: Path, out: Path, layout: str, *overrides: str) -> dict:
    """The results of `megatron-bar evaluate` in a layout, with all answers."""
    chosen = EXPERTS[layout]
    sizes = {
        "processes": chosen.processes,
        "tensor": chosen.tensor,
        "pipeline": chosen.pipeline,
        "expert": chosen.expert,
        "expert_tensor": chosen.expert_tensor or "null",
    }
    command = [
        "evaluate",
        str(checkpoint),
        "--task",
        f"talk={items}:exact",
        "--out",
        str(out),
        f"max_new_tokens={LENGTH}",
        "batch_size=3",
        *(f"layout.{name}={size}" for name, size in sizes.items()),
        *overrides,
    ]
    assert main(command) == 0
    results = read_json(out / "results.json")
    lines = (out / "answers.jsonl").read_text().splitlines()
    return results | {"answers": [json.loads(line) for line in lines]}


def write_items(path: Path, replies: list[str]) -> Path:
    path.write_text(
        "".join(
            json.dumps({"messages": [{"role": "user", "content": question}], "answer": reply})
            + "\n"
            for question, reply in zip(QUESTIONS, replies)
        )
    )
    return path


@pytest.fixture(scope="module")
def alone(checkpoint, tmp_path_factory) -> tuple[Path, dict]:
    """Items whose references are what the model says, but for every other one; and its results."""
    folder = tmp_path_factory.mktemp("items")
    first = ask(checkpoint, write_items(folder / "asked.jsonl", QUESTIONS), folder / "first", "tp1")
    said = [answer["response"] for answer in first["answers"]]
    replies = [text if i % 2 == 0 else f"not {text}" for i, text in enumerate(said)]
    items = write_items(folder / "items.jsonl", replies)
    return items, ask(checkpoint, items, folder / "alone", "tp1")


def test_scores_are_of_what_the_model_says(alone):
    _, results = alone
    talk = results["tasks"]["talk"]
    assert talk["items"] == [1, 0, 1, 0, 1, 0, 1] and talk["score"] == pytest.approx(4 / 7)
    assert talk["count"] == len(results["answers"]) == 7 and 0 <= talk["cut"] <= 1
    assert len(talk["samples"]) == 5
    assert all(sum(layer_E) == pytest.approx(1) for layer_E in results["routing"]["talk"])
    assert results["temperature"] == 0 and results["samples"] == 1


# Seven items aren't shared evenly by two ranks.
@pytest.mark.parametrize("layout", ["dp2", "tp2ep2", "tp2pp2ep2"])
def test_every_layout_gives_the_same(layout, checkpoint, alone, tmp_path):
    items, expected = alone
    found = ask(checkpoint, items, tmp_path / "out", layout)
    assert found["answers"] == expected["answers"]
    assert found["tasks"]["talk"]["items"] == expected["tasks"]["talk"]["items"]
    for ours, theirs in zip(found["routing"]["talk"], expected["routing"]["talk"], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)


def test_sampled_answers_depend_on_the_seed_alone(checkpoint, alone, tmp_path):
    items, greedy = alone
    drawn = ["temperature=1.5", "samples=3"]
    one = ask(checkpoint, items, tmp_path / "one", "tp1", *drawn)
    two = ask(checkpoint, items, tmp_path / "two", "dp2", *drawn)
    other = ask(checkpoint, items, tmp_path / "other", "tp1", *drawn, "--seed", "1")
    assert one["answers"] == two["answers"] and len(one["answers"]) == 21
    assert one["answers"] != other["answers"]
    assert one["answers"][0]["response"] != greedy["answers"][0]["response"]
    texts_of = [answer["response"] for answer in one["answers"] if answer["item"] == 2]
    assert len(set(texts_of)) > 1


def test_an_item_whose_reference_is_broken_is_left_out(checkpoint, tmp_path):
    """It isn't in the sample that is read before."""
    path = tmp_path / "items.jsonl"
    path.write_text(
        "".join(
            json.dumps({"messages": [{"role": "user", "content": "2 + 2"}], "answer": answer})
            + "\n"
            for answer in ["refuse"] * 101 + ["neither"] + ["refuse"] * 100
        )
    )
    (tmp_path / "recipe.yaml").write_text(
        json.dumps(
            {
                "name": "x",
                "anchor": "elsewhere",
                "route": {"training": {"epochs": 1}},
                "domains": {
                    "talk": {
                        "sft": {"data": [{"path": "x"}], "epochs": 1},
                        "tasks": [{"path": str(path), "verifier": "safety", "on_bad_item": "skip"}],
                    }
                },
            }
        )
    )
    out = tmp_path / "out"
    assert (
        main(
            [
                "evaluate",
                str(checkpoint),
                "--recipe",
                str(tmp_path / "recipe.yaml"),
                "--out",
                str(out),
                "max_new_tokens=2",
            ]
        )
        == 0
    )
    assert read_json(out / "results.json")["tasks"]["talk"]["count"] == 201
    (line,) = (out / "left_out.jsonl").read_text().splitlines()
    left_out = json.loads(line)
    assert left_out["where"] == f"{path}:102"
    assert left_out["reason"].startswith("a safety reference is refuse or comply")
    assert len((out / "answers.jsonl").read_text().splitlines()) == 201


def test_what_does_not_fit_is_reported_in_one_line(checkpoint, alone, tmp_path, capsys):
    items, _ = alone
    long = tmp_path / "long.jsonl"
    long.write_text(
        json.dumps({"messages": [{"role": "user", "content": "word " * 2000}], "answer": "x"})
        + "\n"
    )
    for arguments, message in [
        (["--task", f"talk={long}:exact"], "leaves no room for an answer"),
        (["--task", f"talk={items}:maths"], "'maths' is unknown"),
        (["--task", str(items)], "give NAME=FILE:VERIFIER"),
        ([], "there is nothing to ask"),
        (["--task", f"talk={items}:exact", "samples=2"], "set evaluate.temperature"),
        (["--task", f"talk={items}:exact", "sample=2"], "sample"),
        (["--task", f"talk={items}:exact", "opt_out=[law]"], "there is no expert 'law'"),
        (
            ["--task", f"talk={items}:exact", "layout.tensor=3", "layout.processes=3"],
            "doesn't divide",
        ),
    ]:
        out = tmp_path / "out"
        assert main(["evaluate", str(checkpoint), *arguments, "--out", str(out)]) == 1
        shown = capsys.readouterr().err
        assert message in shown and len(shown.strip().splitlines()) == 1
        assert not out.exists()
