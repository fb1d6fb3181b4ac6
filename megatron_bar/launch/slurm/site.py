"""A description of the cluster: `site.yaml`."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from megatron_bar.costs.machine import Hardware, Machine, Measured, check_machine
from megatron_bar.launch.slurm.containers import NO_CONTAINER, RUNTIMES, Container
from megatron_bar.recipe.typed import filled, keys_of
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.health import MODES, WARN
from megatron_bar.runtime.plain_yaml import read_yaml
from megatron_bar.stages.registry import KINDS

# The project's slurm/ folder; an installed package carries a copy of it.
TEMPLATES = Path(__file__).parent / "templates"
TEMPLATE = "stage.sbatch.j2"
_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|API_?KEY|CREDENTIAL", re.IGNORECASE)
# Minutes, minutes:seconds, hours:minutes:seconds; with days, from hours on.
_TIME = re.compile(r"\d+(:[0-5]?\d){0,2}|\d+-([01]?\d|2[0-3])(:[0-5]?\d){0,2}")
_INTERFACE = re.compile(r"[\w.:^=,-]+")  # several, or a beginning, as NCCL has it
# SLURM may send its warning a minute early, and looks at time limits every half a minute.
_SHORTEST_WARNING = 30


@dataclass
class Nodes:
    """One kind of node, and how a job asks for it."""

    partition: str | None = None
    ranks: int = 1  # processes on one node
    gpus: bool = False  # one for each rank
    cpus: int | None = None  # cores of one node, for all its ranks; fewer ranks get their share
    memory: str | None = None  # of one node, as sbatch --mem takes it
    # Stages that fill their nodes share them with nobody, and have all of their memory
    exclusive: bool = False
    time: str = "1-00:00:00"  # as sbatch --time takes it: 12:00:00, 1-12:00:00; 90 is minutes
    options: list[str] = field(default_factory=list)  # further options of sbatch


@dataclass
class Site:
    """One cluster and the account to use there."""

    account: str | None = None
    gpu_nodes: Nodes = field(default_factory=lambda: Nodes(ranks=8, gpus=True))
    cpu_nodes: Nodes = field(default_factory=Nodes)
    # Kinds of stage that need no GPU.
    cpu_stages: list[str] = field(
        default_factory=lambda: [kind.KIND for kind in KINDS if not kind.ON_GPU]
    )
    times: dict[str, str] = field(default_factory=dict)  # by kind of stage or by stage
    max_jobs: int | None = None  # how many of a run may wait for nodes or run at once
    network: str | None = None  # the interface by which nodes meet, such as ib0
    warning: int = 600  # seconds before the time limit at which a stage is told to save
    hang_minutes: float = 30  # without progress for so long, a stage is ended
    # GPU nodes are measured before a stage begins: off, warn of slow ones, or refuse them
    health_check: str = WARN
    python: str | None = None  # the one that submits by default, or `python` in a container
    modules: list[str] = field(default_factory=list)
    setup: list[str] = field(default_factory=list)  # lines of shell
    environment: dict[str, str] = field(default_factory=dict)  # written into the scripts
    secrets: list[str] = field(default_factory=list)  # names that must be set in the environment
    container: Container = field(default_factory=Container)
    machine: Hardware = field(default_factory=Hardware)  # what `plan --site` reckons with
    gpu_hour_price: float | None = None  # of one GPU for an hour; `watch --site` reckons with it
    currency: str = "USD"

    @property
    def runs_here(self) -> bool:
        """Whether jobs run by the Python that submits."""
        return self.python is None and self.container.runtime == NO_CONTAINER


def load_site(path: Path) -> Site:
    """The site that a YAML file describes.

    Raises BarError for a file that is missing or no YAML, for unknown keys and values of the wrong
    kind, a line each, and for a secret that would be written into scripts.
    """
    site = filled(Site(), keys_of(read_yaml(path, "site"), Site))
    rows = [filled(Measured(), row) for row in site.machine.measured]
    site.machine = dataclasses.replace(site.machine, measured=rows)
    _check(site, path)
    return site


def machine_of(site: Site) -> Machine:
    """The machine that a plan for the site assumes."""
    return Machine(**vars(site.machine), per_node=site.gpu_nodes.ranks)


def template_of(site_path: Path) -> Path:
    """The template beside the site file, else the project's."""
    beside = site_path.parent / TEMPLATE
    return beside if beside.is_file() else TEMPLATES / TEMPLATE


def _check(site: Site, path: Path) -> None:
    for name in site.environment:
        if not name.isidentifier():
            raise BarError(f"site {path}: environment: {name!r} is not a variable's name")
        if _SECRET.search(name):
            raise BarError(
                f"site {path}: environment.{name} would be written into scripts; set "
                "it where you submit and list its name under secrets"
            )
    times = {"gpu_nodes.time": site.gpu_nodes.time, "cpu_nodes.time": site.cpu_nodes.time}
    for where, time in (times | {f"times.{k}": v for k, v in site.times.items()}).items():
        if not _TIME.fullmatch(time):
            raise BarError(
                f"site {path}: {where} {time!r} is not a time as SLURM has it, such as "
                "12:00:00, 1-12:00:00 or 90 (minutes)"
            )
    for nodes in ("gpu_nodes", "cpu_nodes"):
        if getattr(site, nodes).ranks < 1:
            raise BarError(f"site {path}: {nodes}.ranks must be 1 or more")
    if site.network is not None and not _INTERFACE.fullmatch(site.network):
        raise BarError(f"site {path}: network {site.network!r} is not an interface's name")
    if site.max_jobs is not None and site.max_jobs < 1:
        raise BarError(f"site {path}: max_jobs {site.max_jobs} is not 1 or more, or null")
    if site.warning < _SHORTEST_WARNING:
        raise BarError(f"site {path}: warning {site.warning} is less than {_SHORTEST_WARNING} s")
    if site.health_check not in MODES:
        raise BarError(
            f"site {path}: health_check {site.health_check!r} is not one of {', '.join(MODES)}"
        )
    if site.gpu_hour_price is not None and not 0 <= site.gpu_hour_price < math.inf:
        raise BarError(f"site {path}: gpu_hour_price {site.gpu_hour_price} is not 0 or more")
    check_machine(machine_of(site), f"site {path}: machine.")
    container = site.container
    if container.runtime not in (runtimes := (NO_CONTAINER, *RUNTIMES)):
        raise BarError(
            f"site {path}: container.runtime {container.runtime!r} is not one of "
            f"{', '.join(runtimes)}"
        )
    if container.runtime != NO_CONTAINER and not container.image:
        raise BarError(f"site {path}: container.image is missing")


def secrets_missing(site: Site) -> list[str]:
    """Names that the site wants set and that aren't; jobs get them from the environment."""
    return [name for name in site.secrets if not os.environ.get(name)]
