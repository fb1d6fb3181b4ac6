"""What hostile code tries. None of it may earn a reward, outlive its limit or touch the outside.

FORGERIES are answers to "write f(n), the square of n" that don't compute it. ESCAPES are programs
that print ESCAPED if something works that must not; they read what there is to attack, as JSON,
from standard input: `secret` (a file), `folder` (anyone may write there), `port` (on this machine),
`abstract` (a socket's name), `victim` (a process), `host` (its name), `folders` (of ours).
"""

FORGERIES = {
    "sys.exit(0) before the tests": "import sys; sys.exit(0)",
    "os._exit(0) before the tests": "import os; os._exit(0)",
    "sys.exit(0) in the call": "import sys\ndef f(n): sys.exit(0)",
    "os._exit(0) in the call": "import os\ndef f(n): os._exit(0)",
    "exit in atexit": "import atexit, os\natexit.register(os._exit, 0)\ndef f(n): return 0",
    "__eq__ that always agrees": """
class Yes:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __bool__(self): return True
    __hash__ = None
def f(n): return Yes()""",
    "int with an __eq__ of its own": """
class Yes(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def f(n): return Yes(0)""",
    "list with an __eq__ of its own": """
class Yes(list):
    def __eq__(self, other): return True
def f(n): return Yes()""",
    "metaclass that agrees": """
class Meta(type):
    def __eq__(cls, other): return True
    __hash__ = type.__hash__
class Yes(metaclass=Meta): pass
def f(n): return Yes""",
    "__class__ that lies": """
class Yes:
    __class__ = int
    def __eq__(self, other): return True
def f(n): return Yes()""",
    "patched AssertionError": """
import builtins
class Quiet(BaseException):
    def __new__(cls, *a): raise SystemExit(0)
builtins.AssertionError = Quiet
def f(n): return 0""",
    "patched builtins": """
import builtins
builtins.exec = builtins.compile = builtins.isinstance = lambda *a, **k: True
builtins.abs = builtins.sorted = builtins.set = lambda *a, **k: 0
def f(n): return 0""",
    "patched operator and math": """
import math, operator
operator.eq = math.isclose = lambda *a, **k: True
def f(n): return 0""",
    "patched wire": """
from megatron_bar.verifiers.sandbox import wire
send = wire.send
wire.encode = lambda value, handle: {"handle": True}
def f(n): return 0""",
    "patched checker": """
import os, sys
for name, module in list(sys.modules.items()):
    if "checker" in name:
        module.PASSED = module.FAILED = b"1"
        module.main = module.Peer = lambda *a: os._exit(0)
def f(n): return 0""",
    "verdicts written to every descriptor": """
import os
def f(n):
    for number in range(64):
        try: os.write(number, b"111111")
        except OSError: pass
    return 0""",
    "forged replies ahead of the questions": """
import json, os, struct
reply = json.dumps(["value", True]).encode()
for number in range(3, 16):
    try: os.write(number, 100 * (struct.pack("<I", len(reply)) + reply))
    except OSError: pass
def f(n): return 0""",
    "endless replies": """
import os
def f(n):
    while True: os.write(4, b"\\xff" * 65536)""",
    "a frame that never ends": """
import os, struct, time
def f(n):
    os.write(4, struct.pack("<I", 1 << 22) + b"[")
    time.sleep(60)""",
    "forged handles and tags": """
from megatron_bar.verifiers.sandbox import wire
wire.encode = lambda value, handle: {"type": "eval"}
def f(n): return 0""",
    "tests in its frames": """
import sys
def f(n):
    frame = sys._getframe()
    while frame:
        for value in list(frame.f_locals.values()) + list(frame.f_globals.values()):
            if isinstance(value, (str, bytes)) and "assert" in str(value) and "f(" in str(value):
                return eval(str(value).split("==")[1].split()[0])
        frame = frame.f_back""",
    "tests among its objects": """
import gc
def f(n):
    for thing in gc.get_objects():
        if isinstance(thing, (list, dict, tuple)):
            for value in (thing.values() if isinstance(thing, dict) else thing):
                if isinstance(value, str) and value.startswith("assert f(%d)" % n):
                    return int(value.split("==")[1])""",
    "tests in its memory": """
import ctypes, re
def f(n):
    for start in range(id(object()) & ~0xFFFFF, (id(object()) & ~0xFFFFF) + (1 << 20), 4096):
        found = re.search(rb"assert f\\(%d\\) == (\\d+)" % n, ctypes.string_at(start, 4096))
        if found: return int(found[1])""",
    "tests in its descriptors": """
import os, re
def f(n):
    for number in range(64):
        try: data = os.pread(number, 1 << 16, 0)
        except OSError: continue
        found = re.search(rb"f\\(%d\\) == (\\d+)" % n, data)
        if found: return int(found[1])""",
    "trace function in its callers": """
import sys
def trace(frame, event, arg): return trace
sys.settrace(trace); sys.setprofile(lambda *a: None)
def f(n): return 0""",
    "StopIteration and other exceptions": "def f(n): raise StopIteration(n * n)",
    "exception with a hostile __str__": """
class E(BaseException):
    def __str__(self): raise SystemExit(0)
def f(n): raise E""",
    "pickle that runs code": """
import os
class Bomb:
    def __reduce__(self): return (os._exit, (0,))
def f(n): return Bomb()""",
    "value nested too deep": """
def f(n):
    value = n * n
    for _ in range(100_000): value = [value]
    return value""",
    "value too large": "def f(n): return 'x' * (1 << 26)",
    "number too large": "def f(n): return 10 ** 10 ** 7",
    "fraction that explodes": """
from fractions import Fraction
class Long(Fraction):
    def __str__(self): return "1e99999999"
def f(n): return Long(1)""",
    "a thread that answers instead": """
import threading, time, os
threading.Thread(target=lambda: (time.sleep(0.1), os._exit(0))).start()
def f(n): time.sleep(5)""",
    "channel closed": "import os\ndef f(n): os.closerange(0, 64)",
    "endless recursion": "import sys\nsys.setrecursionlimit(1 << 30)\ndef f(n): return f(n) + 1",
    "hangs on import": "while True: pass",
    "deaf to signals": """
import signal
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
def f(n):
    while True: pass""",
    "source that isn't text": "\x00\ud800def f(n): return",
    "source nested too deep": "(" * 100_000,
}

