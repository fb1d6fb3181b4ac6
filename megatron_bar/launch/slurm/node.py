"""`python -m megatron_bar.launch.slurm.node`: one node's ranks of a stage, in a SLURM job.

The job script runs one of these on each node. Each starts its ranks as torchrun would, passes
SLURM's warnings on to them, keeps their exit status 75 ("saved, run me again"), names stage, rank
and host when one fails, and has all nodes end within seconds of it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from megatron_bar.launch.slurm.attempts import begin_attempt, end_attempt
from megatron_bar.launch.slurm.failed_nodes import note_failed
from megatron_bar.launch.slurm.node_ranks import NodeRanks
from megatron_bar.launch.slurm.nodes import Failure, Nodes
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.heartbeat import HUNG
from megatron_bar.runtime.machine_faults import MACHINE_FAILED
from megatron_bar.runtime.ranks import own_host
from megatron_bar.runtime.stop_file import stop_file_in
from megatron_bar.runtime.stopping import CONTINUE_LATER

# srun ends with the highest status of its tasks: what failed must outdo what was only stopped.
FAILED = CONTINUE_LATER + 1
TRY_AGAIN = FAILED + 1  # the script queues the job again
_POLL_SECONDS = 0.1
# Ranks that have lost others print what befell them; those that saved end within a minute, as a
# save ends on all of them, and those that are done as torchrun has it.
_LAST_WORDS_SECONDS = 3.0
_PARTING_SECONDS = 60.0
_DONE_SECONDS = 300.0


def run_ranks(command: Sequence[str], what: str, ranks: int) -> tuple[int, Failure | None]:
    """Run `command` in `ranks` processes on this node; the job's other nodes do the same.

    Ranks are numbered node by node, in SLURM's order. Returns the exit status: 0, CONTINUE_LATER if
    they stopped to go on later, else FAILED, or TRY_AGAIN where another attempt may succeed;
    and what failed, on the one node that is to write it down.

    Raises BarError if the nodes don't meet.
    """
    node, count = int(os.environ["SLURM_NODEID"]), _nodes_of_ranks()
    host = own_host()
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    nodes = Nodes(node, count, host, address, port)
    run_id = f"{os.environ['SLURM_JOB_ID']}.{os.environ.get('SLURM_RESTART_COUNT', '0')}"
    mine = NodeRanks(command, node, count, ranks, host, run_id)
    with mine.given_warnings():
        nodes.start()
        _wait_for(mine, nodes, what)
        stopped = mine.stopped()
        nodes.leave(_PARTING_SECONDS if stopped else _DONE_SECONDS)
    failure = nodes.failure
    if failure is None:
        return (CONTINUE_LATER if stopped else 0), None
    print(f"{what}: {failure.what}", file=sys.stderr)
    return (TRY_AGAIN if failure.again else FAILED), (failure if nodes.writes else None)


def _nodes_of_ranks() -> int:
    """Nodes of this step of the job; the job may have more, for servers."""
    return int(os.environ["SLURM_STEP_NUM_NODES"])


def _wait_for(mine: NodeRanks, nodes: Nodes, what: str) -> None:
    """Until all ranks of this node have ended, or been ended since some failed anywhere."""
    parting = None
    while mine.running() or mine.failed():
        if failed := mine.failed():
            for rank, code in failed.items():
                print(f"{what}: rank {rank} on {mine.host} {_ended(code)}", file=sys.stderr)
            nodes.fail(_failure(mine.host, failed))
        if failed or nodes.failure is not None:
            mine.end(_LAST_WORDS_SECONDS)
            return
        if mine.stopped():
            if parting is None:
                parting = time.monotonic() + _PARTING_SECONDS
                mine.signal(signal.SIGTERM)  # to those that weren't asked
            elif time.monotonic() > parting:
                mine.end(0)
        time.sleep(_POLL_SECONDS)


def _failure(host: str, failed: dict[int, int]) -> Failure:
    """What ended these ranks, by their exit statuses. Signals and hangs are the machine's fault."""
    rank, code = min(failed.items(), key=lambda of: (not _by_machine(of[1]), of[0]))
    by_machine = _by_machine(code)
    return Failure(
        f"rank {rank} on {host} {_ended(code)}",
        (host,) if by_machine else (),
        again=by_machine or code == HUNG,
    )


def _by_machine(code: int) -> bool:
    return code < 0 or code == MACHINE_FAILED


def _ended(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit status {code}"


def main() -> int:
    parser = argparse.ArgumentParser("megatron_bar.launch.slurm.node", description=__doc__)
    parser.add_argument("--ranks", type=int, required=True, help="processes on each node")
    parser.add_argument("run", type=Path)
    parser.add_argument("stage")
    args = parser.parse_args()
    if path := stop_file_in(args.run, args.run / args.stage):
        print(f"{args.stage}: not begun, {path} is there; submit again to go on", file=sys.stderr)
        return CONTINUE_LATER
    command = [sys.executable, "-u", "-m", "megatron_bar", "stage", str(args.run), args.stage]
    try:
        begin_attempt(args.run, args.stage)
        status, failure = run_ranks(command, args.stage, args.ranks)
    except BarError as error:
        print(f"megatron-bar: {error}", file=sys.stderr)
        return FAILED
    if failure is not None:
        end_attempt(args.run, args.stage, failure.what)
        note_failed(args.run, failure.hosts, f"{args.stage}: {failure.what}")
    return status


if __name__ == "__main__":
    sys.exit(main())
