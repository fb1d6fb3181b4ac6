"""vLLM servers on nodes of their own in a SLURM job (`rollout_nodes`).

The stage's main rank can't start a process on another node. On each of those nodes a launcher
(`launch/slurm/servers.py`) does it, as two files in a folder of the job's attempt say, which all
nodes see. For each server there is

    NODE-NUMBER.order.json     what is to run, and how often it has been asked to start afresh
    NODE-NUMBER.state.json     the server that runs by the last order, or why none does

The first is the main rank's, the second the launcher's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from dataclasses import dataclass
from pathlib import Path

from megatron_bar.generation.openai_api import OpenAIApi, ServerFault
from megatron_bar.generation.servers import wake_with_weights
from megatron_bar.generation.vllm_process import START_SECONDS
from megatron_bar.runtime.beats import beat
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import read_json, write_json

FOLDER_VARIABLE = "MEGATRON_BAR_SERVERS"  # the job script sets it
ONLY_IN_JOBS = (
    "rollout_nodes are nodes of a SLURM job, which `submit` asks for; here leave the key out: "
    "rollout_python then starts a server beside the stage, on the same GPUs"
)
ORDER, STATE = ".order.json", ".state.json"
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Order:
    """A server that a launcher is to run, in the words of `VllmProcess`."""

    start: int  # how many fresh starts have been asked for, this one included
    python: str
    options: list[str]
    folder: str
    log: str
    answer_seconds: float
    devices: list[int]  # the node's GPUs, from 0 on


@dataclass(frozen=True)
class State:
    """The server of an order. Without address and fault it is being started."""

    start: int  # the order's
    address: str | None = None  # it serves there
    fault: str | None = None  # why it doesn't; the launcher tries again


def job_folder() -> Path:
    """The folder of this job's orders. Raises BarError outside a job that has nodes for servers."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder is None:
        raise BarError(ONLY_IN_JOBS)
    return Path(folder)


class NodeServer:
    """A server that a launcher starts as it is ordered to, and starts anew when it dies."""

    def __init__(self, name: str, order: Order, job: Path) -> None:
        """`order` is the one to begin with, of start 0: nothing is asked for yet."""
        self.name, self.order, self.job = name, order, job
        self._api: OpenAIApi | None = None

    @property
    def api(self) -> OpenAIApi:
        assert self._api is not None, "take_weights() comes first"
        return self._api

    def take_weights(self) -> None:
        if not self.order.start:
            self.take_weights_anew()
            return
        state = self.state()
        if state.address is None:
            why = f": {state.fault}" if state.fault else ""
            raise ServerFault(f"vLLM server {self.name} is being started{why}")
        self._turn_to(state.address)
        wake_with_weights(self.api, False, "take_weights", self.order.folder)

    def take_weights_anew(self) -> None:
        starts = self.order.start > 0 and self.state() == State(self.order.start)
        if not starts:
            self._ask_for_start()
        self._turn_to(self._awaited_address())
        if starts:  # perhaps with weights of before
            wake_with_weights(self.api, False, "take_weights", self.order.folder)

    def _awaited_address(self) -> str:
        deadline = time.monotonic() + START_SECONDS
        while (state := self.state()).address is None:
            beat()
            if state.fault is not None:
                raise ServerFault(f"vLLM server {self.name}: {state.fault}")
            if time.monotonic() > deadline:
                raise ServerFault(
                    f"vLLM server {self.name} isn't ready after {START_SECONDS:.0f} s; what it "
                    f"printed is in {self.order.log}"
                )
            time.sleep(POLL_SECONDS)
        return state.address

    def recover(self) -> None:
        if self.state().address is not None:  # else it is being started already
            self._ask_for_start()

    def stop(self) -> None:
        """The launcher ends it, with the job or before."""
        (self.job / f"{self.name}{ORDER}").unlink(missing_ok=True)
        if self._api is not None:
            self._api.close()

    def _ask_for_start(self) -> None:
        self.order = dataclasses.replace(self.order, start=self.order.start + 1)
        write_json(self.job / f"{self.name}{ORDER}", dataclasses.asdict(self.order))

    def state(self) -> State:
        """The answer of the launcher to the last order."""
        with contextlib.suppress(BarError):  # there is none yet, or it is just replaced
            state = State(**read_json(self.job / f"{self.name}{STATE}"))
            if state.start == self.order.start:
                return state
        return State(self.order.start)

    def _turn_to(self, address: str) -> None:
        if self._api is None or self._api.address != address:
            if self._api is not None:
                self._api.close()
            self._api = OpenAIApi(address, self.order.answer_seconds)
