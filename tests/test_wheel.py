"""The wheel by itself, away from the checkout: all files, and commands that need them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

import megatron_bar

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


def _run(command: list[str], **more) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, as setuptools puts a folder `build` beside its sources, and reads it."""
    source, out = (tmp_path_factory.mktemp(name) for name in ("source", "wheel"))
    for name in ("megatron_bar", "examples", "slurm"):
        shutil.copytree(
            ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    _run(
        [
            *PIP,
            "wheel",
            "--no-index",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            str(out),
            str(source),
        ]
    )
    (built,) = out.iterdir()
    return built


def test_the_wheel_holds_every_file_and_says_what_it_is(wheel):
    files = {
        os.path.relpath(os.path.join(folder, name), ROOT)
        for folder, _, names in os.walk(ROOT / "megatron_bar", followlinks=True)
        for name in names
        if not name.endswith(".pyc")
    }
    with ZipFile(wheel) as archive:
        assert files <= set(archive.namelist())
        (record,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        said = archive.read(record).decode()
    assert f"\nVersion: {megatron_bar.__version__}\n" in said
    assert "\nLicense-Expression: Apache-2.0\n" in said
    for extra in ("nemo-aligner", "lm-eval", "test"):
        assert f"\nProvides-Extra: {extra}\n" in said


def test_an_example_of_the_wheel_is_written_and_planned(wheel, tmp_path):
    place, away = tmp_path / "place", tmp_path / "away"
    away.mkdir()
    _run(
        [
            *PIP,
            "install",
            "--no-index",
            "--no-deps",
            "--no-compile",
            "--target",
            str(place),
            str(wheel),
        ]
    )
    here = {"cwd": away, "env": os.environ | {"PYTHONPATH": str(place)}}
    assert _run(
        [sys.executable, "-c", "import megatron_bar as m; print(m.__file__)"], **here
    ).startswith(str(place))
    command = [sys.executable, str(place / "bin" / "megatron-bar")]
    _run([*command, "init", "toy"], **here)
    assert {path.name for path in away.iterdir()} == {"toy.yaml", "site.yaml"}
    assert "math/rlvr" in _run([*command, "plan", "toy.yaml"], **here)
