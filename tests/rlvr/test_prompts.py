"""Which prompts are asked, and which rest."""

from __future__ import annotations

import json

import pytest

from megatron_bar.launch import processes
from megatron_bar.rlvr.prompts import PromptOrder
from tests.rlvr import ranks


def _advance(order: PromptOrder, count: int) -> list[int]:
    asked = order.peek(count)
    order.pass_by(asked)
    return asked.prompts


def test_an_epoch_asks_every_prompt_once_in_an_order_of_its_own():
    order = PromptOrder(10, seed=3)
    first = _advance(order, 5) + _advance(order, 5)
    second = _advance(order, 5) + _advance(order, 5)
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_peeking_moves_nothing_and_a_restored_order_goes_on():
    order = PromptOrder(10, seed=3)
    _advance(order, 7)
    order.rest([1, 2])
    again = PromptOrder(10, seed=3)
    again.restore(order.state())
    assert order.peek(6) == order.peek(6) == again.peek(6)
    assert _advance(order, 6) == _advance(again, 6)


def test_solved_prompts_rest():
    order = PromptOrder(6, seed=0)
    order.rest([0, 1, 2])
    assert all(set(_advance(order, 3)) == {3, 4, 5} for _ in range(4))


def test_no_prompt_twice_in_a_step_even_over_an_epochs_end():
    order = PromptOrder(5, seed=0)
    for _ in range(10):
        assert len(set(_advance(order, 4))) == 4


def test_all_are_asked_again_where_too_few_are_awake():
    order = PromptOrder(4, seed=0)
    order.rest([0, 1, 2])
    assert len(set(_advance(order, 3))) == 3


def test_the_prompts_after_those_that_are_under_way():
    order = PromptOrder(6, seed=0)
    first = order.peek(2)
    ahead = order.peek(2, after=first)
    assert order.peek(2) == first  # nothing has moved, so that a stop asks both again
    order.pass_by(first)
    assert order.peek(2) == ahead


def _loaded(tmp_path, *lines: dict) -> list:
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    processes.start(ranks.load_prompts_of, path, tmp_path, processes=2, timeout_seconds=120).wait()
    return [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.distributed
def test_one_rank_reads_the_prompts_for_all(tmp_path):
    asked = [
        {"messages": [{"role": "user", "content": text}], "answer": text} for text in ("one", "two")
    ]
    (reads, first), (others_reads, second) = _loaded(tmp_path, *asked)
    assert (reads, others_reads) == (1, 0)
    assert first == second
    assert [scores for _, *scores in first] == [[1, 0], [0, 1]]


@pytest.mark.distributed
def test_what_is_wrong_with_the_prompts_is_told_by_all_ranks(tmp_path):
    (_, fault), (_, others_fault) = _loaded(tmp_path, {"messages": "none"})
    assert fault == others_fault and "items.jsonl:1" in fault
