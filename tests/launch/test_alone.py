"""A training by itself: what it takes for its own, and what it does when it is to stop."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path

import pytest

from megatron_bar.launch import alone
from megatron_bar.recipe.training import Training
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import write_json
from megatron_bar.runtime.stopping import ContinueLater
from megatron_bar.stages.context import BEGUN_FILE, DONE_FILE, prepare_folder
from megatron_bar.stages.train import SftStage


@pytest.fixture
def start(tmp_path) -> Path:
    folder = tmp_path / "start"
    folder.mkdir()
    (folder / "model.json").write_text("{}")
    return folder


def _context(start: Path, **settings) -> alone.AloneContext:
    stage = SftStage("law-sft", training=Training(**{"steps": 3, **settings}), seed=0)
    return alone._context(stage, start, start.parent)


def test_what_was_cut_short_goes_on_and_nothing_else_is_touched(start):
    prepare_folder(_context(start))
    assert alone._is_done(_context(start), overwrite=False) is False
    assert alone._is_done(_context(start, save_every=7), overwrite=False) is False
    with pytest.raises(BarError, match=r"holds another training \(.*lr is 0.1, was 0.0001\)"):
        alone._is_done(_context(start, lr=0.1), overwrite=False)
    assert alone._is_done(_context(start, lr=0.1), overwrite=True) is False
    (start / "model.json").write_text("{ }")
    os.utime(start / "model.json", (1, 1))  # a digest is remembered by size and time
    with pytest.raises(BarError, match=r"it started from .*start as that was then"):
        alone._is_done(_context(start), overwrite=False)


def test_what_is_done_is_done_with_the_same_settings_alone(start):
    context = _context(start)
    prepare_folder(context)
    write_json(context.folder / DONE_FILE, alone.read_begun(context.folder))
    assert (context.folder / BEGUN_FILE).is_file()
    assert alone._is_done(context, overwrite=False) is True
    assert alone._is_done(_context(start, lr=0.1), overwrite=True) is False


def test_a_folder_of_something_else_is_never_emptied(start):
    folder = start.parent / "law-sft"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(BarError, match="holds something else than a training"):
            alone.train_alone(_context(start).stage, start, start.parent, overwrite)
    assert (folder / "thesis.tex").read_text() == "years of work"


@dataclasses.dataclass
class _Job:
    """Ranks that stop when they are asked to; polled, they have a signal come to this process."""

    asked_to_stop: bool = False
    asked: list[int] = dataclasses.field(default_factory=list)

    def poll(self) -> bool:
        if self.asked_to_stop:
            raise ContinueLater("its ranks were asked to stop")
        os.kill(os.getpid(), signal.SIGTERM)
        return False

    def ask_to_stop(self, number: int) -> None:
        self.asked_to_stop = True
        self.asked.append(number)


def test_a_stop_signal_has_the_ranks_save(tmp_path, capsys):
    job = _Job()
    with pytest.raises(ContinueLater):
        alone._wait(job, "law-sft", tmp_path / "log.txt")
    assert job.asked == [signal.SIGTERM]
    assert "law-sft: asked to save and stop" in capsys.readouterr().out
