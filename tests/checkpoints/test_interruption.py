"""Killed at any point, raced by another: the target is whole or not there, and nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from megatron_bar.checkpoints import engine
from megatron_bar.checkpoints.branch import branch
from megatron_bar.checkpoints.convert import export_hf, import_hf
from megatron_bar.checkpoints.merge import merge
from megatron_bar.checkpoints.staging import staged
from megatron_bar.checkpoints.verify import verify_folder
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import staging_path
from megatron_bar.runtime.stopping import ContinueLater
from tests.models_hf import random_dense
from tests.survivors import assert_group_ends

pytestmark = pytest.mark.distributed  # starts processes

# What changes the disk, as Python reports it, besides os.pwrite and os.fsync, of which it doesn't.
AUDITED = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove")


def _in_a_child(function, at_event) -> int:
    """Run `function` in a forked process that calls `at_event(number)` before it changes the disk.

    Returns the child's exit status, negative where a signal ended it.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        torch.set_num_threads(1)  # the parent's threads are not in the fork
        number = 0

        def event():
            nonlocal number
            at_event(number)
            number += 1

        def audit(name, arguments):
            if name in AUDITED and (name != "open" or arguments[1] in ("w", "wb", "a", "xb")):
                event()

        def before(call):
            def called(*arguments):
                event()
                return call(*arguments)

            return called

        os.pwrite, os.fsync = before(os.pwrite), before(os.fsync)
        sys.addaudithook(audit)
        function()
    except BaseException:
        os._exit(1)
    os._exit(0)


def _kill(at: int):
    return lambda number: os.kill(os.getpid(), signal.SIGKILL) if number == at else None


def _content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    random_dense(num_hidden_layers=1).save_pretrained(folder / "hf")
    (folder / "hf" / "vocab.json").write_text("{}")
    import_hf(folder / "hf", folder / "anchor")
    for name in ("math", "code"):
        branch(folder / "anchor", folder / name, expert_name=name)
    return folder


# Every point of an import; the others share its engine, so every few points of them.
CONVERTERS = {
    "import": (1, lambda f, out, **more: import_hf(f / "hf", out, **more)),
    "export": (6, lambda f, out, **more: export_hf(f / "anchor", out, shard_bytes=10**5, **more)),
    "branch": (11, lambda f, out, **more: branch(f / "anchor", out, **more)),
    "merge": (
        11,
        lambda f, out, **more: merge([f / "math", f / "code"], out, f / "anchor", **more),
    ),
}


@pytest.mark.parametrize("stride, convert", CONVERTERS.values(), ids=CONVERTERS)
def test_killed_at_any_point_it_finishes_with_the_same_bytes(
    stride, convert, inputs, tmp_path, small_parts, monkeypatch
):
    convert(inputs, tmp_path / "reference")
    reference = _content(tmp_path / "reference")
    written = []
    monkeypatch.setattr(
        engine,
        "write_part",
        lambda folder, part, write=engine.write_part: written.append(part) or write(folder, part),
    )
    parts_in_all, kept, point = None, 0, 0
    while True:
        status = _in_a_child(lambda: convert(inputs, tmp_path / "out"), _kill(point))
        if status == 0:
            break  # it has fewer events than that
        assert status == -signal.SIGKILL
        recorded = _recorded(tmp_path / ".out.partial")
        finished = (tmp_path / "out").exists()
        if finished:
            assert _content(tmp_path / "out") == reference
        written.clear()
        convert(inputs, tmp_path / "out", overwrite=finished)
        if point == 0:
            parts_in_all = len(written)
        if not finished:
            assert len(written) == parts_in_all - recorded
            kept += recorded
        assert _content(tmp_path / "out") == reference
        assert not (tmp_path / ".out.partial").exists()
        shutil.rmtree(tmp_path / "out")
        point += stride
    assert parts_in_all > 2 and kept > parts_in_all and point > 5 * stride


def _recorded(partial: Path) -> int:
    """Parts that an attempt left, and that the next one can keep."""
    path = partial / "parts.jsonl"
    if not path.is_file() or not (partial / "plan.json").is_file():
        return 0
    lines = [line for line in path.read_text().splitlines() if line.endswith("}}")]
    return len({json.loads(line)["number"] for line in lines})


