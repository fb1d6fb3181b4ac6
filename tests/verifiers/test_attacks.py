"""The table of attacks: nothing is earned, nothing outlives its limit, nothing outside is touched.

All attacks run first, four at a time; then one test each looks at what came of it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from megatron_bar.verifiers.sandbox import Limits, Sandbox
from tests.verifiers.attacks import AIMED_FORGERIES, DEVICES, ESCAPES, FORGERIES

pytestmark = pytest.mark.sandbox
LIMITS = Limits(wall=2.0, cpu=1.0, memory=512 << 20, output=1 << 20)
# What some forgeries hope for: that the tests have a class whose methods they can hide.
CASE = "class Case:\n    def right(self):\n        return False"
SQUARES = ["assert f(3) == 9", "assert f(4) == 16", "assert f(-5) == 25"]
HONEST = "def f(n):\n    return n * n"


class Outcome(NamedTuple):
    passed: list[bool]
    stdout: str
    seconds: float


class Field(NamedTuple):
    """What came of the attacks, and what they could have hurt."""

    sandbox: Sandbox
    outcomes: dict[str, Outcome]
    targets: dict[str, Any]
    devices: dict[str, int]
    server: socket.socket
    datagrams: socket.socket
    victim: subprocess.Popen
    secret: Path


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    os.environ["SECRET"] = "4711"
    base = tmp_path_factory.mktemp("outside")
    for folder in (base, *base.parents[:2]):
        folder.chmod(0o755)
    secret, folder = base / "secret", base / "open"
    secret.write_text("4711")
    secret.chmod(0o666)
    folder.mkdir()
    folder.chmod(0o777)
    victim = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True
    )
    abstract = f"\0attacked-{os.getpid()}"
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams,
    ):
        datagrams.bind(abstract)
        targets = {
            "secret": str(secret),
            "folder": str(folder),
            "victim": victim.pid,
            "port": server.getsockname()[1],
            "abstract": abstract,
            "host": socket.gethostname(),
            "folders": folders(),
        }
        devices = {path: os.stat(path).st_mtime_ns for path in DEVICES}
        sandbox = Sandbox(workers=4)
        outcomes = _attack(sandbox, json.dumps(targets) + "\n")
        yield Field(sandbox, outcomes, targets, devices, server, datagrams, victim, secret)
        sandbox.close()
    victim.kill()
    victim.wait()
    del os.environ["SECRET"]


def folders() -> list[str]:
    """Those of the checkout and of its virtual environment."""
    checkout = str(Path(__file__).parents[2])
    return [checkout] if sys.prefix == sys.base_prefix else [checkout, sys.prefix]


def _attack(sandbox: Sandbox, targets: str) -> dict[str, Outcome]:
    sandbox.describe()

    def forge(source: str, tests: list[str]) -> Outcome:
        started = time.monotonic()
        passed = sandbox.run_tests(source, tests, ["f"], setup=CASE, shared=CASE, limits=LIMITS)
        return Outcome(passed, "", time.monotonic() - started)

    def escape(source: str) -> Outcome:
        started = time.monotonic()
        result = sandbox.run_program(source, targets, limits=LIMITS)
        return Outcome([], result.stdout, time.monotonic() - started)

    with ThreadPoolExecutor(4) as threads:
        pending = {
            name: threads.submit(forge, source, SQUARES) for name, source in FORGERIES.items()
        }
        pending |= {
            name: threads.submit(forge, *attack) for name, attack in AIMED_FORGERIES.items()
        }
        pending |= {name: threads.submit(escape, source) for name, source in ESCAPES.items()}
        return {name: future.result() for name, future in pending.items()}


@pytest.mark.parametrize("attack", [*FORGERIES, *AIMED_FORGERIES])
def test_nothing_is_earned(field, attack):
    outcome = field.outcomes[attack]
    assert not any(outcome.passed), outcome
    assert outcome.seconds < LIMITS.wall + 2


@pytest.mark.parametrize("attack", ESCAPES)
def test_nothing_gets_out(field, attack):
    outcome = field.outcomes[attack]
    assert outcome.stdout.startswith("tried\n")
    assert "ESCAPED" not in outcome.stdout, outcome.stdout
    assert len(outcome.stdout) <= LIMITS.output
    assert outcome.seconds < LIMITS.wall + 2


def test_the_outside_is_untouched(field):
    assert field.secret.read_text() == "4711"
    assert os.listdir(field.targets["folder"]) == []
    assert field.victim.poll() is None
    assert {path: os.stat(path).st_mtime_ns for path in DEVICES} == field.devices
    for listener, call in (
        (field.server, field.server.accept),
        (field.datagrams, lambda: field.datagrams.recv(100)),
    ):
        listener.settimeout(0.1)
        with pytest.raises(TimeoutError):
            call()


def test_nothing_is_left_running(field):
    """There is the zygote and the two shells around it, and they are at rest."""
    zygote = psutil.Process(field.sandbox._zygote._process.pid)
    assert len(zygote.children(recursive=True)) <= 2


def test_the_pool_still_answers(field):
    with ThreadPoolExecutor(4) as threads:
        results = list(
            threads.map(lambda _: field.sandbox.run_tests(HONEST, SQUARES, ["f"]), range(8))
        )
    assert results == [[True, True, True]] * 8


def test_the_zygote_can_be_killed(field):
    process = field.sandbox._zygote._process
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert field.sandbox.run_tests(HONEST, SQUARES, ["f"]) == [True, True, True]
