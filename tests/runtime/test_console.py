"""A log's line of progress is understood again."""

from __future__ import annotations

from megatron_bar.runtime import console
from megatron_bar.runtime.console import progress, read_progress


def test_the_last_line_of_progress_is_read_back(monkeypatch, capsys):
    monkeypatch.setattr(console, "LOG_EVERY_SECONDS", 0.0)
    with progress("math/sft", 400) as advance:
        advance(0)  # a sign of life: nothing is done yet
        advance(100)
        advance(20, note="loss 1.234")
    log = "math/sft: 400 steps, layout tp1\n" + capsys.readouterr().out + "Traceback: 1/2\n"
    last = read_progress(log)
    assert (last.what, last.done, last.total) == ("math/sft", 120, 400)
    assert last.seconds_left >= 0
    assert read_progress("nothing here: 3/4\n") is None


def test_a_notebook_has_one_line_that_goes_in_the_end(monkeypatch, capsys):
    monkeypatch.setattr(console.console, "is_jupyter", True)
    monkeypatch.setattr(console, "NOTEBOOK_EVERY_SECONDS", 0.0)
    with progress("stages", 4) as advance:
        advance(1)
        advance(1, note="math/sft")
    first, second, cleared, end = capsys.readouterr().out.split("\r")[1:]
    assert first.startswith("stages: 1/4, ") and second.rstrip().endswith("s left math/sft")
    assert not cleared.strip() and len(cleared) == len(first) == len(second) and not end