@pytest.fixture
def half_done(inputs, tmp_path, small_parts):
    """An import that was killed after its second part."""
    source = shutil.copytree(inputs / "hf", tmp_path / "hf")
    point = 0
    while _recorded(tmp_path / ".out.partial") < 2:
        shutil.rmtree(tmp_path / ".out.partial", ignore_errors=True)
        point += 5
        _in_a_child(lambda: import_hf(source, tmp_path / "out"), _kill(point))
    return tmp_path


def test_changed_inputs_start_anew(half_done):
    random_dense(seed=9, num_hidden_layers=1).save_pretrained(half_done / "hf")
    import_hf(half_done / "hf", half_done / "out")
    import_hf(half_done / "hf", half_done / "reference")
    assert _content(half_done / "out") == _content(half_done / "reference")


def test_other_settings_start_anew(half_done):
    import_hf(half_done / "hf", half_done / "out", dtype=torch.bfloat16)
    import_hf(half_done / "hf", half_done / "reference", dtype=torch.bfloat16)
    assert _content(half_done / "out") == _content(half_done / "reference")


def test_parts_whose_file_was_cut_are_written_again(half_done):
    for file in (half_done / ".out.partial" / "whole").glob("*.distcp"):
        os.truncate(file, 100)
    import_hf(half_done / "hf", half_done / "out")
    verify_folder(half_done / "out")


def test_a_stop_signal_leaves_what_is_done(tmp_path):
    target = tmp_path / "target"
    with pytest.raises(ContinueLater), staged(target, overwrite=False) as staging:
        staging.begin("a plan")
        (staging.whole / "part").write_bytes(b"done")
        raise ContinueLater("stopped by SIGTERM")
    assert (staging_path(target) / "whole" / "part").is_file() and not target.exists()


def test_of_two_converters_one_wins_and_the_other_says_so(inputs, tmp_path, small_parts):
    """The child stops before its tenth event until the parent has had its turn."""
    go_read, go_write = os.pipe()
    at_work_read, at_work_write = os.pipe()

    def wait(number):
        if number == 10:
            os.write(at_work_write, b"x")
            os.read(go_read, 1)

    first = os.fork()
    if not first:
        os._exit(abs(_in_a_child(lambda: import_hf(inputs / "hf", tmp_path / "out"), wait)))
    os.read(at_work_read, 1)
    for overwrite in (False, True):
        with pytest.raises(BarError, match="is being written by another converter"):
            import_hf(inputs / "hf", tmp_path / "out", overwrite=overwrite)
    os.write(go_write, b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) == 0
    with pytest.raises(BarError, match="exists already"):
        import_hf(inputs / "hf", tmp_path / "out")
    verify_folder(tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("convert", [c for _, c in CONVERTERS.values()], ids=CONVERTERS)
def test_any_number_of_processes_writes_the_same_bytes(convert, inputs, tmp_path, small_parts):
    convert(inputs, tmp_path / "one", processes=1)
    convert(inputs, tmp_path / "three", processes=3)
    assert _content(tmp_path / "one") == _content(tmp_path / "three")


def test_workers_say_what_is_wrong(inputs, tmp_path, small_parts):
    damaged = shutil.copytree(inputs / "anchor", tmp_path / "damaged")
    with open(damaged / "__0_0.distcp", "r+b") as file:
        file.seek(5000)
        file.write(b"\x01")
    with pytest.raises(BarError, match="is not what"):
        export_hf(damaged, tmp_path / "out", processes=2)
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.partial").exists()


_IMPORT_IN_MANY_PARTS = """
import sys
from megatron_bar.checkpoints import plan
from megatron_bar.cli import main
plan.PART_BYTES = 4_000_000
sys.exit(main())
"""


def test_workers_end_with_a_killed_parent(tmp_path):
    """The command, killed when the first of many parts is recorded, then run again."""
    random_dense(
        vocab_size=1024,
        hidden_size=512,
        intermediate_size=6000,
        num_hidden_layers=4,
    ).save_pretrained(tmp_path / "hf")
    command = [
        sys.executable,
        "-c",
        _IMPORT_IN_MANY_PARTS,
        "import",
        str(tmp_path / "hf"),
        str(tmp_path / "out"),
        "--processes",
        "2",
    ]
    running = subprocess.Popen(command, start_new_session=True)
    while not _recorded(tmp_path / ".out.partial"):
        assert running.poll() is None
        time.sleep(0.005)
    running.kill()
    running.wait()
    assert_group_ends(running.pid, seconds=20)
    assert not (tmp_path / "out").exists()
    subprocess.run(command, check=True)
    assert "manifest.json says" in verify_folder(tmp_path / "out")
