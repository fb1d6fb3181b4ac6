"""A recipe's stages as jobs that wait for each other."""

from __future__ import annotations

import contextlib
import fnmatch
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from megatron_bar.launch.check import check_works
from megatron_bar.launch.local import only_run, remove_stop_files
from megatron_bar.launch.logs import log_path
from megatron_bar.launch.replacing import confirm_replacing
from megatron_bar.launch.reuse import take_over
from megatron_bar.launch.slurm import jobs as job_book
from megatron_bar.launch.slurm.failed_nodes import failed_nodes_path, left_out
from megatron_bar.launch.slurm.jobs import Job
from megatron_bar.launch.slurm.scheduler import cancel_jobs, submit_job
from megatron_bar.launch.slurm.script import REHEARSAL, rehearsal, render, script_path
from megatron_bar.launch.slurm.site import Site, secrets_missing
from megatron_bar.launch.stale import run_folder, stale_stages
from megatron_bar.launch.starts import weights_here
from megatron_bar.launch.work import Work, work_of
from megatron_bar.methods import stage_graph
from megatron_bar.methods.load import save_recipe
from megatron_bar.recipe.schema import Recipe
from megatron_bar.recipe.typed import did_you_mean
from megatron_bar.runtime.console import say, warn
from megatron_bar.runtime.errors import BarError, raise_all
from megatron_bar.stages.context import identity
from megatron_bar.stages.registry import KINDS
from megatron_bar.stages.stage import Stage


def scripts_of(
    recipe: Recipe,
    site: Site,
    template: Path,
    only: Sequence[str] = (),
    start: str | None = None,
    rehearse: bool = False,
) -> dict[str, str]:
    """The script of each stage that isn't done and none of `reuse` has done, in order.

    Nothing is written or asked of SLURM. `only` and `start` choose among them, and `rehearse` puts
    another before them, as for `submit_recipe`. Raises BarError as it does; but where the models
    that the recipe starts from aren't on this machine, neither need the data be.
    """
    work, scripts = _prepared(recipe, site, template, only, start, rehearse, elsewhere=True)
    for loss in work.lost:
        warn(f"to be trained anew: {loss}")
    if not work.todo:
        warn(_nothing_to_do(work.run))
    return _of(scripts, work.todo)


def _nothing_to_do(run: Path) -> str:
    return f"{run}: nothing to do, all stages that are asked for are done"


def _of(scripts: dict[str, str], stale: list[Stage]) -> dict[str, str]:
    """Those of `scripts` that are of stale stages, behind the rehearsal's."""
    wanted = [REHEARSAL, *(stage.name for stage in stale)]
    found = {name: scripts[name] for name in wanted if name in scripts}
    return {} if list(found) == [REHEARSAL] else found


def _prepared(
    recipe: Recipe,
    site: Site,
    template: Path,
    only: Sequence[str],
    start: str | None,
    rehearse: bool,
    elsewhere: bool,
) -> tuple[Work, dict[str, str]]:
    """The work of a recipe that can be done, and the scripts of the stages that are chosen.

    `elsewhere`: the jobs may be for another machine, which has what isn't here.
    """
    stages = stage_graph(recipe)
    _check_names(site, stages)
    chosen = _chosen(stages, only, start)
    run = run_folder(recipe)
    first = [rehearsal(site)] if rehearse else []
    scripts = {
        stage.name: render(stage, run, site, template, Path.cwd())
        for stage in [*first, *(s for s in stages if s.name in chosen)]
    }
    work = work_of(recipe, chosen)
    check_works(
        [work],
        installed=site.runs_here and not elsewhere,
        absent=not elsewhere or weights_here(recipe),
    )
    return work, scripts


def write_scripts(
    recipe: Recipe,
    site: Site,
    template: Path,
    only: Sequence[str] = (),
    start: str | None = None,
    rehearse: bool = False,
    yes: bool = False,
) -> Path:
    """Write those scripts into the run's folder, and the recipe they need; returns the folder.

    Nothing is queued: they are there to be changed, and submitted by hand. What `reuse` has is
    taken over. Raises BarError as `scripts_of` does.
    """
    work, scripts = _prepared(recipe, site, template, only, start, rehearse, elsewhere=True)
    run, stages = work.run, work.stages
    with _open_run(run):
        _made_ready(work, recipe, yes)
        todo = _of(scripts, stale_stages(stages, run))
        _write(recipe, run, todo)
    say(f"{run / 'slurm'}: {len(todo)} scripts; submit each with sbatch once its inputs are done")
    return run


