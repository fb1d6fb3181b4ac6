"""The system calls that a contained process may make, as a seccomp filter; all others fail.

The list says what is allowed, not what is forbidden: computing, files, threads of one's own, time.
Not on it: sockets (but a pair within the process), new processes, exec, ptrace and other processes'
memory, namespaces, mounts, io_uring, keys, shared memory, prctl, signals to others.

Written for x86-64; elsewhere `install` raises OSError.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
import struct
from collections.abc import Iterable

# Names and numbers are those of the kernel's table for x86-64.
_ALWAYS = {
    "read": 0,
    "write": 1,
    "close": 3,
    "fstat": 5,
    "poll": 7,
    "lseek": 8,
    "mmap": 9,
    "mprotect": 10,
    "munmap": 11,
    "brk": 12,
    "rt_sigaction": 13,
    "rt_sigprocmask": 14,
    "rt_sigreturn": 15,
    "pread64": 17,
    "pwrite64": 18,
    "readv": 19,
    "writev": 20,
    "pipe": 22,
    "select": 23,
    "sched_yield": 24,
    "mremap": 25,
    "mincore": 27,
    "madvise": 28,
    "dup": 32,
    "dup2": 33,
    "pause": 34,
    "nanosleep": 35,
    "getitimer": 36,
    "alarm": 37,
    "setitimer": 38,
    "getpid": 39,
    "shutdown": 48,
    "exit": 60,
    "wait4": 61,
    "fsync": 74,
    "fdatasync": 75,
    "ftruncate": 77,
    "getdents64": 217,
    "getcwd": 79,
    "umask": 95,
    "gettimeofday": 96,
    "getrlimit": 97,
    "getrusage": 98,
    "sysinfo": 99,
    "times": 100,
    "getuid": 102,
    "getgid": 104,
    "geteuid": 107,
    "getegid": 108,
    "getppid": 110,
    "getpgrp": 111,
    "getresuid": 118,
    "getresgid": 120,
    "rt_sigpending": 127,
    "rt_sigtimedwait": 128,
    "rt_sigsuspend": 130,
    "sigaltstack": 131,
    "arch_prctl": 158,
    "gettid": 186,
    "time": 201,
    "futex": 202,
    "sched_getaffinity": 204,
    "epoll_create": 213,
    "set_tid_address": 218,
    "restart_syscall": 219,
    "fadvise64": 221,
    "clock_gettime": 228,
    "clock_getres": 229,
    "clock_nanosleep": 230,
    "exit_group": 231,
    "epoll_wait": 232,
    "epoll_ctl": 233,
    "pselect6": 270,
    "ppoll": 271,
    "set_robust_list": 273,
    "epoll_pwait": 281,
    "eventfd2": 290,
    "epoll_create1": 291,
    "dup3": 292,
    "pipe2": 293,
    "preadv": 295,
    "pwritev": 296,
    "getrandom": 318,
    "membarrier": 324,
    "rseq": 334,
}
# Left out where the process still sees the machine's files and its name, so that it can't open or
# even list one. statfs is nowhere: it tells how full the machine's disks are.
_FILES = {
    "open": 2,
    "stat": 4,
    "lstat": 6,
    "access": 21,
    "truncate": 76,
    "chdir": 80,
    "fchdir": 81,
    "rename": 82,
    "mkdir": 83,
    "rmdir": 84,
    "creat": 85,
    "link": 86,
    "unlink": 87,
    "symlink": 88,
    "readlink": 89,
    "chmod": 90,
    "fchmod": 91,
    "utime": 132,
    "uname": 63,
    "utimes": 235,
    "openat": 257,
    "mkdirat": 258,
    "newfstatat": 262,
    "unlinkat": 263,
    "renameat": 264,
    "linkat": 265,
    "symlinkat": 266,
    "readlinkat": 267,
    "fchmodat": 268,
    "faccessat": 269,
    "utimensat": 280,
    "renameat2": 316,
    "statx": 332,
    "faccessat2": 439,
}
_IOCTL, _FCNTL, _SOCKETPAIR, _SENDTO, _RECVFROM, _CLONE, _TGKILL, _PRLIMIT64, _CLONE3 = (
    16,
    72,
    53,
    44,
    45,
    56,
    234,
    302,
    435,
)
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # terminal? how much? and flags
_FCNTLS = (0, 1, 2, 3, 4, 1030)  # duplicate, flags; not F_SETOWN, which can send signals
_AF_UNIX = 1
_MSG_OOB = 1  # out-of-band data of such sockets: little used, and how CVE-2025-38236 begins
_CLONE_THREAD = 0x10000

# Classic BPF: opcodes, and the offsets within struct seccomp_data.
_LOAD, _EQUAL, _ANY_BIT, _AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_NUMBER, _ARCH = 0, 4
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_ARCH_X86_64 = 0xC000003E
_X32 = 0x40000000  # another numbering behind the same architecture
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2

_Instruction = tuple[int, int, int, int]


def _fail(code: int) -> _Instruction:
    return (_RETURN, 0, 0, 0x00050000 | code)


def _argument(index: int, high: bool = False) -> _Instruction:
    return (_LOAD, 0, 0, 16 + 8 * index + 4 * high)


_YES: _Instruction = (_RETURN, 0, 0, _ALLOW)


def _only(number: int, *body: _Instruction) -> list[_Instruction]:
    """`body` decides about one system call; it always returns."""
    return [(_LOAD, 0, 0, _NUMBER), (_EQUAL, 0, len(body), number), *body]


def _argument_in(index: int, values: tuple[int, ...]) -> list[_Instruction]:
    checks = [instruction for value in values for instruction in ((_EQUAL, 0, 1, value), _YES)]
    return [_argument(index), *checks, _fail(errno.EPERM)]


def _packed(instructions: Iterable[_Instruction]) -> bytes:
    return b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)


@functools.cache
def compiled(files: bool) -> bytes:
    """The filter but for its end, which each process has its own; made once, by the zygote."""
    allowed = sorted((_ALWAYS | _FILES if files else _ALWAYS).values())
    program = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, _ARCH_X86_64),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _KILL),
    ]
    for number in allowed:
        program += [(_EQUAL, 0, 1, number), _YES]
    program += _only(_IOCTL, *_argument_in(1, _IOCTLS))
    program += _only(_FCNTL, *_argument_in(1, _FCNTLS))
    program += _only(_SOCKETPAIR, *_argument_in(0, (_AF_UNIX,)))
    # Without an address, so only to the other end of a pair.
    program += _only(
        _SENDTO,
        _argument(4),
        (_EQUAL, 0, 5, 0),
        _argument(4, high=True),
        (_EQUAL, 0, 3, 0),
        _argument(3),
        (_ANY_BIT, 1, 0, _MSG_OOB),
        _YES,
        _fail(errno.EPERM),
    )
    program += _only(_RECVFROM, _argument(3), (_ANY_BIT, 1, 0, _MSG_OOB), _YES, _fail(errno.EPERM))
    # A thread, not a process. The flags of clone3 lie in memory, out of a filter's sight; libc
    # takes clone when clone3 doesn't exist.
    program += _only(
        _CLONE, _argument(0), (_ANY_BIT, 0, 1, _CLONE_THREAD), _YES, _fail(errno.EAGAIN)
    )
    program += _only(_CLONE3, _fail(errno.ENOSYS))
    program += _only(_PRLIMIT64, *_argument_in(0, (0,)))
    return _packed(program)


def install(files: bool) -> None:
    """Bind this process, and all it may start, to the list, for good. `files`: may it open any?

    Raises OSError where the kernel or the processor has no such filter.
    """
    if platform.machine() != "x86_64":
        raise OSError(errno.ENOSYS, f"no list of system calls for {platform.machine()}")
    code = compiled(files) + _packed(
        [*_only(_TGKILL, *_argument_in(0, (os.getpid(),))), _fail(errno.EPERM)]
    )
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxP", len(code) // struct.calcsize("HBBI"), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _MODE_FILTER, header, 0, 0),
    ):
        if libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "seccomp isn't available")
