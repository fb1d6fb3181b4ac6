"""Means of the kernel to hold a process: its own root folder, namespaces, limits, another user.

Two halves. `enter_cell` binds the zygote, once, to namespaces and a root folder of its own.
`confine` binds each process that the zygote forks, right after the fork, for good. No torch, no
megatron_bar outside this folder: the zygote starts with the standard library alone.

bubblewrap enters namespaces for each program that it starts, which is 2.8 times slower than a fork
within them, and has neither limits nor a list of system calls: docs/own-code.md.
"""

from __future__ import annotations

import ctypes
import glob
import itertools
import math
import os
import resource
import signal
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from megatron_bar.verifiers.sandbox import seccomp

_HOST = b"sandbox"
SCRATCH = "/tmp"  # the temporary folder, within the cell
_CELL = "/sys"  # any folder that exists everywhere and that no Python lives in
_SCRATCH_BYTES = 16 << 20
_SCRATCH_FILES = 1000
_OPEN_FILES = 64
_THREADS = 16
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")

_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = (
    0x00020000,
    0x04000000,
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND, _REC, _PRIVATE = (
    1,
    2,
    4,
    8,
    32,
    4096,
    16384,
    1 << 18,
)
_DETACH = 2
_PIVOT_ROOT, _CAPSET = 155, 126  # on x86-64, as all of seccomp.py
_CAPABILITY_VERSION_3 = 0x20080522
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4
# Users of no one else's, below what containers map and above people and most services: one for each
# process, so that tested code and what tests it are strangers to each other.
_FIRST_USER, _USERS = 61_500, 3_600
_PLACES = 64  # from one zygote's first user to the next one's

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def _mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    _call(
        "mount",
        *(text.encode() or None for text in (source, target, kind)),
        flags,
        options.encode() or None,
    )


def die_with_parent() -> None:
    """Be killed when the process that forked this one ends."""
    _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class Cell:
    """The isolation that `enter_cell` could get: all namespaces, or (`reason` says why) none."""

    def __init__(self, number: int, reason: str = "") -> None:
        self.privileged = os.getuid() == 0
        self.namespaces = not reason
        self.reason = reason
        self._number = number
        seccomp.compiled(files=self.namespaces)
        self._own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY) if self.namespaces else -1

    def own_scratch(self) -> None:
        """Give this process and its children an empty temporary folder, which ends with them."""
        if self.namespaces:
            _call("unshare", _NEWNS)
            _mount_scratch(SCRATCH)

    def fork(self) -> int:
        """Fork, as os.fork, a child that is the first process of a process namespace of its own.

        When it ends, the kernel kills whatever it has started.
        """
        if not self.namespaces:
            return os.fork()
        # A process may leave its namespace for its children once; so first go back.
        _call("setns", self._own_pids, _NEWPID)
        _call("unshare", _NEWPID)
        return os.fork()

    def confine(self, place: int, memory: int, cpu: float, output: int) -> None:
        """Bind this process for good. `place` tells apart those that run at the same time.

        `memory` (address space) and `output` (any file) in bytes, `cpu` in seconds.
        """
        os.setsid()
        if self.namespaces:
            os.chdir(SCRATCH)
        seconds = math.ceil(cpu)
        limits = {
            resource.RLIMIT_AS: memory,
            resource.RLIMIT_CPU: seconds,
            resource.RLIMIT_FSIZE: output,
            resource.RLIMIT_NOFILE: _OPEN_FILES,
            resource.RLIMIT_CORE: 0,
            resource.RLIMIT_MEMLOCK: 0,
            resource.RLIMIT_MSGQUEUE: 0,
        }
        # Counted over all processes of a user: only where the user, or its count, is our own.
        if self.privileged or self.namespaces:
            limits[resource.RLIMIT_NPROC] = _THREADS
        for kind, limit in limits.items():
            resource.setrlimit(kind, (limit, limit))
        if self.privileged:
            user = _FIRST_USER + (self._number * _PLACES + place) % _USERS
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
        _drop_capabilities()
        _call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)  # no one of the same user may trace it
        die_with_parent()
        seccomp.install(files=self.namespaces)