def _made_ready(work: Work, recipe: Recipe, yes: bool) -> dict[str, Job]:
    """The jobs that are active; where there are none, what `reuse` has is taken over.

    Raises BarError where they have other settings, and where training is not to be replaced.
    """
    active = job_book.active_jobs(work.run)
    _check_settings(work.stages, active)
    confirm_replacing([loss for loss in work.lost if loss.stage not in active], yes)
    if not active:
        take_over(work.stages, work.run, [Path(other) for other in recipe.reuse])
    return active


def submit_recipe(
    recipe: Recipe,
    site: Site,
    template: Path,
    only: Sequence[str] = (),
    start: str | None = None,
    rehearse: bool = False,
    yes: bool = False,
) -> Path:
    """Queue a job for each stage that isn't done or queued already; returns the run's folder.

    A job starts when those of its stage's inputs have ended well, and with `rehearse` when a
    rehearsal of the recipe has, which is queued before them. `only` holds stages, domains or
    patterns of stages to confine it to; `start` is a stage to confine it to with all that lies
    downstream. Where finished training would be replaced the user is asked, unless `yes`.

    Raises BarError, with nothing queued, for a recipe that can't work, training that the user
    doesn't want to be replaced, a stage whose input is neither done nor queued nor chosen, jobs
    that are queued with other settings, and what SLURM refuses.
    """
    work, scripts = _prepared(recipe, site, template, only, start, rehearse, elsewhere=False)
    run, stages = work.run, work.stages
    if missing := secrets_missing(site):
        raise BarError(f"the site's secrets {', '.join(missing)} are not set; export them first")
    with _open_run(run):
        # In this order: a stage that gets done in between is then still known as queued.
        active = _made_ready(work, recipe, yes)
        stale = stale_stages(stages, run)
        todo = [stage for stage in stale if stage.name in scripts]
        queued, orphans = still_good(stages, active, {stage.name for stage in todo})
        new = [stage for stage in todo if stage.name not in queued]
        _check_inputs(new, {stage.name for stage in stale}, queued)
        cancel_jobs([job.id for job in orphans])
        if REHEARSAL in active:
            queued[REHEARSAL] = active[REHEARSAL]
        elif new and REHEARSAL in scripts:
            new.insert(0, rehearsal(site))
        _write(recipe, run, {stage.name: scripts[stage.name] for stage in new})
        submitted = _submit(run, new, queued, site.max_jobs)
    _tell(run, submitted, queued)
    return run


@contextlib.contextmanager
def _open_run(run: Path) -> Iterator[None]:
    """The run's folder with what jobs need in it, for this process alone."""
    (run / "slurm").mkdir(parents=True, exist_ok=True)
    (run / "logs").mkdir(exist_ok=True)
    with only_run(run):
        yield


def _write(recipe: Recipe, run: Path, scripts: Mapping[str, str]) -> None:
    save_recipe(recipe, run / "recipe.yaml")
    remove_stop_files(run, stage_graph(recipe))
    for name, script in scripts.items():
        script_path(run, name).write_text(script)


def _check_names(site: Site, stages: Sequence[Stage]) -> None:
    """Raise BarError for what the site says of kinds of stage, or stages, that there aren't."""
    kinds = [*(kind.KIND for kind in KINDS), REHEARSAL]
    known = {
        "cpu_stages": (kinds, "a kind of stage"),
        "times": (
            [*kinds, *(stage.name for stage in stages)],
            "a kind of stage or a stage of this recipe",
        ),
    }
    raise_all(
        [
            f"the site's {key}: {name!r} is not {what}{did_you_mean(name, names)}"
            for key, (names, what) in known.items()
            for name in getattr(site, key)
            if name not in names
        ]
    )


def _chosen(stages: list[Stage], only: Sequence[str], start: str | None) -> set[str]:
    names = {stage.name for stage in stages}
    if start is not None:
        if start not in names:
            raise BarError(f"--from {start}: there is no such stage; there are {_list(names)}")
        names = downstream(stages, start)
    if only:
        names &= matching_stages(stages, only)
        if not names:
            raise BarError(f"--only {', '.join(only)} chooses none of the stages from {start} on")
    return names


