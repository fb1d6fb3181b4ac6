"""One stage's job script."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import jinja2

from megatron_bar.generation.places import places
from megatron_bar.launch.logs import log_path
from megatron_bar.launch.slurm.containers import wrapping
from megatron_bar.launch.slurm.failed_nodes import failed_nodes_path, left_out
from megatron_bar.launch.slurm.site import Nodes, Site
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.health import OFF
from megatron_bar.runtime.layout import Layout
from megatron_bar.stages.rlvr import RlvrStage
from megatron_bar.stages.stage import Stage

REHEARSAL = "rehearsal"  # a job before all others, and its folder; no stage of a recipe
_EXCLUDE = "--exclude="
_PLAIN = re.compile(r"[\w./:=@%+,-]+")


def script_path(run: Path, stage: str) -> Path:
    return run / "slurm" / f"{stage.replace('/', '-')}.sbatch"


@dataclass(frozen=True)
class Rehearsal(Stage):
    """A job like those of stages, which no recipe's graph has."""

    KIND = REHEARSAL
    LABEL = "rehearsal"
    ON_GPU = True


def rehearsal(site: Site) -> Stage:
    """The nodes that a rehearsal asks of the cluster: a whole one of those that train."""
    return Rehearsal(REHEARSAL, layout=Layout(processes=site.gpu_nodes.ranks))


def stage_nodes(stage: Stage, site: Site) -> tuple[Nodes, int, int]:
    """The kind of node a stage runs on, how many its ranks need, and the ranks on each.

    Raises BarError where the layout doesn't fill its nodes evenly.
    """
    nodes = site.cpu_nodes if stage.KIND in site.cpu_stages else site.gpu_nodes
    processes = stage.layout.processes
    ranks = min(processes, nodes.ranks)
    if processes % ranks:
        raise BarError(
            f"{stage.name}: {processes} processes can't be spread over nodes of {nodes.ranks} "
            f"ranks; make layout.processes a multiple of {nodes.ranks}"
        )
    if isinstance(stage, RlvrStage) and stage.server_nodes:
        _check_servers(stage, ranks, nodes)
    return nodes, processes // ranks, ranks


def _check_servers(stage: RlvrStage, ranks: int, nodes: Nodes) -> None:
    """Raise BarError where nodes for servers can't be like those of the ranks, or be filled."""
    if ranks < nodes.ranks:  # all nodes of a job have as many GPUs
        raise BarError(
            f"{stage.name}: rollout_nodes adds whole nodes, and {ranks} processes don't fill one "
            f"of {nodes.ranks} ranks; make layout.processes a multiple of {nodes.ranks}, or leave "
            "rollout_nodes out"
        )
    try:
        list(places(stage.server_nodes, ranks, stage.training.rollout_options))
    except BarError as error:
        raise BarError(f"{stage.name}: {error}") from None


def render(stage: Stage, run: Path, site: Site, template: Path, workdir: Path) -> str:
    """The script of `stage` in the run's folder; relative paths hold from `workdir` on.

    Raises BarError for paths that SLURM can't take, a layout that doesn't fit the nodes, and for
    faults in the template.
    """
    run, workdir = run.absolute(), workdir.absolute()
    for path in (run, workdir):
        if re.search(r"[\n\\]", str(path)):
            raise BarError(f"{str(path)!r}: SLURM can't take a backslash or a line break in a path")
    nodes, node_count, ranks = stage_nodes(stage, site)
    inside = wrapping(site.container, list(site.environment), nodes.gpus, run, workdir)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["word"] = lambda value: shlex.quote(str(value))
    try:
        return environment.get_template(template.name).render(
            stage=stage.name,
            kind=stage.KIND,
            run=run,
            path=script_path(run, stage.name),
            failed_nodes=failed_nodes_path(run),
            options=_options(stage, run, site, nodes, node_count, ranks, workdir),
            nodes=node_count,
            server_nodes=stage.server_nodes,
            servers=run / "slurm" / f"{stage.name.replace('/', '-')}.servers",
            ranks=ranks,
            warning=site.warning,
            grace=site.warning * 3 // 4,
            hang_minutes=site.hang_minutes,
            gpus=nodes.gpus,
            network=site.network,
            health_check=site.health_check if nodes.gpus else OFF,
            modules=site.modules,
            setup=site.setup,
            environment=site.environment,
            container_options=inside.srun,
            container_command=inside.command,
            python=sys.executable if site.runs_here else site.python or "python",
        )
    except jinja2.TemplateError as error:
        raise BarError(f"template {template}: {error}") from None


def _options(
    stage: Stage, run: Path, site: Site, nodes: Nodes, count: int, ranks: int, workdir: Path
) -> list[str]:
    """Lines of #SBATCH, whose values SLURM unquotes itself."""
    alone = nodes.exclusive and ranks == nodes.ranks
    values = {
        "job-name": f"{run.name} {stage.name}",
        "account": site.account,
        "partition": nodes.partition,
        "nodes": count + stage.server_nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": ranks if nodes.gpus else None,
        "cpus-per-task": nodes.cpus and max(1, nodes.cpus * ranks // nodes.ranks),
        "exclusive": True if alone else None,
        "mem": nodes.memory or ("0" if alone else None),
        "time": site.times.get(stage.name, site.times.get(stage.KIND, nodes.time)),
        "chdir": workdir,
        # SLURM replaces %j and the like in this one.
        "output": str(log_path(run, stage.name)).replace("%", "%%"),
    }
    excluded = [option for option in nodes.options if option.startswith(_EXCLUDE)]
    without = [*(option.removeprefix(_EXCLUDE) for option in excluded), *left_out(run)]
    if without:  # SLURM heeds the last of several such options alone
        values[_EXCLUDE.strip("-=")] = ",".join(without)
    options = [
        f"--{name}" if value is True else f"--{name}={_directive(str(value))}"
        for name, value in values.items()
        if value is not None
    ]
    return options + [_directive(option) for option in nodes.options if option not in excluded]


def _directive(value: str) -> str:
    if _PLAIN.fullmatch(value):
        return value
    escaped = re.sub(r'(["\\])', r"\\\1", value)
    return f'"{escaped}"'
