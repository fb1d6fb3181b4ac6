"""Containers in which a job's ranks run: what each runtime is told."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megatron_bar.runtime.errors import BarError

NO_CONTAINER = "none"


@dataclass
class Container:
    """The container in which the ranks run, if not on the bare node."""

    runtime: str = NO_CONTAINER  # none, pyxis (enroot's plugin for srun), apptainer or podman
    image: str | None = None
    mounts: list[str] = field(default_factory=list)  # HOST or HOST:INSIDE
    options: list[str] = field(default_factory=list)  # of srun (pyxis), apptainer exec, podman run


@dataclass(frozen=True)
class Inside:
    """The needs of a job's container."""

    image: str
    mounts: Sequence[str]
    folder: Path  # to work in
    environment: Sequence[str]  # names of variables in which the image has no say
    gpus: bool
    options: Sequence[str]


@dataclass(frozen=True)
class Wrapping:
    """The way of a job's step into a container."""

    srun: Sequence[str] = ()  # further options of srun
    command: Sequence[str] = ()  # what goes before the step's own command


def wrapping(
    container: Container, environment: Sequence[str], gpus: bool, run: Path, workdir: Path
) -> Wrapping:
    """The way of the jobs of the run in folder `run` into their container.

    The working folder and that of the runs are mounted where they are.

    Raises BarError for a path that can't be mounted.
    """
    if container.runtime == NO_CONTAINER:
        return Wrapping()
    assert container.image is not None  # which load_site asks for
    for path in (workdir, run.parent):
        if re.search("[,:]", str(path)):
            raise BarError(f"{path}: a container can't mount a path with a comma or a colon")
    inside = run.parent.is_relative_to(workdir)
    mounts = [str(workdir), *([] if inside else [str(run.parent)]), *container.mounts]
    return RUNTIMES[container.runtime](
        Inside(container.image, mounts, workdir, environment, gpus, container.options)
    )


def _pyxis(inside: Inside) -> Wrapping:
    # Otherwise a variable that the image sets as well would have the image's value.
    names = [f"--container-env={','.join(inside.environment)}"] if inside.environment else []
    return Wrapping(
        srun=[
            f"--container-image={inside.image}",
            f"--container-mounts={','.join(map(_pair, inside.mounts))}",
            f"--container-workdir={inside.folder}",
            *names,
            *inside.options,
        ]
    )


def _apptainer(inside: Inside) -> Wrapping:
    return Wrapping(
        command=[
            "apptainer",
            "exec",
            *(["--nv"] if inside.gpus else []),
            *(word for mount in inside.mounts for word in ("--bind", mount)),
            "--pwd",
            str(inside.folder),
            *inside.options,
            inside.image,
        ]
    )


def _podman(inside: Inside) -> Wrapping:
    """Network and shared memory are the node's: ranks meet by them."""
    return Wrapping(
        command=[
            "podman",
            "run",
            "--rm",
            "--network=host",
            "--ipc=host",
            "--env-host",
            *(f"--env={name}" for name in inside.environment),
            *(["--device=nvidia.com/gpu=all"] if inside.gpus else []),
            *(f"--volume={_pair(mount)}" for mount in inside.mounts),
            f"--workdir={inside.folder}",
            *inside.options,
            inside.image,
        ]
    )


def _pair(mount: str) -> str:
    return mount if ":" in mount else f"{mount}:{mount}"


RUNTIMES: dict[str, Callable[[Inside], Wrapping]] = {
    "pyxis": _pyxis,
    "apptainer": _apptainer,
    "podman": _podman,
}
