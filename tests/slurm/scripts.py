"""What tests have submit print, and stand-ins for SLURM's commands."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import yaml

from megatron_bar.cli import main
from megatron_bar.launch.slurm.site import TEMPLATES

BAR_7B = Path(__file__).parents[2] / "examples" / "bar-7b.yaml"


def site_file(folder: Path, **changes) -> str:
    site = yaml.safe_load((TEMPLATES / "site.yaml").read_text())
    (folder / "site.yaml").write_text(yaml.safe_dump(site | {"python": "python"} | changes))
    return str(folder / "site.yaml")


def scripts_of(capsys, *arguments: str, recipe: str = "recipe.yaml") -> dict[str, str]:
    assert main(["submit", recipe, "--dry-run", *arguments]) == 0
    parts = capsys.readouterr().out.split("===== ")[1:]
    return dict(part.split("\n", 1) for part in parts)


def fake_slurm(folder: Path, monkeypatch) -> None:
    """sbatch numbers its jobs and writes down what it is told; they wait for ever."""
    folder.mkdir()
    commands = {
        "sbatch": f'echo "$*" >> {folder}/calls\nwc -l < {folder}/calls | tr -d " "\n',
        "squeue": f"for job in $(seq $(wc -l < {folder}/calls)); do "
        'echo "$job|PENDING|None|0:00"; done\n',
        "scancel": "",
    }
    fake_commands(folder, commands, monkeypatch)


def fake_commands(folder: Path, commands: dict[str, str], monkeypatch) -> None:
    """Put shell scripts before the commands of their names."""
    folder.mkdir(exist_ok=True)
    for name, script in commands.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def run_script(script: str, nodes: str = "n1") -> subprocess.CompletedProcess[str]:
    """Run it as SLURM would on the first of `nodes`, as job 7, among `fake_commands`."""
    job = {"SLURM_JOB_ID": "7", "SLURMD_NODENAME": "n1", "SLURM_JOB_NODELIST": nodes}
    return subprocess.run(
        ["bash"],
        input=script,
        text=True,
        capture_output=True,
        timeout=30,
        env=os.environ | job,
    )
