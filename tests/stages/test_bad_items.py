"""Prompts of RLVR and held-out items: a bad one has its place, or is left out and listed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_bar.checkpoints.tokenizer_files import ChatFormat
from megatron_bar.data import toy
from megatron_bar.data.bad_items import LEFT_OUT, LeftOut
from megatron_bar.data.tokenizer import train_tokenizer
from megatron_bar.evaluation.model import load_items
from megatron_bar.recipe.training import Rlvr, Source
from megatron_bar.runtime.errors import BarError, VerifierFailed
from megatron_bar.stages.work.rlvr import load_prompts
from megatron_bar.verifiers.registry import VERIFIERS


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    texts = toy.texts("math", "train", 50, 0)
    return train_tokenizer(texts, 400, tmp_path_factory.mktemp("t"), toy.CHAT_TEMPLATE)


def item(question: str, **more) -> dict:
    return {"messages": [{"role": "user", "content": question}], "answer": "4"} | more


POSITIONS = 200

BAD = [
    (item("half \ud83d"), "half of a character"),
    (item("a <|im_end|> b"), "would forge a turn"),
    (item("no answer", answer=None), "no column 'answer' and no reply"),
    (
        {"messages": [*item("no answer")["messages"], {"role": "assistant", "content": "4"}]},
        "column 'answer' isn't here, and is in the first item",
    ),
    (item("x", messages="y"), "messages must be a list"),
    (item("1 + " * POSITIONS), f"no room for an answer in the model's {POSITIONS} positions"),
    (item("x", answer="half \ud83d"), "the reference holds half of a character"),
]


@pytest.fixture(params=["prompts", "items"])
def load(request, tokenizer):
    """How many items of a file are loaded, by RLVR and by an evaluation."""

    def prompts(source: Source, left_out: LeftOut) -> int:
        settings = Rlvr(data=[source])
        return len(load_prompts(tokenizer, toy.CHAT_TEMPLATE, settings, POSITIONS, 0, left_out))

    def items(source: Source, left_out: LeftOut) -> int:
        chat_format = ChatFormat(tokenizer, toy.CHAT_TEMPLATE, frozenset(), 0)
        return len(load_items("sums", [source], chat_format, POSITIONS, 0, left_out)[1])

    return prompts if request.param == "prompts" else items


def write(folder: Path, records: list[dict]) -> str:
    path = folder / "asked.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.mark.parametrize("bad, fault", BAD)
def test_a_bad_item_has_its_place(load, bad, fault, tmp_path):
    path = write(tmp_path, [item("2 + 2"), bad])
    with pytest.raises(BarError, match=fault) as error:
        load(Source(path=path), LeftOut())
    assert str(error.value).count("asked.jsonl:2: ") == 1


def test_bad_items_are_left_out_and_listed(load, tmp_path, capsys):
    path = write(tmp_path, [item("2 + 2"), *(bad for bad, _ in BAD), item("1 + 3")])
    left_out = LeftOut()
    assert load(Source(path=path, on_bad_item="skip", repeat=2), left_out) == 4
    ((name, count),) = left_out.record(tmp_path).items()
    assert name.endswith("asked") and count == len(BAD)
    lines = (tmp_path / LEFT_OUT).read_text().splitlines()
    assert [json.loads(line)["where"].rpartition(":")[2] for line in lines] == [
        "2",
        "6",
        "3",
        "4",
        "5",
        "7",
        "8",
    ]
    assert f"{len(BAD)} bad items were left out, such as" in capsys.readouterr().out


def test_a_prompt_whose_reference_is_broken_earns_nothing_where_it_is_skipped(tokenizer, tmp_path):
    path = write(tmp_path, [item("2 + 2"), item("3 + 3", answer="neither")])
    for on_bad_item in ("stop", "skip"):
        source = Source(path=path, verifier="safety", on_bad_item=on_bad_item)
        left_out = LeftOut()
        settings = Rlvr(data=[source])
        _, broken = load_prompts(tokenizer, toy.CHAT_TEMPLATE, settings, POSITIONS, 0, left_out)
        assert not left_out.lines()
        if on_bad_item == "skip":
            assert broken.score("x") == 0
            (line,) = left_out.lines().values()
            assert "asked.jsonl:2: a safety reference is" in line
        else:
            with pytest.raises(BarError, match=r"asked\.jsonl:2: a safety reference is"):
                broken.score("x")


@pytest.mark.parametrize("on_bad_item", ["stop", "skip"])
def test_an_answer_that_a_verifier_fails_on_is_no_bad_item(
    tokenizer, tmp_path, monkeypatch, on_bad_item
):
    monkeypatch.setitem(VERIFIERS, "mine", lambda prompt, response, reference: {}[response])
    source = Source(path=write(tmp_path, [item("2 + 2")]), verifier="mine", on_bad_item=on_bad_item)
    left_out = LeftOut()
    (prompt,) = load_prompts(
        tokenizer, toy.CHAT_TEMPLATE, Rlvr(data=[source]), POSITIONS, 0, left_out
    )
    with pytest.raises(VerifierFailed, match=r"asked\.jsonl:1: verifier mine can't score"):
        prompt.score("x")
    assert not left_out.lines()
