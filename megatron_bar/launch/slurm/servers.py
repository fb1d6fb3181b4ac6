"""`python -m megatron_bar.launch.slurm.servers`: the vLLM servers of one node of a SLURM job.

The job script runs one of these on each node that `rollout_nodes` adds. It starts what the stage's
main rank orders (`generation/node_servers.py`), starts anew what dies, and tells where it serves.
Its servers end with it, however that ends.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from megatron_bar.generation.node_servers import (
    ORDER,
    POLL_SECONDS,
    STATE,
    Order,
    State,
    job_folder,
)
from megatron_bar.generation.vllm_process import VllmProcess
from megatron_bar.launch.slurm.failed_nodes import note_failed
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import read_json, write_json
from megatron_bar.runtime.ranks import own_host

RETRY_SECONDS = 30.0  # after a start that failed


class Launcher:
    """The servers of node `node`, which listen at `host`. `note` is told of the first that died.

    Once is enough: a machine that is bad says so again and again.
    """

    def __init__(self, job: Path, node: int, host: str, note: Callable[[str], None]) -> None:
        self.job, self.node, self.host, self._note = job, node, host, note
        self._kept: dict[Path, threading.Thread] = {}
        self._noting = threading.Lock()
        self._noted = False

    def look(self) -> None:
        """Begin to keep a server for each order that is new."""
        for order in self.job.glob(f"{self.node}-*{ORDER}"):
            if order not in self._kept:
                keeper = threading.Thread(target=_keep, args=(order, self), daemon=True)
                self._kept[order] = keeper
                keeper.start()

    def tell_death(self, what: str) -> None:
        print(f"{what}, and is started anew", file=sys.stderr)
        with self._noting:
            if not self._noted:
                self._noted = True
                self._note(what)


def _keep(path: Path, launcher: Launcher) -> None:
    """Have a server as the order in `path` says, for as long as that stands."""
    name = path.name.removesuffix(ORDER)
    state_path = path.with_name(f"{name}{STATE}")
    order = Order(**read_json(path))
    process: VllmProcess | None = None
    retry = 0.0

    def tell(address: str | None = None, fault: str | None = None) -> None:
        write_json(state_path, asdict(State(order.start, address, fault)))

    while path.exists():
        asked = order.start
        with contextlib.suppress(BarError):  # a file that is just replaced or removed
            order = Order(**read_json(path))
        dead = process is None or not process.runs
        if order.start > asked or (dead and time.monotonic() >= retry):
            if process is not None:
                if process.ended_by is not None:
                    launcher.tell_death(
                        f"vLLM server {name} on {launcher.host} was ended by {process.ended_by}"
                    )
                process.stop()
            tell()
            try:
                process = VllmProcess(
                    order.python,
                    order.options,
                    Path(order.folder),
                    Path(order.log),
                    launcher.host,
                    order.answer_seconds,
                    _visible(order.devices),
                )
                process.start()
                assert process.api is not None  # it serves
                tell(address=process.api.address)
            except (BarError, OSError) as error:
                retry = time.monotonic() + RETRY_SECONDS
                if process is not None:
                    process.stop()
                tell(fault=f"{error} (on {launcher.host})")
        time.sleep(POLL_SECONDS)
    if process is not None:
        process.stop()


def _visible(devices: Sequence[int]) -> str:
    """CUDA_VISIBLE_DEVICES of those of the GPUs that SLURM gives this node, by their places."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not given:
        return ",".join(map(str, devices))
    names = given.split(",")
    if devices[-1] >= len(names):
        raise BarError(f"the job has {len(names)} GPUs here, and GPU {devices[-1]} is asked for")
    return ",".join(names[device] for device in devices)


def main() -> None:
    parser = argparse.ArgumentParser("megatron_bar.launch.slurm.servers", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("stage")
    args = parser.parse_args()

    def note(what: str) -> None:
        note_failed(args.run, [own_host()], f"{args.stage}: {what}")

    # The step's nodes are counted from 0, as its tasks are: there is one on each.
    node = int(os.environ["SLURM_PROCID"])
    launcher = Launcher(job_folder(), node, socket.gethostname(), note)
    while True:
        launcher.look()
        time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    main()
