"""vLLM servers on nodes of their own: ordered by a stage, started and watched by a launcher."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest

from megatron_bar.cli import main
from megatron_bar.generation.node_servers import (
    FOLDER_VARIABLE,
    NodeServer,
    Order,
    job_folder,
)
from megatron_bar.generation.openai_api import OpenAIApi, ServerFault
from megatron_bar.generation.places import places
from megatron_bar.launch import processes
from megatron_bar.launch.slurm import servers
from megatron_bar.launch.slurm.failed_nodes import failed_nodes_path
from megatron_bar.launch.slurm.servers import Launcher
from megatron_bar.recipe.training import Rlvr
from megatron_bar.rlvr.settings import check_settings
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.layout import Layout
from megatron_bar.training.metrics import read_metrics
from tests.generation.openai_server import ONE_AT_A_TIME, TakesWeights, serving
from tests.generation.test_vllm_process import SERVER, _end, _pids
from tests.generation.vllm_stand_in import python_in
from tests.rlvr import ranks

ROOT = Path(__file__).parents[2]


def _python(folder: Path, server: str) -> str:
    """A Python whose vLLM is the program `server`."""
    (folder / "server.py").write_text(server)
    return python_in(folder, f"{sys.executable} {folder / 'server.py'}")


def _server(folder: Path, *options: str, devices=(0,)) -> NodeServer:
    order = Order(
        0,
        _python(folder, SERVER),
        list(options),
        str(folder / "model"),
        str(folder / "log"),
        5.0,
        list(devices),
    )
    return NodeServer("0-0", order, folder)


@pytest.fixture
def launched(monkeypatch):
    """Starts launchers, which look for orders until the test's end; the notes of each."""
    monkeypatch.setattr(servers, "RETRY_SECONDS", 1.0)
    over = threading.Event()

    def start(job: Path, node: int = 0) -> list[str]:
        notes: list[str] = []
        launcher = Launcher(job, node, "127.0.0.1", notes.append)

        def look() -> None:
            while not over.wait(0.05):
                launcher.look()

        threading.Thread(target=look, daemon=True).start()
        return notes

    yield start
    over.set()


def _until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_servers_fill_their_nodes():
    assert list(places(2, 4, ["--tensor-parallel-size=2"])) == [
        ("0-0", [0, 1]),
        ("0-1", [2, 3]),
        ("1-0", [0, 1]),
        ("1-1", [2, 3]),
    ]
    options = ["-tp", "2", "--dtype", "bfloat16", "--pipeline_parallel_size", "2"]
    assert list(places(1, 4, options)) == [("0-0", [0, 1, 2, 3])]
    assert len(list(places(1, 8, []))) == 8
    with pytest.raises(BarError, match=r"servers of 3 GPUs, .*, don't fill a node of 8"):
        list(places(1, 8, ["-tp", "3"]))


def test_on_one_machine_the_key_is_refused(tmp_path, capsys):
    recipe = ROOT / "examples" / "toy-rl.yaml"
    command = ["run", str(recipe), "--dry-run", f"runs={tmp_path / 'runs'}"]
    keys = {"rollout_nodes": 1, "rollout_python": python_in(tmp_path)}
    assert main([*command, *(f"domains.code.rlvr.{key}={keys[key]}" for key in keys)]) == 1
    shown = capsys.readouterr().err
    assert "code/rlvr: rollout_nodes are nodes of a SLURM job, which `submit` asks for" in shown
    assert len(shown.strip().splitlines()) == 1
    with pytest.raises(BarError, match="nodes of a SLURM job"):
        job_folder()


