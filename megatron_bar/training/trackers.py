"""Services that get the metrics of a training too: Weights & Biases and MLflow.

Each is a class here, with a key of the same name in `recipe.training.Training` for the project or
the experiment. A stage that goes on after an interruption goes on in the same run of the service.
"""

from __future__ import annotations

import importlib.util
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from megatron_bar.recipe.training import Training
from megatron_bar.runtime.console import say
from megatron_bar.runtime.errors import BarError


class Tracker(Protocol):
    """One run of a service. It is made of the project's name and the stage's folder."""

    PACKAGE: str  # that it needs

    def __init__(self, project: str, folder: Path) -> None: ...

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Send the numbers of a step."""

    def close(self) -> None:
        """Send what is left, and end the run."""


class Wandb:
    """Weights & Biases. It has not been run against the service."""

    PACKAGE = "wandb"

    def __init__(self, project: str, folder: Path) -> None:
        import wandb

        name = _run_name(folder)
        self._run: Any = wandb.init(
            project=project, name=name, id=name, resume="allow", dir=str(folder)
        )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        self._run.finish()


class Mlflow:
    """MLflow, at the place that MLFLOW_TRACKING_URI says."""

    PACKAGE = "mlflow"
    # What names of metrics may not have. A file store takes a name for a path: no `loss` can stand
    # beside `loss/math`.
    _FOREIGN = re.compile(r"[^\w\-. :]")

    def __init__(self, project: str, folder: Path) -> None:
        from mlflow.entities import Metric
        from mlflow.tracking import MlflowClient

        self._metric, self._client = Metric, MlflowClient()
        known = self._client.get_experiment_by_name(project)
        experiment = known.experiment_id if known else self._client.create_experiment(project)
        name = _run_name(folder)
        runs = self._client.search_runs(
            [experiment], f"tags.mlflow.runName = '{name}'", max_results=1
        )
        if runs:
            self._id = runs[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            self._id = self._client.create_run(experiment, run_name=name).info.run_id

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self._client.log_batch(
            self._id,
            [
                self._metric(self._named(name), float(value), now, step)
                for name, value in numbers.items()
            ],
        )

    def close(self) -> None:
        self._client.set_terminated(self._id)

    def _named(self, name: str) -> str:
        return self._FOREIGN.sub("_", name.replace("/", "."))


TRACKERS: dict[str, type[Tracker]] = {"wandb": Wandb, "mlflow": Mlflow}


class Trackers:
    """The trackers that a training asks for, of the stage in `folder`.

    A service that fails on the way is told of and left alone from then on: metrics.jsonl has all.

    Raises BarError for one that can't be begun.
    """

    def __init__(self, training: Training, folder: Path) -> None:
        self._open: dict[str, Tracker] = {}
        for key, tracker in TRACKERS.items():
            if (project := getattr(training, key)) is not None:
                try:
                    self._open[key] = tracker(project, folder)
                except Exception as error:  # whatever the service's package raises
                    raise BarError(
                        f"{key} {project}: {_line(error)}; mend that, or leave it out"
                    ) from None

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._each(lambda tracker: tracker.log(step, numbers))

    def close(self) -> None:
        self._each(lambda tracker: tracker.close())

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for key, tracker in list(self._open.items()):
            try:
                act(tracker)
            except Exception as error:
                del self._open[key]
                say(f"warning: {key} takes no more metrics: {_line(error)}; metrics.jsonl has them")


def missing_trackers(training: Training) -> list[str]:
    """A fault for each tracker that a training asks for and this Python lacks."""
    return [
        f"{key} is asked for and not installed; pip install {tracker.PACKAGE}, or leave it out"
        for key, tracker in TRACKERS.items()
        if getattr(training, key) is not None and importlib.util.find_spec(tracker.PACKAGE) is None
    ]


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _run_name(folder: Path) -> str:
    return "-".join(folder.parts[-3:])
