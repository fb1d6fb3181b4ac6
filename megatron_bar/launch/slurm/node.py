"""`python -m megatron_bar.launch.slurm.node`: one node's ranks of a stage, in a SLURM job.

The job script runs one of these on each node. It is torchrun, by torchrun's own interface, and does
what torchrun can't: it passes SLURM's warnings on to the ranks, keeps their exit status 75 ("saved,
run me again"), and names stage, rank and host when one fails.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import psutil

from megatron_bar.launch.slurm.attempts import begin_attempt
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.stop_file import stop_file_in
from megatron_bar.runtime.stopping import CONTINUE_LATER, STOP_SIGNALS

# srun ends with the highest status of its tasks: what failed must outdo what was only stopped.
FAILED = CONTINUE_LATER + 1


def run_ranks(command: list[str], what: str, ranks: int) -> int:
    """Run `command` in `ranks` processes on this node; the job's other nodes do the same.

    Ranks are numbered node by node, in SLURM's order. Returns the exit status: 0, CONTINUE_LATER if
    they stopped to go on later, else FAILED.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    node, nodes = int(os.environ["SLURM_NODEID"]), int(os.environ["SLURM_JOB_NUM_NODES"])
    host = os.environ.get("SLURMD_NODENAME", socket.gethostname())
    with tempfile.TemporaryDirectory(prefix="megatron-bar-") as logs, _warnings_passed_on():
        config = LaunchConfig(
            min_nodes=nodes,
            max_nodes=nodes,
            nproc_per_node=ranks,
            max_restarts=0,
            run_id=f"{os.environ['SLURM_JOB_ID']}.{os.environ.get('SLURM_RESTART_COUNT', '0')}",
            rdzv_backend="static",
            rdzv_configs={"rank": node},
            rdzv_endpoint=f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}",
            logs_specs=DefaultLogsSpecs(log_dir=logs, tee=Std.ERR),
            log_line_prefix_template=f"[{host} rank ${{rank}}] ",
            # Without stop signals, which it would pass on too, and then wait only half a minute.
            signals_to_handle="SIGHUP,SIGQUIT",
        )
        try:
            elastic_launch(config, command[0])(*command[1:])
        except ChildFailedError as error:
            # Once one rank has ended, torchrun ends the others; some save, some just die of it.
            failed = {
                rank: failure.exitcode
                for rank, failure in error.failures.items()
                if failure.exitcode not in (CONTINUE_LATER, *(-n for n in STOP_SIGNALS))
            }
            for rank, code in failed.items():
                ended = (
                    f"was ended by {signal.Signals(-code).name}"
                    if code < 0
                    else (f"ended with exit status {code}")
                )
                print(f"{what}: rank {rank} on {host} {ended}", file=sys.stderr)
            return FAILED if failed else CONTINUE_LATER
    return 0


@contextlib.contextmanager
def _warnings_passed_on() -> Iterator[None]:
    """Give SLURM's warnings to the ranks: on many clusters SLURM itself signals this process only.

    SIGUSR1 comes before the time limit, SIGTERM before a preemption that grants some time. Ranks
    that were given it already don't mind; one that is only starting dies of it.
    """

    def pass_on(number: int, frame: FrameType | None) -> None:
        for rank in psutil.Process().children():
            with contextlib.suppress(psutil.NoSuchProcess):
                rank.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> int:
    parser = argparse.ArgumentParser("megatron_bar.launch.slurm.node", description=__doc__)
    parser.add_argument("--ranks", type=int, required=True, help="processes on each node")
    parser.add_argument("run", type=Path)
    parser.add_argument("stage")
    args = parser.parse_args()
    if path := stop_file_in(args.run, args.run / args.stage):
        print(f"{args.stage}: not begun, {path} is there; submit again to go on", file=sys.stderr)
        return CONTINUE_LATER
    try:
        begin_attempt(args.run, args.stage)
    except BarError as error:
        print(f"megatron-bar: {error}", file=sys.stderr)
        return FAILED
    command = [sys.executable, "-u", "-m", "megatron_bar", "stage", str(args.run), args.stage]
    if args.ranks == 1 and os.environ["SLURM_JOB_NUM_NODES"] == "1":
        os.execv(command[0], command)  # a lone process has no other to meet
    return run_ranks(command, args.stage, args.ranks)


if __name__ == "__main__":
    sys.exit(main())