def test_servers_with_gpus_of_their_own_need_no_sleep():
    settings = Rlvr(**ranks.SETTINGS | dict(rollout_nodes=1, rollout_python="p"))
    check_settings(settings, Layout())
    with pytest.raises(BarError, match="rollout_sleep is for servers that share GPUs"):
        check_settings(dataclasses.replace(settings, rollout_sleep=True), Layout())
    with pytest.raises(BarError, match="rollout_options: argument -tp"):
        check_settings(dataclasses.replace(settings, rollout_options=["-tp", "all"]), Layout())


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_server_is_started_found_started_anew_when_it_dies_and_stopped(
    tmp_path, launched, monkeypatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    notes, server = launched(tmp_path), _server(tmp_path, devices=(2, 3))
    server.take_weights()
    first = server.api.address
    assert server.api.serves() and "GPUs 6,7\n" in (tmp_path / "log").read_text()
    for times in (1, 2):
        os.kill(_pids(tmp_path)[-2], signal.SIGKILL)
        _until(lambda: server.state().address is None, "its death isn't seen")
        with pytest.raises(ServerFault, match="vLLM server 0-0 is being started"):
            server.take_weights()
        server.recover()  # asks for nothing, as it is on its way
        _until(lambda: server.state().address is not None, "it doesn't come back")
        assert len(_pids(tmp_path)) == 2 + 2 * times
    assert notes == ["vLLM server 0-0 on 127.0.0.1 was ended by SIGKILL"]  # of the first alone
    # This one takes no weights, and is started anew for that.
    with pytest.raises(ServerFault, match="/collective_rpc answers 501"):
        server.take_weights()
    assert server.api.address != first
    server.recover()
    _until(lambda: server.state().address is not None, "it doesn't come back")
    server.take_weights_anew()
    assert server.api.serves() and len(_pids(tmp_path)) == 10 and len(notes) == 1
    server.stop()
    _end(_pids(tmp_path))


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_why_one_does_not_start_is_said_and_it_is_tried_again(tmp_path, launched, monkeypatch):
    launched(tmp_path)
    server = _server(tmp_path, "--broken")
    with pytest.raises(ServerFault, match=r"server 0-0: vLLM ended .*no such model.*127.0.0.1\)"):
        server.take_weights()
    _until(lambda: len(_pids(tmp_path)) >= 4, "it isn't tried again")
    with pytest.raises(ServerFault, match=r"vLLM server 0-0 (is being started|: vLLM ended)"):
        server.take_weights()
    server.stop()
    _end(_pids(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    (tmp_path / "few").mkdir()
    launched(tmp_path / "few")
    without = _server(tmp_path / "few", devices=(1,))
    with pytest.raises(ServerFault, match="the job has 1 GPUs here, and GPU 1 is asked for"):
        without.take_weights()
    without.stop()


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_servers_end_with_their_launcher(tmp_path):
    (tmp_path / "slurm").mkdir()
    command = [
        sys.executable,
        "-m",
        "megatron_bar.launch.slurm.servers",
        str(tmp_path),
        "math/rlvr",
    ]
    environment = os.environ | {"SLURM_PROCID": "0", FOLDER_VARIABLE: str(tmp_path)}
    with subprocess.Popen(command, env=environment | {"SLURMD_NODENAME": "n5"}) as launcher:
        server = _server(tmp_path)
        server.take_weights()
        os.kill(_pids(tmp_path)[0], signal.SIGKILL)
        _until(failed_nodes_path(tmp_path).exists, "the node isn't noted")
        _until(lambda: server.state().address is not None, "it doesn't come back")
        launcher.terminate()
    note = failed_nodes_path(tmp_path).read_text()
    assert note.startswith("n5  ") and "math/rlvr: vLLM server 0-0 on " in note
    _end(_pids(tmp_path))


class _Policy(TakesWeights):
    """The first of all dies over its first question."""

    def __init__(self, folder: Path, process: _Served) -> None:
        self.process = process
        super().__init__(folder)

    def post(self, path, content):
        if path == "/v1/completions" and "prompt_logprobs" not in content:
            with ONE_AT_A_TIME:
                if not _Served.deaths:
                    _Served.deaths.append(self.process)
            if self.process in _Served.deaths:
                raise ConnectionAbortedError
        return super().post(path, content)


class _Served:
    """Stands in for VllmProcess, in this process."""

    deaths: ClassVar[list[_Served]] = []

    def __init__(self, python, options, folder, log, host, answer_seconds, devices) -> None:
        self.folder, self.stack = folder, contextlib.ExitStack()
        self.api: OpenAIApi | None = None

    def start(self) -> None:
        address = self.stack.enter_context(serving(_Policy(self.folder, self)))
        self.api = self.stack.enter_context(contextlib.closing(OpenAIApi(address, 60.0)))

    @property
    def runs(self) -> bool:
        return self.api is not None and self not in self.deaths

    @property
    def ended_by(self) -> str | None:
        return "SIGKILL" if self in self.deaths else None

    def stop(self) -> None:
        self.stack.close()
        self.api = None


@pytest.mark.distributed
@pytest.mark.timeout(120)
def test_a_stage_loses_no_step_to_a_server_that_dies(two_experts, tmp_path, launched, monkeypatch):
    """Two nodes of a server each, of which one dies over the first question."""
    job, run = tmp_path / "job", tmp_path / "run"
    job.mkdir()
    run.mkdir()
    monkeypatch.setattr(servers, "VllmProcess", _Served)
    monkeypatch.setattr(_Served, "deaths", [])
    notes = [launched(job, node) for node in (0, 1)]
    served = dict(rollout_nodes=2, rollout_python=python_in(tmp_path), steps=2)
    processes.start(
        ranks.run_reinforce_in_a_job,
        job,
        two_experts / "checkpoint",
        Layout(),
        Rlvr(**ranks.SETTINGS | served),
        run,
        timeout_seconds=100,
    ).wait()
    metrics = read_metrics(run)
    assert len(metrics) == 2 and len(_Served.deaths) == 1
    for line in metrics:
        assert line["rollout_logprob_gap_max"] < 1e-4 and line["refresh_logprob_gap"] < 1e-4
    assert sorted(map(len, notes)) == [0, 1]
    assert not list(job.glob("*.order.json"))  # launchers end what they have
