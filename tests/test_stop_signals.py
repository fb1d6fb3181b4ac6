"""A stop signal gets through whatever is at work when it comes."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.utils import _DistWrapper
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from megatron_bar.checkpoints import dcp, model_io
from megatron_bar.checkpoints.dcp import CheckpointReader
from megatron_bar.checkpoints.tokenizer_files import load_tokenizer
from megatron_bar.data import rendering
from megatron_bar.data.rendering import run_template
from megatron_bar.launch import processes
from megatron_bar.launch.rehearse.folder import _copy_tokenizer
from megatron_bar.runtime.disk import explain_disk_faults
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.layout import Layout
from megatron_bar.runtime.stopping import (
    CONTINUE_LATER,
    ContinueLater,
    RaiseOnStopSignal,
    heard,
    unheard,
)

pytestmark = pytest.mark.timeout(120)
_SAID = r"^stopped by SIGTERM$"


def _signalled(*_, **__) -> NoReturn:
    """What a library does, that is cut short."""
    signal.raise_signal(signal.SIGTERM)
    time.sleep(60)
    raise AssertionError("no signal came")


@pytest.fixture
def listening() -> Iterator[None]:
    with RaiseOnStopSignal():
        yield


def _no_exception_catches_it(tmp_path, patch) -> None:
    try:
        _signalled()
    except Exception as error:
        raise AssertionError("swallowed") from error


def _while_a_tokenizer_is_loaded(tmp_path, patch) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    patch.setattr(AutoTokenizer, "from_pretrained", _signalled)
    load_tokenizer(tmp_path)


def _while_a_rehearsal_reads_a_tokenizer(tmp_path, patch) -> None:
    patch.setattr(PreTrainedTokenizerFast, "__init__", _signalled)
    _copy_tokenizer(tmp_path / "tokenizer.json", tmp_path)


def _while_a_template_runs(tmp_path, patch) -> None:
    patch.setattr(rendering, "render_jinja_template", _signalled)
    tokenizer = SimpleNamespace(special_tokens_map={})
    run_template(tokenizer, [{"role": "user", "content": "Hi"}], "{{ messages }}", False)


def _while_the_index_of_a_checkpoint_is_read(tmp_path, patch) -> None:
    patch.setattr(dcp, "read_index", _signalled)
    CheckpointReader(tmp_path)


def _while_a_tensor_is_read(tmp_path, patch) -> None:
    state = {"weight": torch.ones(2, 3)}
    torch.distributed.checkpoint.save(state, checkpoint_id=tmp_path, no_dist=True)
    reader = CheckpointReader(tmp_path)
    (chunk,) = reader._index.tensors["weight"].chunks
    patch.setattr(dcp, "bytes_start", _signalled)
    reader._chunk("weight", reader._index.tensors["weight"], chunk)


def _load_in_shards(folder: Path) -> None:
    for name in model_io._FILES:
        (folder / name).touch()
    model_io.load_shards({}, folder)


def _plan_as_torch(function: Callable[[], None]) -> Callable[..., None]:
    def load(*_) -> None:
        ranks = _DistWrapper(None, use_dist=dist.is_initialized(), coordinator_rank=0)
        ranks.all_gather("plan", function)

    return load


def _while_torch_plans_a_load(tmp_path, patch) -> None:
    patch.setattr(model_io.dist_checkpointing, "load", _plan_as_torch(_signalled))
    with process_groups(Layout()):
        _load_in_shards(tmp_path)


def _while_a_fault_of_the_disk_is_dealt_with(tmp_path, patch) -> None:
    with explain_disk_faults(tmp_path):
        try:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        except OSError:
            _signalled()


@pytest.mark.parametrize(
    "work",
    [
        _no_exception_catches_it,
        _while_a_tokenizer_is_loaded,
        _while_a_rehearsal_reads_a_tokenizer,
        _while_a_template_runs,
        _while_the_index_of_a_checkpoint_is_read,
        _while_a_tensor_is_read,
        _while_torch_plans_a_load,
        _while_a_fault_of_the_disk_is_dealt_with,
    ],
    ids=lambda work: work.__name__.strip("_"),
)
def test_it_gets_through(work, listening, tmp_path, monkeypatch):
    with pytest.raises(ContinueLater, match=_SAID):
        work(tmp_path, monkeypatch)


def test_what_fails_because_of_it_is_it():
    with pytest.raises(ContinueLater, match=_SAID), RaiseOnStopSignal():
        try:
            _signalled()
        finally:
            raise RuntimeError("the other ranks have gone")


def test_an_error_without_a_signal_stays_what_it_is():
    with pytest.raises(RuntimeError), RaiseOnStopSignal():
        raise RuntimeError


def test_ctrl_c_twice_is_an_interruption(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(KeyboardInterrupt), RaiseOnStopSignal():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGINT)


def test_signals_wait_again_after_one_that_waited():
    """Else a second one ends a rank before it has told its status.

    Sent to this thread alone: others that the tests' process has would hear it, and end.
    """
    with unheard():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(ContinueLater), RaiseOnStopSignal(), heard():
            pass
        assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_it_is_told_from_one_process_to_another():
    assert str(pickle.loads(pickle.dumps(ContinueLater("stopped by SIGTERM")))) == (
        "stopped by SIGTERM"
    )


def _load_with_a_signal_to_rank_1(folder: Path) -> None:
    with process_groups(Layout(processes=2)):
        work = _signalled if dist.get_rank() == 1 else lambda: None
        model_io.dist_checkpointing.load = _plan_as_torch(work)
        _load_in_shards(folder)


@pytest.mark.distributed
def test_one_rank_that_is_stopped_in_a_load_stops_all(tmp_path):
    log = tmp_path / "log.txt"
    job = processes.start(_load_with_a_signal_to_rank_1, tmp_path, processes=2, log=log)
    with pytest.raises(ContinueLater):
        job.wait()
    assert [rank.exitcode for rank in job.ranks] == [CONTINUE_LATER, CONTINUE_LATER]
    assert log.read_text().splitlines() == ["stopped by SIGTERM"] * 2
