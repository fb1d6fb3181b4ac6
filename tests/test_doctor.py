"""`megatron-bar doctor`: what it tells of a machine, and when its status is 1."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_bar.cli import doctor, main


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with nothing on its PATH, but for what a test puts there; the sandbox is quick."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(doctor, "_ASK_SANDBOX", "print('seccomp')")

    def put(name: str, script: str) -> None:
        path: Path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    return put


def _by_part() -> dict[str, doctor.Finding]:
    return {finding.part: finding for finding in doctor.examine()}


def test_it_tells_all_parts_and_loads_nothing_that_computes():
    code = """
import sys
from megatron_bar.cli import main
assert main(["doctor", "--json"]) == 0
print({"torch", "megatron.core", "transformers"} & sys.modules.keys(), file=sys.stderr)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert told.returncode == 0 and told.stderr.endswith("set()\n"), told.stderr
    states = {finding["part"]: finding["state"] for finding in json.loads(told.stdout)}
    assert {
        "Python",
        "torch",
        "megatron-core",
        "GPUs",
        "Transformer Engine",
        "nemo-aligner",
        "vLLM",
        "sandbox",
        "SLURM",
    } <= states.keys()
    assert states["Python"] == states["torch"] == "ok"


def test_what_every_run_needs_decides_the_status(machine, monkeypatch, capsys):
    monkeypatch.setattr(
        doctor.metadata,
        "requires",
        lambda name: [
            "torch>=999",
            "not-to-be-had>=3",
            'lm-eval==0; extra == "lm-eval"',
            'nor-this; extra == "lm-eval"',
        ],
    )
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(
        line.startswith("missing  torch") and line.endswith("; pip install 'torch>=999'")
        for line in lines
    )
    assert lines[-1] == "missing: torch, not-to-be-had"
    assert not any("nor-this" in line for line in lines)


def test_a_version_that_is_known_to_be_bad_is_named(machine, tmp_path, monkeypatch):
    record = tmp_path / "apex-0.9.10.dev0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: apex\nVersion: 0.9.10.dev0\n")
    assert "apex" not in _by_part()
    monkeypatch.syspath_prepend(str(tmp_path))
    found = _by_part()["apex"]
    assert found.state == "bad" and found.advice == "pip uninstall apex"


def test_gpus_under_a_torch_for_cpus_are_told(machine, monkeypatch):
    assert _by_part()["GPUs"].state == "absent"
    machine("nvidia-smi", "for gpu in 0 1; do echo 'NVIDIA H100, 81559 MiB, 570.1'; done")
    monkeypatch.setattr(doctor, "_torch_cuda", lambda: None)
    found = _by_part()
    assert found["GPUs"].found == "2 x NVIDIA H100, 81559 MiB, 570.1"
    assert found["CUDA"].state == "bad" and "build for CPUs" in found["CUDA"].found
    monkeypatch.setattr(doctor, "_torch_cuda", lambda: "13.0")
    for answer, state in (
        ('{"count": 2, "nccl": "2.29.7"}', "ok"),
        ('{"count": 0, "nccl": null}', "bad"),
    ):
        monkeypatch.setattr(doctor, "_ASK_CUDA", f"print('{answer}')")
        assert _by_part()["CUDA"].state == state
    monkeypatch.setattr(doctor, "_ASK_CUDA", "raise OSError('no libcudart.so.13')")
    assert "OSError: no libcudart.so.13" in _by_part()["CUDA"].found


def test_what_hangs_is_given_up(machine, monkeypatch):
    assert _by_part()["SLURM"].state == "absent"
    machine("sbatch", "echo slurm 24.05.3")
    assert _by_part()["SLURM"].found == "slurm 24.05.3"
    machine("sbatch", "exec /bin/sleep 60")
    monkeypatch.setattr(doctor, "_SECONDS", 0.2)
    assert _by_part()["SLURM"].found == "no answer in 0.2 s"
