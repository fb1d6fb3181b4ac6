"""Folders are listed by one rank, however many there are: a file system serves all of a cluster."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from megatron_bar.checkpoints.tokenizer_files import TOKENIZER_FOLDER
from megatron_bar.cli import main
from megatron_bar.launch import processes
from megatron_bar.methods.run import run_stage

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(240)]


def scanning_stage(run: Path, name: str, out: Path) -> None:
    """Run a stage as a rank; write RANK.json: the folders under the run that it listed."""
    listed = []

    def note(event: str, arguments: tuple) -> None:
        if event in ("os.listdir", "os.scandir"):
            folder = arguments[0] or "."
            if isinstance(folder, int):
                folder = os.readlink(f"/proc/self/fd/{folder}")
            if str(run) in os.fsdecode(folder):
                listed.append(os.fsdecode(folder))

    sys.addaudithook(note)
    run_stage(run, name)
    (out / f"{os.environ['RANK']}.json").write_text(json.dumps(listed))


def test_only_the_main_rank_lists_folders(run, tmp_path):
    shutil.rmtree(run / "math" / "sft")
    layout = "domains.math.sft.layout={processes: 2}"
    assert (
        main(["submit", str(run / "recipe.yaml"), f"runs={run.parent}", layout, "--write", "--yes"])
        == 0
    )
    processes.start(
        scanning_stage, run, "math/sft", tmp_path, processes=2, timeout_seconds=200
    ).wait()
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    tokenizer = run / "math" / "branch" / "checkpoint" / TOKENIZER_FOLDER
    # transformers lists it to load it.
    assert set(first) > {str(tokenizer)} >= set(second)
