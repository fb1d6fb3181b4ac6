"""Work that is done once, and lines that go back to a step."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from megatron_bar.training.result_file import RESULT_FILE, load_or_run
from megatron_bar.training.step_lines import StepLines, read_lines


@dataclass
class Found:
    number: int


def test_work_is_done_once_and_its_saved_states_go_after_it(tmp_path):
    saved = tmp_path / "resume" / "7"
    calls = []

    def work() -> Found:
        assert saved.is_dir(), "a kill here must find it"
        calls.append(1)
        return Found(len(calls))

    saved.mkdir(parents=True)
    assert load_or_run(tmp_path, Found, work) == Found(1)
    assert not saved.exists()
    # As after a kill between the result and the end of what it had saved.
    saved.mkdir(parents=True)
    assert load_or_run(tmp_path, Found, work) == Found(1)
    assert not saved.exists() and calls == [1]


def test_work_that_fails_leaves_what_it_would_go_on_from(tmp_path):
    (tmp_path / "resume" / "7").mkdir(parents=True)

    def work() -> Found:
        raise KeyError

    with pytest.raises(KeyError):
        load_or_run(tmp_path, Found, work)
    assert (tmp_path / "resume" / "7").is_dir() and not (tmp_path / RESULT_FILE).exists()


def test_lines_past_a_step_are_dropped_and_half_a_line_too(tmp_path):
    path = tmp_path / "lines.jsonl"
    assert read_lines(path) == []
    with StepLines(path, 0) as lines:
        for step in (1, 2, 2, 3):
            lines.add(step, text="a\u2028b")
    with open(path, "a") as file:
        file.write('{"step": 4, "te')
    assert [line["step"] for line in read_lines(path)] == [1, 2, 2, 3]
    with StepLines(path, 2) as lines:
        lines.add(3, text="again")
    assert [(line["step"], line["text"]) for line in read_lines(path)] == [
        (1, "a\u2028b"),
        (2, "a\u2028b"),
        (2, "a\u2028b"),
        (3, "again"),
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["lines.jsonl"]
