"""Runs code that a model wrote, and treats it as hostile.

Contained, on Linux on x86-64, where namespaces can be had (as root, or where users may make them):

- Tests: tested code runs in a process that knows neither the tests nor the expected values; these
  are in another, and only plain data crosses (wire.py). There is no checker in reach to patch, no
  result to forge, no secret to find. A test passes if the answers are right.
- Time: a limit on what it computes and sleeps, which doesn't count what others take, and one on the
  clock; at the end all that it started is killed, threads, signal handlers and all.
- Memory: a limit on address space. Processes: none beside itself, no exec; 16 threads.
- Output: a limit on every file's size; the temporary folder is in memory, of 16 MiB, new each time.
- Files: the root folder holds Python's standard library and system libraries, read-only and
  without installed packages, the temporary folder, /dev/null, /dev/zero and /dev/urandom, of which
  it can't change a node. No /proc, no home, none of the trainer's.
- Network: none, and no socket but pairs of its own, without out-of-band data. Environment: empty.
- Names: no folder of ours, no host's name, not how full the disks are.
- Other processes: not visible, can't be signalled, traced or read. Where we are root the code runs
  as a user of its own, without capabilities.
- The kernel: only the system calls of a short list (seccomp.py), which leaves out those where most
  escapes began.

Where namespaces can't be had (`Sandbox.describe` says so): the same, but the code can't open, list
or stat any file, or ask for the host's name, has no temporary folder, and imports only what was
imported for it; and if we
aren't root its threads are bounded by memory alone. Without seccomp nothing is run: BarError.

Offered: the standard library, and numpy, which is imported before anything is confined; its arrays
cross as plain data. A test may hand over functions, and objects of classes that its reference
brings.

Not contained: a bug in the kernel's allowed calls; what timing and shared caches tell. And not
offered: other packages, child processes, files of the machine; a call's arguments are copies, so
code that is to change them in place fails its tests: what it could change, it could make equal to
whatever it answers. A test that asks too little (`f(x) != 3`) is passed by too much, as anywhere.
"""

from megatron_bar.verifiers.sandbox.pool import (
    Limits,
    Result,
    Sandbox,
    runs_at_a_time,
    shared_sandbox,
)

__all__ = ["Limits", "Result", "Sandbox", "runs_at_a_time", "shared_sandbox"]
