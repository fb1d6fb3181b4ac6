"""One node's ranks as a job starts them: exit statuses, warnings, and a rank that hangs."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_bar.launch.slurm.attempts import read_attempts
from megatron_bar.launch.slurm.node import FAILED, TRY_AGAIN, main
from megatron_bar.launch.slurm.nodes import Failure, Nodes
from megatron_bar.runtime.stopping import CONTINUE_LATER

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(120)]

_NODE = """
import sys
from megatron_bar.launch.slurm import nodes
from megatron_bar.launch.slurm.node import run_ranks
nodes.SILENT_SECONDS = nodes.ENDING_SECONDS = 3.0
status, failure = run_ranks([sys.executable, "-c", sys.argv[1]], "math/sft", 2)
print(failure)
sys.exit(status)
"""
_HANGS = """
import os, time, torch, torch.distributed as dist
from megatron_bar.runtime.heartbeat import watched
with watched("math/sft"):
    dist.init_process_group("gloo")
    if os.environ["RANK"] == "1":
        time.sleep(1000)
    dist.all_reduce(torch.zeros(1))
    dist.destroy_process_group()  # its threads abort a process that ends amid their work
"""


def _free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def _start(program: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", _NODE, program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | _environment() | environment,
        start_new_session=True,
    )


def _environment() -> dict[str, str]:
    """What SLURM and the job script tell the launcher of a job's one node."""
    return {
        "SLURM_NODEID": "0",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_JOB_ID": "7",
        "SLURMD_NODENAME": "n1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": _free_port(),
    }


def _start_two(program: str) -> list[subprocess.Popen]:
    """Two nodes of one job, n1 and n2, with ranks 0, 1 and 2, 3."""
    port = _free_port()
    return [
        _start(
            program,
            SLURM_NODEID=str(node),
            SLURM_STEP_NUM_NODES="2",
            SLURMD_NODENAME=f"n{node + 1}",
            MASTER_PORT=port,
        )
        for node in range(2)
    ]


@pytest.mark.parametrize(
    "program, status, said",
    [
        ("pass", 0, ""),
        ("import sys; sys.exit(75)", CONTINUE_LATER, ""),
        (
            "import os, sys, time; time.sleep(3 * int(os.environ['RANK'])); sys.exit(75)",
            CONTINUE_LATER,
            "",
        ),
        (
            "import os, sys, time; rank = int(os.environ['RANK']); time.sleep(60 * rank); "
            "sys.exit(3)",
            FAILED,
            "math/sft: rank 0 on n1 ended with exit status 3",
        ),
        (
            "import os, time; time.sleep(60) if os.environ['RANK'] == '0' else "
            "os.kill(os.getpid(), 9)",
            TRY_AGAIN,
            "math/sft: rank 1 on n1 was ended by SIGKILL",
        ),
    ],
)
def test_the_ranks_exit_status_is_kept(program, status, said):
    node = _start(program)
    shown = node.communicate()[1]
    assert node.returncode == status, shown
    assert said in shown


@pytest.mark.parametrize(
    "number, ready",
    [
        (signal.SIGUSR1, True),
        (signal.SIGTERM, True),
        (signal.SIGINT, True),
        (signal.SIGUSR1, False),
    ],
    ids=["time limit", "preemption", "Ctrl-C", "while starting"],
)
def test_a_warning_reaches_ranks_and_ends_in_going_on_later(number, ready, tmp_path):
    handler = f"signal.signal({int(number)}, lambda *_: sys.exit(75))" if ready else ""
    node = _start(
        f"import os, signal, sys, time; {handler}\n"
        f"open(r'{tmp_path}/' + os.environ['RANK'], 'w').close(); time.sleep(100)"
    )
    while len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.1)
    node.send_signal(number)
    shown = node.communicate()[1]
    assert node.returncode == CONTINUE_LATER, shown


def test_a_rank_that_hangs_is_named_with_its_host_and_stage():
    node = _start(_HANGS, MEGATRON_BAR_HANG_MINUTES="0.1")
    shown = node.communicate()[1]
    assert node.returncode == TRY_AGAIN
    assert "[n1 rank 1] math/sft: rank 1 on n1 has made no progress" in shown, shown
    assert "it is in <module> (<string>:7)" in shown


def test_the_flight_recorder_is_asked_who_is_behind(tmp_path):
    """Of gloo here, which numbers collectives as NCCL's does."""
    program = _HANGS.replace("    if os", "    dist.all_reduce(torch.zeros(1))\n    if os")
    node = _start(
        program,
        MEGATRON_BAR_HANG_MINUTES="0.1",
        TORCH_FR_BUFFER_SIZE="100",
        TORCH_FR_DUMP_TEMP_FILE=str(tmp_path / "flight-"),
    )
    failure, shown = node.communicate()
    assert node.returncode == TRY_AGAIN
    assert (
        "math/sft: rank 0 on n1 sees that rank 1 on n1 is behind: the last collective of "
        "default_pg that it came to is number 1, gloo:all_reduce, and others wait in number 2, "
        "gloo:all_reduce; it is in <module> (<string>:8)" in shown
    ), shown
    assert "hosts=('n1',)" in failure
    numbers = [
        [entry["collective_seq_id"] for entry in pickle.loads(path.read_bytes())["entries"]]
        for path in sorted(tmp_path.iterdir())
    ]
    assert numbers == [[1, 2], [1]]  # what torchfrtrace reads


