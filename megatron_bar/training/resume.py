"""Checkpoints in the middle of a stage: model, optimizer, schedule and progress."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from megatron_bar.checkpoints.model_io import load_shards, save_shards, sharded_model_state
from megatron_bar.recipe.training import Training
from megatron_bar.runtime.console import say
from megatron_bar.runtime.distributed import all_reduce_any, is_main, on_main, written_together
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import remove_folder
from megatron_bar.training.background import BackgroundSave
from megatron_bar.training.boxes import one_key_a_slice
from megatron_bar.training.disk_space import check_disk_space, require_disk_space, sizes_of
from megatron_bar.training.model_run import ModelRun
from megatron_bar.training.optimizer_state import (
    allocate,
    count_steps,
    restore,
    sharded_optimizer_state,
)
from megatron_bar.training.param_gather import gather_parameters
from megatron_bar.training.saved import DAMAGED, FOLDER, remove_partial, saved_steps
from megatron_bar.training.saved_files import find_damage, has_digests, write_digests
from megatron_bar.training.setup import TrainingSetup

# Marks states whose moments are where they belong. Earlier ones lack it: where gradients lay in
# several buckets, theirs may be elsewhere.
_SOUND = "moments_in_place"
_ADVICE = "remove it to go on from the state before, or the stage's folder to start anew"


@dataclass
class Progress:
    """Progress of a stage: what a resume needs beside model, optimizer and schedule."""

    step: int = 0
    tokens: int = 0  # supervised ones
    skipped: int = 0  # bad steps, which the optimizer knows nothing of
    skipped_in_a_row: int = 0
    gradient_norms: list[float] = field(default_factory=list)  # of the last good steps

    @property
    def updates(self) -> int:
        """Steps of the optimizer."""
        return self.step - self.skipped


AnyProgress = TypeVar("AnyProgress", bound=Progress)


class ResumePoints(Generic[AnyProgress]):
    """The states a stage would go on from, in its folder's resume/: a folder a step, the last few.

    Any layout reads what another has written. Each is a model that converters read, too
    (`checkpoints.resume_point`).
    """

    def __init__(
        self,
        run: ModelRun,
        setup: TrainingSetup,
        training: Training,
        progress: type[AnyProgress],
    ) -> None:
        self.run = run
        self.kind = progress
        self.folder = run.folder / FOLDER
        self.model, self.wrapped = setup.model, setup.wrapped
        self.optimizer = setup.optimizer
        self.schedule = setup.schedule
        self.training = training
        self._last_save = time.monotonic()
        self._bytes = sizes_of(self.model, None).point
        # What is being written, where, and what is to be done when it is.
        self._on_its_way: tuple[BackgroundSave, Path, contextlib.ExitStack] | None = None

    def steps(self) -> list[int]:
        """The steps after which a state is saved, in order; all of them are whole."""
        return saved_steps(self.run.folder)

    def check_disk_space(self) -> None:
        """Compare what the stage will write with the room there is. All ranks call this.

        A new state is written before the oldest one goes.

        Raises BarError where the stage can't end; says so where there may not be enough.
        """
        to_come = self.training.keep + 1 - len(on_main(self.steps))
        check_disk_space(
            self.run.folder, sizes_of(self.model, self.run.start), max(to_come, 0), self.run.label
        )

    def due(self, step: int) -> bool:
        """Whether to save after `step`, the same on every rank."""
        minutes = self.training.save_every_minutes
        if minutes is None or step % self.training.save_every == 0:
            return step % self.training.save_every == 0
        return all_reduce_any(time.monotonic() - self._last_save >= 60 * minutes)

    def _state(self) -> dict[str, Any]:
        """Of what trains. Frozen parameters are in the checkpoint the stage started from."""
        model = one_key_a_slice(sharded_model_state(self.model))
        parts = {
            number: sharded_optimizer_state(part, model)
            for number, part in enumerate(self.optimizer.chained_optimizers)
        }
        trained = {key: entry for key, entry in model.items() if entry.data.requires_grad}
        # Megatron-Core complains of an empty dictionary that other ranks don't have.
        optimizer = {number: entries for number, entries in parts.items() if entries}
        state = {"model": trained, "optimizer": optimizer}
        return {name: entries for name, entries in state.items() if entries}

    def save(self, progress: Progress) -> None:
        """Save the state after `progress.step`, unless it is saved; every rank takes part.

        The folder takes its name when all have written; only then the oldest one goes. With
        `save_async` this returns as soon as the state is copied: `check` and `finish` do the rest.

        Raises BarError for weights that are no numbers, and where the disk hasn't room.
        """
        gather_parameters(self.wrapped)
        self.run.check_finite(self.model, progress.step)
        self.finish()
        if progress.step == 0 or progress.step in on_main(self.steps):
            return
        state = self._state()
        state |= {
            "schedule": self.schedule.state_dict(),
            "progress": dataclasses.asdict(progress),
            _SOUND: True,
        }
        target = self.folder / str(progress.step)
        with contextlib.ExitStack() as publishing:
            publishing.enter_context(require_disk_space(target, self._bytes, self._stands))
            publishing.callback(self._remove_old)
            folder = publishing.enter_context(written_together(target))
            if is_main():
                self.run.describe_resume_point(folder)
            if self.training.save_async:
                saving = BackgroundSave(state, folder)
                self._on_its_way = saving, folder, publishing.pop_all()
            else:
                write_digests(folder, save_shards(state, folder))
        self._last_save = time.monotonic()

    def _stands(self) -> str:
        if steps := self.steps():
            return f"the state after step {steps[-1]} stands"
        return "no state was saved before"

    def _remove_old(self) -> None:
        if is_main():
            for old in self.steps()[: -self.training.keep]:
                remove_folder(self.folder / str(old))

    def check(self) -> None:
        """Give a state that was being written its name, if it is written. All ranks call this."""
        if self._on_its_way is not None and self._on_its_way[0].is_written():
            self.finish()

    def finish(self) -> None:
        """Wait until the state that is being written, if one is, has its name."""
        if self._on_its_way is not None:
            (saving, folder, publishing), self._on_its_way = self._on_its_way, None
            with publishing:
                write_digests(folder, saving.finish())

    def _last_sound(self) -> Path | None:
        """The folder of the last state that is as it was written, None where none was saved."""
        steps = on_main(self.steps)
        while steps:
            path = self.folder / str(steps.pop())
            damage = find_damage(path)
            if damage is None:
                return path
            if not steps:
                raise BarError(f"{path} can't be loaded: {damage}; {_ADVICE}")
            if is_main():
                aside = path.with_name(f"{DAMAGED}-{path.name}")
                if aside.exists():
                    remove_folder(aside)
                path.rename(aside)
                say(
                    f"{self.run.label}: the state after step {path.name} is damaged: {damage}; it "
                    f"is {aside} now, and the stage goes on from the one before"
                )
        return None

    def load(self) -> AnyProgress:
        """Restore the last sound state; returns its progress, that of step 0 where none is saved.

        Says where the stage goes on, and what is wrong with later states, which are set aside.
        Raises BarError if none can be read.
        """
        # What saves before the optimizer's first step needs them too.
        for part in self.optimizer.chained_optimizers:
            allocate(part)
        if is_main():
            remove_partial(self.run.folder)
        path = self._last_sound()
        if path is None:
            for part in self.optimizer.chained_optimizers:
                count_steps(part, 0)
            return self.kind()
        if not has_digests(path):
            say(
                f"warning: {path} has no digests, as states of earlier versions have none: nobody "
                "can tell whether its files are what was written"
            )
        asked = self._state()
        try:
            state = load_shards(asked, path)
        except BarError as error:
            raise BarError(f"{error}; {_ADVICE}") from error
        # A rank on which nothing trains gets nothing back, not even empty dictionaries.
        self.model.load_state_dict(state.get("model", {}), strict=False)
        known = {entry.name for entry in dataclasses.fields(self.kind)}
        # Earlier versions kept more.
        progress = self.kind(**{k: v for k, v in state["progress"].items() if k in known})
        for number, part in enumerate(self.optimizer.chained_optimizers):
            restore(
                part,
                asked.get("optimizer", {}).get(number, {}),
                state.get("optimizer", {}).get(number, {}),
                progress.updates,
            )
        self.schedule.load_state_dict(state["schedule"])
        if not state.get(_SOUND) and self.training.megatron.get("overlap_grad_reduce"):
            say(
                f"warning: {path} is of an earlier version, which with overlap_grad_reduce could "
                "save the optimizer's moments in wrong places; if the loss jumps now, remove "
                f"{self.run.folder} to start the stage anew"
            )
        say(f"{self.run.label}: goes on after step {progress.step}")
        return progress