def matching_stages(stages: list[Stage], patterns: Sequence[str]) -> set[str]:
    """The names of stages that are named, belong to a domain that is, or match a pattern.

    Raises BarError for a word that fits none.
    """
    found: set[str] = set()
    for pattern in patterns:
        fitting = {
            stage.name
            for stage in stages
            if fnmatch.fnmatchcase(stage.name, pattern)
            or stage.domain == pattern
            or stage.name.partition(".")[0] == f"evaluate/{pattern}"
        }
        if not fitting:
            raise BarError(
                f"--only {pattern}: no stage or domain is called so; there are "
                f"{_list({stage.name for stage in stages})}"
            )
        found |= fitting
    return found


def downstream(stages: list[Stage], start: str) -> set[str]:
    """`start` and all stages that need it, at whatever remove."""
    names = {start}
    for stage in stages:  # each comes after those it needs
        if names & set(stage.inputs.values()):
            names.add(stage.name)
    return names


def _list(names: set[str]) -> str:
    return ", ".join(sorted(names))


def _check_settings(stages: list[Stage], active: dict[str, Job]) -> None:
    """A queued job reads the run's recipe when it starts, so that must not change under it."""
    wanted = {stage.name: identity(stage) for stage in stages}
    for name, job in active.items():
        if name != REHEARSAL and wanted.get(name) != job.identity:
            raise BarError(
                f"job {job.id} does {name} with other settings; cancel it first "
                "(megatron-bar cancel), wait for it, or give the recipe another name"
            )


def still_good(
    stages: list[Stage], active: dict[str, Job], todo: set[str]
) -> tuple[dict[str, Job], list[Job]]:
    """Active jobs to keep, and those that wait for a job which is gone and has to be done again."""
    queued: dict[str, Job] = {}
    orphans = []
    for stage in stages:
        job = active.get(stage.name)
        if job is None:
            continue
        to_be_queued = [
            name for name in stage.inputs.values() if name in todo and name not in queued
        ]
        if to_be_queued:
            orphans.append(job)
        else:
            queued[stage.name] = job
    return queued, orphans


def _check_inputs(new: list[Stage], stale: set[str], queued: dict[str, Job]) -> None:
    available = {stage.name for stage in new} | set(queued)
    for stage in new:
        for name in stage.inputs.values():
            if name in stale and name not in available:
                raise BarError(
                    f"{stage.name} needs {name}, which is neither done nor queued; "
                    "choose it as well"
                )


def _submit(
    run: Path, new: list[Stage], queued: dict[str, Job], most: int | None
) -> dict[str, Job]:
    """Queue a job for each of `new`, so that no more than `most` may run or wait for nodes at once.

    For that each waits for the one that was queued as many places before it.
    """
    jobs = job_book.read_jobs(run)
    line = [job.id for job in queued.values()]
    submitted: dict[str, Job] = {}
    try:
        for stage in new:
            inputs = dict.fromkeys([REHEARSAL, *stage.inputs.values()])
            before = [
                (queued | submitted)[name].id
                for name in inputs
                if name in queued or name in submitted
            ]
            behind = line[-most] if most is not None and len(line) >= most else None
            job = submit_job(script_path(run, stage.name), before, behind)
            line.append(job)
            submitted[stage.name] = Job(job, identity(stage), time.time())
            # After each, so that a job is known even if this process is killed now.
            job_book.write_jobs(run, jobs | submitted)
    except BaseException:
        cancel_jobs([job.id for job in submitted.values()])
        job_book.write_jobs(run, jobs)
        raise
    return submitted


def _tell(run: Path, submitted: dict[str, Job], queued: dict[str, Job]) -> None:
    if submitted and (hosts := left_out(run)):
        warn(
            f"{', '.join(hosts)}: left out, since jobs failed there twice; take the lines out of "
            f"{failed_nodes_path(run)} once all is well"
        )
    if not submitted and not queued:
        say(_nothing_to_do(run))
        return
    for name, job in submitted.items():
        say(f"{name}: job {job.id}, log {log_path(run, name)}")
    say(
        f"{run}: {len(submitted)} jobs are queued, {len(queued)} were already; "
        f"follow them with megatron-bar status {run}"
    )
