"""A real SLURM of two nodes on this machine: munged, slurmctld and two slurmd on loopback."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

NODES = ("n1", "n2")
_DAEMONS = ("munged", "slurmctld", "slurmd")
# Requeued jobs wait for `cred_expire` seconds, a silent node is given up after SlurmdTimeout.
_CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/{proctrack}
TaskPlugin=task/{task}
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdTimeout=10
KillWait=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=batch_sched_delay=1,sched_interval=1,bf_interval=1
GresTypes=gpu
"""
# As on real clusters, the processes of a job are held together by cgroups, where these can be
# written and no other cluster of this machine has them. Nothing is confined to them: two nodes here
# have more cores and GPUs than the machine.
_CGROUPS = Path("/sys/fs/cgroup/freezer")
_CGROUPS_OF_NODES = [_CGROUPS / f"slurm_{node}" for node in NODES]  # SLURM's names
_CGROUP_CONFIGURATION = """\
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
ConstrainCores=no
ConstrainDevices=no
ConstrainRAMSpace=no
"""
GPUS = 2  # of a node: other devices, as SLURM counts and numbers whatever it is given


def missing() -> str | None:
    """Why a cluster can't be started here, or None where it can."""
    absent = [name for name in _DAEMONS if shutil.which(name, path=_path()) is None]
    if absent:
        return f"{', '.join(absent)} not installed (apt-get install slurm-wlm munge)"
    return None if os.geteuid() == 0 else "slurmctld and slurmd must be started as root"


def _path() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def wait_until(what: str, condition: Callable[[], object], seconds: float = 60) -> None:
    """Poll until `condition()` is true; fails naming `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.2)


class Cluster:
    """The running daemons; `environment` makes SLURM's commands talk to them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
        self.daemons: dict[str, subprocess.Popen] = {}
        self.cgroups: list[Path] = []

    def start(self) -> None:
        host = socket.gethostname().split(".")[0]
        taken = any(folder.exists() for folder in _CGROUPS_OF_NODES)
        cgroups = os.access(_CGROUPS, os.W_OK) and not taken
        self.cgroups = _CGROUPS_OF_NODES if cgroups else []
        lines = [
            _CONFIGURATION.format(
                host=host,
                folder=self.folder,
                controller_port=_free_port(),
                proctrack="cgroup" if cgroups else "linuxproc",
                task="cgroup" if cgroups else "none",
            )
        ]
        (self.folder / "cgroup.conf").write_text(_CGROUP_CONFIGURATION if cgroups else "")
        lines += [
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={_free_port()} "
            f"CPUs=4 Gres=gpu:{GPUS} State=UNKNOWN"
            for node in NODES
        ]
        for gpu in range(GPUS):
            (self.folder / f"gpu{gpu}").symlink_to("/dev/null")
        (self.folder / "gres.conf").write_text(
            f"NodeName={','.join(NODES)} Name=gpu File={self.folder}/gpu[0-{GPUS - 1}]\n"
        )
        nodes = f"Nodes={','.join(NODES)} MaxTime=60"
        lines.append(f"PartitionName=all {nodes} Default=YES PriorityTier=1 GraceTime=60")
        lines.append(f"PartitionName=urgent {nodes} PriorityTier=2 PreemptMode=OFF")
        (self.folder / "slurm.conf").write_text("\n".join(lines) + "\n")
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        self._spawn(
            "munged",
            "munged",
            "--foreground",
            "--force",
            f"--key-file={key}",
            *(f"--{file}-file={self.folder}/munge.{file}" for file in ("log", "pid", "seed")),
            f"--socket={self.folder}/munge.socket",
        )
        wait_until("munged's socket", (self.folder / "munge.socket").exists)
        self._spawn("slurmctld", "slurmctld", "-D")
        for node in NODES:
            self.start_node(node)
        wait_until("two idle nodes", lambda: self.run("sinfo", "-h", "-o", "%D %t") == "2 idle")

    def start_node(self, node: str) -> None:
        self._spawn(node, "slurmd", "-D", "-N", node)

    def kill_node(self, node: str) -> None:
        """What a power cut does: the node's daemon and all that runs on it are gone."""
        daemon = self.daemons.pop(node)
        daemon.kill()
        daemon.wait()
        for pid in self.processes_with(f"SLURMD_NODENAME={node}"):
            step_daemon = 0
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended by now
                step_daemon = psutil.Process(pid).ppid()
            for victim in (step_daemon, pid):
                if victim > 1:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(victim, signal.SIGKILL)

    def processes_with(self, variable: str) -> set[int]:
        """Processes of this cluster's jobs that have `NAME=value` in their environment."""
        ours = _processes_with(f"SLURM_CONF={self.environment['SLURM_CONF']}")
        return {*ours} & {*_processes_with(variable)}

    def preempt_all(self) -> None:
        """Have a job of the other partition take both nodes for a moment."""
        self.run(
            "sbatch",
            "--partition=urgent",
            f"--nodes={len(NODES)}",
            "--exclusive",
            "--output=/dev/null",
            "--wrap=sleep 1",
        )

    def jobs(self) -> list[str]:
        """The ids of all jobs that wait or run."""
        return self.run("squeue", "-h", "-o", "%i").split()

    def cancel_all(self) -> None:
        self.run("scancel", "--user=root")
        wait_until("no job", lambda: not self.jobs(), 30)

    def stop(self) -> None:
        for name in reversed(self.daemons):
            self.daemons[name].terminate()
        for daemon in self.daemons.values():
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for folder in self.cgroups:
            for path, _, _ in os.walk(folder, topdown=False):
                with contextlib.suppress(OSError):  # something in it hasn't ended
                    os.rmdir(path)

    def run(self, *command: str) -> str:
        """The output of one of SLURM's commands."""
        return subprocess.run(
            command,
            env=os.environ | self.environment,
            check=True,
            text=True,
            timeout=30,
            stdout=subprocess.PIPE,
        ).stdout.strip()

    def _spawn(self, name: str, *command: str) -> None:
        with open(self.folder / f"{name}.out", "ab") as out:
            self.daemons[name] = subprocess.Popen(
                command,
                env=os.environ | self.environment,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )


def _processes_with(variable: str) -> Iterator[int]:
    """Processes that have `NAME=value` in their environment."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                if f"{variable}\0".encode() in (folder / "environ").read_bytes():
                    yield int(folder.name)


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """A cluster whose state lives in a temporary folder; everything ends with the block."""
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as folder:
        running = Cluster(Path(folder))
        try:
            running.start()
            yield running
        finally:
            running.stop()
