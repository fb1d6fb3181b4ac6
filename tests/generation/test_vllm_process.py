"""A server process of our own, with a stand-in for vLLM: started, watched, stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_bar.generation import vllm_process
from megatron_bar.generation.openai_api import ServerFault
from megatron_bar.generation.vllm_process import Vllm, VllmProcess, find_vllm
from megatron_bar.runtime.errors import BarError

# Serves /health, and has a child as vLLM has its engine; or says why not, and ends.
SERVER = """
import http.server, os, subprocess, sys
child = subprocess.Popen(["sleep", "1000"])
print("pids", os.getpid(), child.pid, flush=True)
if "--broken" in sys.argv:
    sys.exit("ValueError: no such model")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if "--deaf" not in sys.argv else 503)
        self.end_headers()
host, port = (sys.argv[sys.argv.index(option) + 1] for option in ("--host", "--port"))
http.server.HTTPServer((host, int(port)), Handler).serve_forever()
"""


def _process(folder: Path, *options: str) -> VllmProcess:
    (folder / "server.py").write_text(SERVER)
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {folder / "server.py"} "$@"\n')
    python.chmod(0o755)
    return VllmProcess(str(python), options, folder / "model", folder / "log", "127.0.0.1", 5.0)


def _pids(folder: Path) -> list[int]:
    return [
        int(pid)
        for line in (folder / "log").read_text().splitlines()
        if line.startswith("pids")
        for pid in line.split()[1:]
    ]


def _run(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def _end(pids: list[int]) -> None:
    deadline = time.monotonic() + 10
    while any(map(_run, pids)):
        assert time.monotonic() < deadline, "they go on"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_it_is_started_anew_and_stopped_with_all_that_it_started(tmp_path):
    process = _process(tmp_path)
    assert not process.runs
    process.start()
    first = process.api.address
    assert process.runs and process.api.serves()
    process.start()
    assert process.runs and process.api.address != first
    _end(_pids(tmp_path)[:2])
    process.stop()
    assert not process.runs
    assert len(_pids(tmp_path)) == 4
    _end(_pids(tmp_path))
    process.stop()  # once more does no harm


@pytest.mark.timeout(60)
def test_one_that_dies_is_seen(tmp_path):
    process = _process(tmp_path)
    process.start()
    os.kill(_pids(tmp_path)[0], signal.SIGKILL)
    _end(_pids(tmp_path)[:1])
    assert not process.runs
    process.stop()
    _end(_pids(tmp_path))


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_it_ends_with_a_trainer_that_is_killed(tmp_path):
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from tests.generation.test_vllm_process import _process\n"
        "_process(Path(sys.argv[1])).start()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=Path(__file__).parents[2])
    assert len(_pids(tmp_path)) == 2
    _end(_pids(tmp_path))


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_why_it_does_not_start_is_said(tmp_path, monkeypatch):
    broken = _process(tmp_path, "--broken")
    with pytest.raises(ServerFault, match=r"exit status 1: ValueError: no such model; all .*log"):
        broken.start()
    broken.stop()
    monkeypatch.setattr(vllm_process, "START_SECONDS", 0.1)
    deaf = _process(tmp_path, "--deaf")
    with pytest.raises(ServerFault, match="vLLM isn't ready after 0 s"):
        deaf.start()
    deaf.stop()
    _end(_pids(tmp_path))


def test_a_python_without_vllm_is_refused(tmp_path):
    with pytest.raises(BarError, match=r"no Python that has vLLM: .*PackageNotFoundError"):
        find_vllm(sys.executable)
    with pytest.raises(BarError, match=r"no Python that has vLLM: .*No such file"):
        find_vllm(str(tmp_path / "python"))


def test_olmo3_is_refused_beside_a_transformers_that_computes_it_wrongly():
    for version, family, wrong in (
        ("5.12.1", "olmo3", True),
        ("5.0.0", "olmo3", True),
        ("5.13.0", "olmo3", False),
        ("4.57.6", "olmo3", False),
        ("5.12.1", "olmo2", False),
    ):
        vllm = Vllm(version, on_cpu=False)
        if wrong:
            with pytest.raises(BarError, match=r"5.0 to 5.12 compute OLMo-3 wrongly"):
                vllm.check_model(family)
        else:
            vllm.check_model(family)
