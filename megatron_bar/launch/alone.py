"""One stage that trains by itself: from a checkpoint that lies anywhere, without a recipe's run.

Its folder is what a stage's is in a run, and it goes on in the same way after it was cut short.
Tokenized data lie beside it, so that stages whose folders are side by side share them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from megatron_bar.checkpoints.tokenizer_files import load_tokenizer
from megatron_bar.launch import processes
from megatron_bar.launch.check import check_this_machine
from megatron_bar.launch.check_data import check_readings
from megatron_bar.launch.logs import log_path
from megatron_bar.launch.processes import Job, JobFailed
from megatron_bar.methods import METHODS
from megatron_bar.methods.run import carry_out
from megatron_bar.methods.structure import training_structure_faults
from megatron_bar.methods.values import training_faults
from megatron_bar.models.config import ModelConfig
from megatron_bar.recipe.schema import Recipe
from megatron_bar.runtime.console import LOG_EVERY_SECONDS, LoggedProgress, read_progress, say
from megatron_bar.runtime.digests import content_digest
from megatron_bar.runtime.errors import BarError, raise_all
from megatron_bar.runtime.faults import Faults, require
from megatron_bar.runtime.files import json_digest
from megatron_bar.runtime.stopping import StopSignals
from megatron_bar.stages.context import (
    Context,
    RunGraph,
    changes_since,
    read_begun,
    read_done,
)
from megatron_bar.stages.rlvr import RlvrStage
from megatron_bar.stages.route import RouteStage
from megatron_bar.stages.training_stage import TrainingStage


@dataclass(frozen=True)
class AloneContext(Context[TrainingStage]):
    """The context of a stage that starts from the checkpoint `start`, not from another stage."""

    start: Path

    def checkpoint(self, role: str) -> Path:
        return self.start

    def input_ids(self) -> dict[str, dict[str, str]]:
        files = sorted(path for path in self.start.rglob("*") if path.is_file())
        contents = {str(path.relative_to(self.start)): content_digest(path) for path in files}
        return {"start": {"stage": str(self.start), "id": json_digest(contents)}}


def train_alone(stage: TrainingStage, start: Path, beside: Path, overwrite: bool = False) -> Path:
    """Check the stage and train in its folder, `beside`/NAME; returns the checkpoint it makes.

    Where it is done already, with these settings and from this start, nothing happens; one that was
    cut short goes on. What another training left there is replaced with `overwrite` alone.

    Raises BarError for what can't be trained, before anything is written, and where it fails;
    ContinueLater when a stop signal came, after the state was saved.
    """
    context = _context(stage, start.absolute(), beside.absolute())
    if _is_done(context, overwrite):
        say(f"{stage.name}: done already")
    else:
        _check(stage, start)
        if isinstance(stage, RlvrStage) and stage.preload is not None:
            processes.preload(stage.preload)
        _train(context)
    return context.folder / "checkpoint"


def _context(stage: TrainingStage, start: Path, beside: Path) -> AloneContext:
    recipe = Recipe(name=stage.name, seed=stage.seed, chat_template=stage.chat_template)
    # No stage that trains asks for the method; it is there for those that write a model card.
    return AloneContext(recipe, beside, stage, RunGraph([stage], METHODS[recipe.method]), start)


def _is_done(context: AloneContext, overwrite: bool) -> bool:
    """Whether nothing is left to do. Raises BarError if what stands isn't to be replaced."""
    folder, stage = context.folder, context.stage
    done = read_done(folder)
    record = done or read_begun(folder)
    if record is None:
        if folder.exists() and any(folder.iterdir()):
            raise BarError(f"{folder} holds something else than a training; give another folder")
        return False
    why = [str(change) for change in changes_since(record, stage, context.run)]
    if record["inputs"] != context.input_ids():
        why.append(f"it started from {record['inputs']['start']['stage']} as that was then")
    if why and not overwrite:
        raise BarError(
            f"{folder} holds another training ({why[0]}); give another folder, or overwrite it"
        )
    return done is not None and not why


def _check(stage: TrainingStage, start: Path) -> None:
    """Raise BarError with all that can be known to be wrong before the first step."""
    routes = isinstance(stage, RouteStage)
    raise_all(
        [
            *training_structure_faults(stage.training, stage.name, needs_data=not routes),
            *training_faults(stage.training, f"{stage.name}: "),
        ]
    )
    stage.layout.check()
    model, faults = ModelConfig.load(start), Faults()
    stage.check(stage.model([model], model), faults)
    stage.check_sources(faults)
    stage.check_installed(faults)
    check_this_machine([stage], faults)
    with faults.of(stage.name):
        check_readings(
            list(stage.readings()),
            load_tokenizer(start),
            stage.chat_template,
            model.max_position_embeddings,
            stage.seed,
            faults,
        )
    require(faults)


def _train(context: AloneContext) -> None:
    name, started = context.stage.name, time.monotonic()
    log = log_path(context.run, name)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    say(f"{name}: training; its log is {log}")
    job = processes.start(
        _rank,
        context.stage,
        context.start,
        context.run,
        processes=context.stage.layout.processes,
        log=log,
    )
    try:
        _wait(job, name, log)
    except JobFailed as error:
        raise BarError(f"{name}: {error} (log: {log})") from None
    finally:
        job.stop()
    done = read_done(context.folder)
    assert done is not None, "a job that ended well has written it"
    say(f"{name}: done in {time.monotonic() - started:.0f} s - {done['summary']}")


def _rank(stage: TrainingStage, start: Path, beside: Path) -> None:
    carry_out(_context(stage, start, beside))


def _wait(job: Job, name: str, log: Path) -> None:
    """Wait for the ranks, tell how far they are, and have them save when a stop signal comes."""
    told: LoggedProgress | None = None
    looked = time.monotonic()
    with StopSignals() as signals:
        while not job.poll():
            if signals.received is not None and not job.asked_to_stop:
                say(f"{name}: asked to save and stop; once more ends it at once")
                job.ask_to_stop(signals.received)
            if time.monotonic() - looked > LOG_EVERY_SECONDS:
                looked = time.monotonic()
                now = read_progress(log.read_text(errors="replace")) if log.is_file() else None
                if now is not None and now != told:
                    told = now
                    say(f"{name}: {now.what} {now.done}/{now.total}, {now.seconds_left:.0f} s left")
            time.sleep(processes.POLL_SECONDS)
