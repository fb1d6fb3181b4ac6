"""The thread that watches a rank."""

from __future__ import annotations

import threading
import time

import pytest

from megatron_bar.runtime import beats, heartbeat
from megatron_bar.runtime.console import progress


@pytest.mark.slow
def test_the_thread_ends_with_what_it_watches(monkeypatch):
    """Left to the interpreter's end amid a call, it aborted ranks that were done."""
    signing = threading.Event()

    def sign_slowly(watch) -> None:
        signing.set()
        time.sleep(0.3)

    monkeypatch.setenv(heartbeat.HANG_MINUTES, "0.1")
    monkeypatch.setattr(heartbeat._Watchdog, "_sign", sign_slowly)
    with heartbeat.watched("math/sft"):
        assert signing.wait(10)
    assert "heartbeat" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize(
    "steps, places, named",
    [
        (
            [42, 42, 41, 42],
            "aaba",
            {2: "behind, at 41 of math/sft where others are at 42: it is in b"},
        ),
        ([42, 41, 41, 42], "aaaa", {1: "behind, at 41", 2: "behind, at 41"}),
        ([42, 42, 42, 42], "aaab", {3: "in b, and 3 ranks are in a"}),
        ([42, 42, 42, 42], "aabb", {}),  # who knows
        ([42, 42, 42, 42], "aaaa", {}),
        ([], "", {}),
    ],
    ids=str,
)
def test_the_rank_that_holds_up_others_is_named_however_they_wait(steps, places, named):
    signs = {
        rank: heartbeat._Sign(f"n{rank}", 0.0, 0.0, "math/sft", *of_rank)
        for rank, of_rank in enumerate(zip(steps, places))
    }
    lines = heartbeat.behind(signs)
    assert lines.keys() == named.keys()
    for rank, words in named.items():
        line = lines[rank]
        assert line.startswith(f"rank {rank} on n{rank} is ") and words in line


def test_ranks_that_do_other_work_are_not_compared():
    signs = {
        rank: heartbeat._Sign("n1", 0.0, 0.0, work, rank, "a")
        for rank, work in enumerate(("tokenizing", "math/sft", "math/sft"))
    }
    assert not heartbeat.behind(signs)


def test_every_rank_counts_the_units_of_its_work(monkeypatch):
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with progress("math/sft", 400) as advance:
            advance(40)
            with progress("math/sft: saved", 2) as advance_inner:
                advance_inner()
                assert beats.done() == ("math/sft: saved", 1)
            advance()
            assert beats.done() == ("math/sft", 41)
        assert beats.done() == ("", 0)