def _drop_capabilities() -> None:
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    if _libc.syscall(_CAPSET, header, (ctypes.c_uint32 * 6)()) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def enter_cell(number: int) -> Cell:
    """Bind this process, as far as the machine allows, to namespaces and a root folder of its own.

    On return this process may be another one: it forks, and the caller's goes on as a shell that
    ends with it. `number` tells the zygotes of one machine apart.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        die_with_parent()
        try:
            _own_namespaces()
            zygote = os.fork()  # the first process within the namespace
        except OSError as error:
            os.write(writer, str(error).encode())
            os._exit(1)
        if zygote:
            _be_shell_of(zygote)
        try:
            die_with_parent()
            _own_root()
            cell = Cell(number)
            _call("umount2", b"/proc", _DETACH)
            _mount("", "/", flags=_REMOUNT | _BIND | _RDONLY | _NOSUID)
        except OSError as error:
            os.write(writer, str(error).encode())
            os._exit(1)
        os.close(writer)
        return cell
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        reason = pipe.read().decode()  # until the zygote is settled, or has failed
    if not reason:
        _be_shell_of(child)
    os.waitpid(child, 0)
    return Cell(number, reason)


def _be_shell_of(child: int) -> NoReturn:
    os.closerange(0, 4096)  # the control socket too: its other end must see when the zygote is gone
    os.waitpid(child, 0)
    os._exit(0)


def _own_namespaces() -> None:
    kinds = _NEWNS | _NEWUTS | _NEWIPC | _NEWPID | _NEWNET
    user, group = os.getuid(), os.getgid()
    if user == 0:
        _call("unshare", kinds)
    else:
        _call("unshare", kinds | _NEWUSER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    for call in ("sethostname", "setdomainname"):
        _call(call, _HOST, len(_HOST))


def _own_root() -> None:
    """A root folder in memory that holds Python's standard library, read-only, and little else."""
    _mount("", "/", flags=_REC | _PRIVATE)
    _mount("cell", _CELL, "tmpfs", _NOSUID, "size=1m,mode=755")
    paths = sysconfig.get_paths()
    shown = {
        paths["stdlib"],
        paths["platstdlib"],
        sysconfig.get_config_var("LIBDIR") or "",
        "/lib",
        "/lib64",
        "/usr/lib",
        "/usr/lib64",
    }
    for path in sorted(filter(os.path.isdir, shown)):
        target = _CELL + path
        os.makedirs(target, mode=0o755, exist_ok=True)
        _mount(path, target, flags=_BIND | _REC)
        _mount("", target, flags=_REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV)
    for folder in _packages(_CELL + path for path in shown):  # not offered, wherever they lie
        _mount("nothing", folder, "tmpfs", _RDONLY | _NOSUID | _NODEV | _NOEXEC, "size=4k")
    for path in _DEVICES:
        target = _CELL + path
        os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
        _mount(path, target, flags=_BIND)
        # A device can be written all the same, but the machine's node keeps its times and mode.
        _mount("", target, flags=_REMOUNT | _BIND | _RDONLY | _NOSUID | _NOEXEC)
    for path in (SCRATCH, "/proc"):
        os.makedirs(_CELL + path, mode=0o755, exist_ok=True)
    _mount_scratch(_CELL + SCRATCH)
    _mount("/proc", _CELL + "/proc", flags=_BIND | _REC)  # until the zygote has what it needs
    os.chdir(_CELL)
    if _libc.syscall(_PIVOT_ROOT, b".", b".") != 0:
        raise OSError(ctypes.get_errno(), "pivot_root")
    _call("umount2", b".", _DETACH)
    os.chdir("/")


def _packages(libraries: Iterable[str]) -> Iterator[str]:
    """The folders of installed packages within folders of libraries."""
    for library, version, kind in itertools.product(
        libraries, ("", "python3*"), ("site-packages", "dist-packages")
    ):
        pattern = os.path.join(glob.escape(library), version, kind)
        yield from filter(os.path.isdir, glob.glob(pattern))


def _mount_scratch(path: str) -> None:
    _mount(
        "scratch",
        path,
        "tmpfs",
        _NOSUID | _NODEV | _NOEXEC,
        f"size={_SCRATCH_BYTES},nr_inodes={_SCRATCH_FILES},mode=1777",
    )