def test_a_rank_that_can_say_nothing_any_more_is_named_by_the_others():
    holds_the_interpreter = "import ctypes; ctypes.PyDLL(None).sleep(1000)"
    # Nor does its flight record come, for which the others wait.
    waits = "from megatron_bar.runtime import heartbeat; heartbeat.RECORDS_SECONDS = 2"
    node = _start(
        waits + _HANGS.replace("time.sleep(1000)", holds_the_interpreter),
        MEGATRON_BAR_HANG_MINUTES="0.1",
    )
    shown = node.communicate()[1]
    assert node.returncode == TRY_AGAIN
    assert "math/sft: rank 0 on n1 has made no progress" in shown, shown
    assert "it waits for other ranks" in shown
    assert "rank 0 on n1 sees that rank 1" in shown and "sign of life" in shown, shown


def test_ranks_may_wait_for_one_that_works():
    works = "[(beat(), time.sleep(1)) for _ in range(25)]"
    program = _HANGS.replace("import watched", "import beat, watched").replace(
        "time.sleep(1000)", works
    )
    node = _start(program, MEGATRON_BAR_HANG_MINUTES="0.3")
    shown = node.communicate()[1]
    assert node.returncode == 0, shown


def test_a_rank_that_is_killed_ends_all_nodes_within_seconds(tmp_path):
    """The other ranks just wait, as they would in a kernel of NCCL's."""
    nodes = _start_two(
        f"import os, time; open(r'{tmp_path}/' + os.environ['RANK'], 'w').close()\n"
        f"while os.environ['RANK'] != '3' or len(os.listdir(r'{tmp_path}')) < 4: time.sleep(0.1)\n"
        "os.kill(os.getpid(), 9)"
    )
    while not (tmp_path / "3").exists():
        time.sleep(0.1)
    killed = time.monotonic()
    shown = [node.communicate() for node in nodes]
    assert time.monotonic() - killed < 15
    assert [node.returncode for node in nodes] == [TRY_AGAIN] * 2, shown
    for _, said in shown:
        assert "math/sft: rank 3 on n2 was ended by SIGKILL" in said
    failure = "Failure(what='rank 3 on n2 was ended by SIGKILL', hosts=('n2',), again=True)"
    assert [out.strip() for out, _ in shown] == [failure, "None"]


@pytest.mark.parametrize(
    "does, status, lines",
    [
        ("exit 0", 0, []),
        ("exit 75", CONTINUE_LATER, []),
        ("exit 3", FAILED, []),
        ("kill -9 $$", TRY_AGAIN, ["n1", "merged: rank 0 on n1 was ended by SIGKILL"]),
    ],
)
def test_a_lone_process_is_watched_as_ranks_are(does, status, lines, tmp_path, monkeypatch):
    """What stands for Python ends as a stage may."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{does}\n")
    python.chmod(0o755)
    (tmp_path / "slurm").mkdir()
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(sys, "argv", ["node", "--ranks", "1", str(tmp_path), "merged"])
    for name, value in _environment().items():
        monkeypatch.setenv(name, value)
    assert main() == status
    failed = tmp_path / "slurm" / "failed-nodes.txt"
    said = failed.read_text() if failed.exists() else ""
    assert bool(said) == bool(lines) and all(line in said for line in lines)
    (attempt,) = read_attempts(tmp_path, "merged", "7")
    assert ("failure" in attempt) == (status in (FAILED, TRY_AGAIN))


def test_nodes_whose_ranks_save_at_different_times_all_go_on_later():
    nodes = _start_two("import os, sys, time; time.sleep(int(os.environ['RANK'])); sys.exit(75)")
    assert [(node.communicate()[0], node.returncode) for node in nodes] == [("None\n", 75)] * 2


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_node_takes_the_blame_and_others_end(lost, tmp_path):
    program = (
        f"import os, time; open(r'{tmp_path}/' + os.environ['RANK'], 'w').close(); time.sleep(99)"
    )
    nodes = _start_two(program)
    while len(list(tmp_path.iterdir())) < 4:
        time.sleep(0.1)
    time.sleep(1)  # for signs of life
    os.killpg(nodes[lost].pid, signal.SIGKILL)
    out, shown = nodes[1 - lost].communicate()
    assert nodes[1 - lost].returncode == TRY_AGAIN, shown
    assert f"math/sft: n{lost + 1} gave no sign of life any more" in shown
    assert f"hosts=('n{lost + 1}',), again=True" in out


def test_a_failure_at_the_very_end_is_passed_on(monkeypatch):
    """The ranks fail and the launcher leaves while a round of news is under way."""
    nodes = Nodes(0, 1, "n1", "127.0.0.1", int(_free_port()))
    failure = Failure("rank 0 on n1 ended with exit status 3")

    def fail_and_leave() -> None:
        monkeypatch.undo()
        nodes.fail(failure)
        nodes._ended = True

    monkeypatch.setattr(nodes, "_look_for_signs", fail_and_leave)
    nodes.start()
    nodes.join(10)
    assert nodes.failure == failure