# All of them pass if what f raises ends the iteration, or what it returns the comparison.
_ITERATIONS = [
    "assert all(map(f, [3, 4]))",
    "assert not any(map(f, [3, 4]))",
    "assert all(map(lambda c: f(c[0]) == c[1], [(3, 9), (4, 16)]))",
    "for got in map(f, [3, 4]): assert got == 1",
    "for got, wanted in zip(map(f, [3, 4]), [9, 16]): assert got == wanted",
    "assert set(map(f, [3, 4])) <= {9, 16}",
    "assert list(map(f, [3])) == []",
    "assert max(map(f, [3]), default=9) == 9",
    "assert next(map(f, [3]), 9) == 9",
    "assert sum(map(f, [3])) == 0",
    "for got in iter(lambda: f(3), 9): assert got == 9",
    "assert all(n == f(3) for n in map(f, [3]))",
    "assert [*filter(f, [3])] == []",
    "def g():\n    yield f(3)\nassert list(g()) == []",
    "import itertools\nassert list(itertools.takewhile(f, [3])) == []",
]
# Tests other than f(3) == 9, and answers made for them.
AIMED_FORGERIES = {
    **{
        f"raises {name} to end an iteration": (f"def f(n): raise {name}", _ITERATIONS)
        for name in (
            "StopIteration",
            "StopAsyncIteration",
            "GeneratorExit",
            "IndexError",
            "SystemExit",
        )
    },
    "a subclass of StopIteration": (
        "class End(StopIteration): pass\nEnd.__name__ = 'StopIteration'\ndef f(n): raise End",
        _ITERATIONS,
    ),
    "a forged reply that raises StopIteration": (
        """
from megatron_bar.verifiers.sandbox import wire
send = wire.send
def forged(channel, reply):
    send(channel, reply if "handle" in str(reply) else ["raised", "StopIteration", ""])
wire.send = forged
def f(n): return 0""",
        _ITERATIONS,
    ),
    "StopAsyncIteration in an asynchronous test": (
        "def f(n): raise StopAsyncIteration",
        [
            "import asyncio\nclass A:\n    def __aiter__(self): return self\n"
            "    async def __anext__(self): return f(3)\n"
            "async def g(): return [n async for n in A()]\nassert asyncio.run(g()) == []"
        ],
    ),
    "skips its test": (
        "import unittest\ndef f(n): raise unittest.SkipTest",
        [
            "import unittest\nclass T(unittest.TestCase):\n"
            "    def test(self): self.assertEqual(f(3), 9)\nrun_method_of_unittest(T, 'test')"
        ],
    ),
    "empty arrays, which numpy finds close to all": (
        "import numpy\ndef f(n): return numpy.array([])",
        [
            "import numpy as np\nassert np.allclose(f(3), 9)",
            "import numpy as np\nnp.testing.assert_allclose(f(3), 9.0)",
            "from numpy.testing import assert_array_equal\nassert_array_equal(f(3), 9)",
        ],
    ),
    "empty lists, likewise": (
        "def f(n): return []",
        [
            "import numpy as np\nassert np.allclose(f(3), 9)",
            "import numpy as np\nnp.testing.assert_almost_equal(f(3), 9)",
        ],
    ),
    "an object that is an array": (
        """
class Array:
    size = 1
    def __len__(self): return 0
    def __array__(self, *a, **k):
        import numpy
        return numpy.array([])
def f(n): return Array()""",
        [
            "import numpy as np\nassert np.allclose(f(3), 9)",
            "import numpy as np\nassert (np.array([9]) == f(3)).all()",
        ],
    ),
    "an array of a type that agrees": (
        """
from megatron_bar.verifiers.sandbox import wire
wire.encode = lambda value, rest: {"array": ["O", [1], [9], True]}
def f(n): return 0""",
        ["assert f(3) == 9", "assert f(3).any()"],
    ),
    "methods of a class that the tests know": (
        """
from megatron_bar.verifiers.sandbox import wire
wire.encode = lambda value, rest: {"object": ["Case", {"dict": [["right", True]]}]}
def f(n): return 0""",
        ["assert f(3).right()", "assert f(3).right", "assert f(3) == 9"],
    ),
    "a sorted of its own": (
        "sorted = set = len = abs = lambda *a, **k: [9]\ndef f(n): return [0]",
        ["assert sorted(f(3)) == [9]", "assert len(f(3)) == [9]", "assert abs(f(3)[0] - 9) < 1"],
    ),
    "a container that holds everything": (
        """
class All:
    def __contains__(self, item): return True
    def __len__(self): return 1
def f(n): return All()""",
        ["assert 9 in f(3)", "assert {9} <= f(3)", "assert not f(3)"],
    ),
    "a number that is greater and smaller": (
        """
class Any:
    def __lt__(self, other): return True
    __gt__ = __le__ = __ge__ = __lt__
    def __sub__(self, other): return 0
    __rsub__ = __sub__
    def __abs__(self): return 0
def f(n): return Any()""",
        ["assert 8 < f(3) < 10", "assert abs(f(3) - 9) < 1e-6"],
    ),
    "an object with forged dunders": (
        "class C: pass\nC.__eq__ = C.__bool__ = lambda *a: True\ndef f(n): return C()",
        ["assert f(3).__eq__(9)", "assert f(3)", "assert f(3) == 9 or f(3) is True"],
    ),
}

_TRY = """
import ctypes, json, os, sys, threading, time
given = json.loads(sys.stdin.readline())
print("tried", flush=True)
libc = ctypes.CDLL(None, use_errno=True)
def attempt(action, *arguments):
    try: result = action(*arguments)
    except BaseException as error: return error
    print("ESCAPED", action, arguments, result, flush=True)
def syscall(number, *arguments):
    if libc.syscall(number, *arguments) >= 0: print("ESCAPED syscall", number, flush=True)
def look(path):
    with open(path, "rb") as file: return file.read(1 << 16)
def write(path):
    with open(path, "w") as file: return file.write("taken")
"""

DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
_ESCAPES = {
    "changes devices": f"""
for path in {DEVICES}:
    attempt(os.utime, path); attempt(os.utime, path, (1, 1)); attempt(os.chmod, path, 0o777)
    attempt(os.setxattr, path, "user.x", b"x"); attempt(os.unlink, path)""",
    "packages of the host": """
import sysconfig
for name in ("stdlib", "purelib", "platlib"):
    folder = sysconfig.get_paths()[name]
    for path in (folder, folder + "/site-packages", folder + "/dist-packages",
                 "/usr/lib/python3/dist-packages"):
        sys.path.append(path)
        if path.endswith("packages"): attempt(lambda path: os.listdir(path) or 1 / 0, path)
for module in ("pip", "setuptools", "torch", "megatron_bar.cli"): attempt(__import__, module)""",
    "names of the host": """
import numpy, socket
told = [sys.orig_argv, sys.argv, sys.path, sys.prefix, sys.exec_prefix, sys.executable,
        sys.path_importer_cache, os.environ]
told += [vars(module).get("__file__") for module in list(sys.modules.values())]
told += [vars(module).get("__path__") for module in list(sys.modules.values())]
frame = sys._getframe()
while frame: told.append(frame.f_code.co_filename); frame = frame.f_back
for name in given["folders"]:
    if name in str(told): print("ESCAPED", name, flush=True)
for ask in (socket.gethostname, lambda: os.uname().nodename):
    attempt(lambda: 1 / (ask() == given["host"]))""",
    "how full the disks are": """
import shutil
for path in ("/", "/lib", "/tmp", os.__file__): attempt(os.statvfs, path)
attempt(os.fstatvfs, 0); attempt(shutil.disk_usage, "/")
syscall(137, b"/", ctypes.create_string_buffer(200))
syscall(138, 0, ctypes.create_string_buffer(200))""",
    "out-of-band data": """
import socket
for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
    one, two = socket.socketpair(socket.AF_UNIX, kind)
    attempt(one.send, b"x", socket.MSG_OOB)
    attempt(one.send, b"x", socket.MSG_OOB | socket.MSG_DONTWAIT)
    one.send(b"x")
    buffer = ctypes.create_string_buffer(1)
    for flags in (socket.MSG_OOB, socket.MSG_OOB | socket.MSG_PEEK):
        if libc.syscall(45, two.fileno(), buffer, 1, flags, 0, 0) >= 0: print("ESCAPED")
        if ctypes.get_errno() != 1: print("ESCAPED", ctypes.get_errno(), flush=True)""",
    "fork bomb": "while True: attempt(os.fork)",
    "fork bomb by system call": "for n in (56, 57, 58): syscall(n, 17, 0, 0, 0, 0)",
    "clone3": "syscall(435, ctypes.create_string_buffer(88), 88)",
    "memory bomb": "x = [bytearray(1 << 24) for _ in range(1 << 20)]; print('ESCAPED')",
    "memory bomb by doubling": "x = 'x'\nwhile True: x += x\n",
    "endless loop": "while True: pass",
    "endless sleep": "time.sleep(3600); print('ESCAPED')",
    "endless loop in C": "x = 10 ** 10 ** 9",
    "endless regular expression": "import re; re.match('(a+)+$', 'a' * 64 + 'b')",
    "busy threads": """
def spin():
    while True: pass
for _ in range(8): threading.Thread(target=spin).start()""",
    "more threads than allowed": """
threading.stack_size(32768)
started = 0
try:
    for _ in range(200): threading.Thread(target=time.sleep, args=(60,)).start(); started += 1
except RuntimeError: pass
if started > 20: print('ESCAPED', started, flush=True)
os._exit(0)""",
    "threads that outlive": """
threading.Thread(target=lambda: (time.sleep(1.0), write(given["folder"] + "/late"))).start()""",
    "signal handlers": """
import signal
for number in range(1, 65):
    try: signal.signal(number, lambda *a: None)
    except (OSError, ValueError): pass
while True: pass""",
    "stops itself": "import signal; signal.raise_signal(signal.SIGSTOP); time.sleep(60)",
    "alarm and timers": """
import signal
signal.signal(signal.SIGALRM, lambda *a: None); signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
while True: time.sleep(1)""",
    "daemon": """
attempt(os.setsid)
attempt(os.forkpty)
attempt(os.posix_spawn, "/bin/sleep", ["sleep", "60"], {})""",
    "kills its parent": """
import signal
for pid in (os.getppid(), given["victim"], -1, 0):
    if pid: attempt(os.kill, pid, signal.SIGKILL)
attempt(os.killpg, given["victim"], signal.SIGKILL)""",
    "signals by other ways": """
import fcntl
syscall(62, given["victim"], 9); syscall(200, given["victim"], 9)
syscall(234, given["victim"], given["victim"], 9); syscall(129, given["victim"], 9, b"x" * 128)
attempt(os.pidfd_open, given["victim"])
attempt(fcntl.fcntl, 0, fcntl.F_SETOWN, given["victim"])""",
    "reads secrets": """
for path in (given["secret"], "/etc/passwd", "/etc/shadow", "/root/.bashrc", "/root/.ssh/id_rsa",
             "/proc/self/environ", "/proc/1/environ", "/proc/self/mem", "/proc/self/maps",
             "/proc/%d/environ" % given["victim"], "/var/log/dpkg.log", "/sys/kernel/uevent_seqnum",
             "../" * 20 + given["secret"].lstrip("/"), "/dev/mem", "/dev/kmsg", "/dev/tty",
             "/dev/vda", "/dev/sda"):
    attempt(look, path)""",
    "lists the machine": """
for path in (os.path.dirname(given["secret"]), given["folder"], "/home", "/etc", "/proc",
             "/dev/shm", "/sys", "/var"):
    attempt(lambda path: os.listdir(path) or 1 / 0, path)
attempt(os.stat, given["secret"])""",
    "writes outside": """
import sysconfig
for path in (given["folder"] + "/taken", given["secret"], "/taken", "/dev/shm/taken", "/etc/taken",
             "/usr/lib/taken", sysconfig.get_paths()["stdlib"] + "/taken.py", "/root/taken",
             "/var/tmp/taken", "/dev/taken"):
    attempt(write, path)
attempt(os.mkdir, given["folder"] + "/taken")
attempt(os.unlink, given["secret"])
attempt(os.chmod, given["secret"], 0o777)""",
    "symbolic links": """
try: os.symlink(given["secret"], "link"); os.symlink(given["folder"], "way")
except OSError: pass
attempt(look, "link"); attempt(write, "link"); attempt(write, "way/taken")""",
    "hard links": 'attempt(os.link, given["secret"], "hard")',
    "open by handle": """
syscall(303, -100, given["secret"].encode(), ctypes.create_string_buffer(200), 0, 0)
syscall(304, -100, ctypes.create_string_buffer(200), 0)""",
    "connects": """
import socket
attempt(socket.create_connection, ("127.0.0.1", given["port"]), 1)
attempt(socket.create_connection, ("8.8.8.8", 53), 1)""",
    "sends datagrams": """
import socket
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK, 38, 40):
    attempt(socket.socket, family, socket.SOCK_DGRAM)""",
    "abstract socket": """
import socket
pair, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
attempt(pair.connect, given["abstract"])
attempt(pair.sendto, b"taken", given["abstract"])""",
    "listens": "import socket\nattempt(socket.create_server, ('', 0))",
    "huge output": "while True: print('x' * 65536)",
    "huge file": """
attempt(lambda: [open("big", "ab").write(bytes(1 << 20)) for _ in range(64)])""",
    "many files": """
def many():
    for n in range(100_000): open(f"f{n}", "w").close()
attempt(many)""",
    "file with a hole": 'attempt(lambda: open("hole", "wb").truncate(1 << 40))',
    "exec": """
import subprocess
for path in ("/bin/sh", "/usr/bin/id", sys.executable):
    attempt(os.execv, path, [path, "-c", "echo ESCAPED"])
    attempt(subprocess.run, [path, "-c", "echo ESCAPED"])
attempt(lambda: os.system("echo ESCAPED") and 1 / 0)
attempt(os.popen, "echo ESCAPED")""",
    "exec of its own file": """
def run():
    with open("own", "wb") as file: file.write(b"#!/bin/sh\\necho ESCAPED\\n")
    os.chmod("own", 0o777); os.execv("./own", ["own"])
attempt(run)
syscall(59, b"./own", None, None); syscall(322, 3, b"", None, None, 0x1000)""",
    "forbidden system calls": """
# ptrace, vm_readv, vm_writev, mount, umount2, unshare, setns, chroot, pivot_root, bpf, keyctl,
# add_key, perf_event_open, io_uring_setup, userfaultfd, memfd_create, personality, reboot,
# init_module, kexec_load, swapon, acct, settimeofday, sethostname, shmget, msgget, semget,
# mq_open, inotify_init, fanotify_init, kcmp, prctl, seccomp, process_madvise, quotactl, iopl
for number in (101, 310, 311, 165, 166, 272, 308, 161, 155, 321, 250, 248, 298, 425, 323, 319, 135,
               169, 175, 246, 167, 163, 164, 170, 29, 68, 64, 240, 253, 300, 312, 157, 317, 440,
               179, 172):
    if number == 101: syscall(number, 0, 0, 0, 0)
    else: syscall(number, given["victim"], 0, 0, 0, 0, 0)""",
    "another calling convention": """
code = (ctypes.c_char * 16).from_buffer(bytearray(16))
syscall(0x40000000 + 39); print("ESCAPED", flush=True)""",
    "becomes root": """
for call in (os.setuid, os.setgid, os.seteuid): attempt(call, 0)
attempt(os.setgroups, [0]); attempt(os.setresuid, 0, 0, 0)
if os.geteuid() == 0: print("ESCAPED as root", flush=True)""",
    "raises its limits": """
import resource
for kind in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE):
    attempt(resource.setrlimit, kind, (1 << 40, 1 << 40))
    attempt(resource.prlimit, given["victim"], kind, (1, 1))""",
    "changes priorities": """
attempt(os.setpriority, os.PRIO_PROCESS, 0, -20); attempt(os.nice, -5)
attempt(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(50))
attempt(os.sched_setaffinity, 0, {0})""",
    "chroot twice": """
attempt(os.chroot, "/tmp")
try: os.chdir("../" * 30)
except OSError: pass
attempt(look, "etc/passwd")""",
    "environment": """
if set(os.environ) - {"LC_CTYPE"}: print("ESCAPED", dict(os.environ), flush=True)
libc.getenv.restype = ctypes.c_char_p
if libc.getenv(b"SECRET"): print("ESCAPED", flush=True)""",
    "inherited descriptors": """
for number in range(6, 4096): attempt(os.fstat, number)""",
    "shared memory": """
from multiprocessing import shared_memory
attempt(shared_memory.SharedMemory, "taken", True, 4096)""",
    "leaves something for the next": """
try: open("/tmp/left", "x").close(); os.mkdir("/tmp/folder"); os.chmod("/tmp/folder", 0)
except FileExistsError: print("ESCAPED", flush=True)
except OSError: pass""",
    "finds what another left": """
if any(os.path.exists("/tmp/" + name) for name in ("left", "folder", "link")): print("ESCAPED")""",
    "pickle": """
import pickle
class Bomb:
    def __reduce__(self): return (os.system, ("touch %s/taken; echo ESCAPED" % given["folder"],))
pickle.loads(pickle.dumps(Bomb()))""",
    "standard input": """
os.lseek(0, 0, 0); os.write(0, b"x" * 1000)
attempt(lambda: os.ftruncate(0, 1 << 40))
attempt(lambda: os.write(0, b"x" * (1 << 26)) <= (1 << 20) and 1 / 0)""",
    "terminal": """
import fcntl
attempt(fcntl.ioctl, 0, 0x5412, b"x"); attempt(os.ttyname, 0); attempt(os.openpty)""",
    "recursion": "sys.setrecursionlimit(1 << 30)\ndef g(): return [g()]\ng()",
    "recursion in C": "x = []\nfor _ in range(10 ** 6): x = [x]\nrepr(x); hash(str(x))",
    "null pointer": "ctypes.string_at(0)",
    "abort": "os.abort()",
    "parent's memory": """
import struct
buffer = ctypes.create_string_buffer(64)
vector = struct.pack("QQ", ctypes.addressof(buffer), 64)
for pid in (os.getppid(), given["victim"], 1): syscall(310, pid, vector, 1, vector, 1, 0)""",
    "undoes its binding": """
for option in (1, 4, 22, 38): syscall(157, option, 0, 0, 0, 0)""",
}
ESCAPES = {name: _TRY + code for name, code in _ESCAPES.items()}
assert len(FORGERIES) + len(AIMED_FORGERIES) + len(ESCAPES) >= 40
