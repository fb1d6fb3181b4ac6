"""Metrics that go to Weights & Biases and MLflow too, by modules with the calls that these have.

The MLflow test runs on the real one, with a file store, where it is installed.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from megatron_bar.recipe.training import Training
from megatron_bar.runtime.errors import BarError
from megatron_bar.training.metrics import Metrics, read_metrics
from megatron_bar.training.trackers import missing_trackers


class _Client:
    """MlflowClient, as far as it is called, with one store for all."""

    experiments: dict[str, str]
    runs: dict[str, SimpleNamespace]

    def get_experiment_by_name(self, name: str) -> Any:
        found = self.experiments.get(name)
        return found and SimpleNamespace(experiment_id=found)

    def create_experiment(self, name: str) -> str:
        return self.experiments.setdefault(name, str(len(self.experiments)))

    def search_runs(self, experiments: list[str], filter_string: str, max_results: int) -> Any:
        return [
            SimpleNamespace(info=run)
            for run in self.runs.values()
            if run.experiment_id in experiments
            and filter_string == f"tags.mlflow.runName = '{run.run_name}'"
        ][:max_results]

    def create_run(self, experiment: str, run_name: str) -> Any:
        run = SimpleNamespace(
            run_id=str(len(self.runs)),
            run_name=run_name,
            status="RUNNING",
            experiment_id=experiment,
            history=[],
        )
        self.runs[run.run_id] = run
        return SimpleNamespace(info=run)

    def update_run(self, run_id: str, status: str) -> None:
        self.runs[run_id].status = status

    def log_batch(self, run_id: str, metrics: list[Any]) -> None:
        self.runs[run_id].history += [(m.step, m.key, m.value) for m in metrics]

    def set_terminated(self, run_id: str) -> None:
        self.runs[run_id].status = "FINISHED"


@pytest.fixture
def mlflow(monkeypatch, tmp_path):
    """How to read what MLflow was given: `(status, history of the metric)` of the one run."""
    if importlib.util.find_spec("mlflow") is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow.tracking import MlflowClient

        def read(experiment: str, metric: str) -> tuple[str, list[tuple[int, float]]]:
            client = MlflowClient()
            (run,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
            history = client.get_metric_history(run.info.run_id, metric)
            return run.info.status, [(m.step, m.value) for m in history]

        return read
    monkeypatch.setattr(_Client, "experiments", {}, raising=False)
    monkeypatch.setattr(_Client, "runs", {}, raising=False)
    entities = SimpleNamespace(
        Metric=lambda key, value, timestamp, step: SimpleNamespace(
            key=key, value=value, timestamp=timestamp, step=step
        )
    )
    for name, module in (
        ("mlflow", ModuleType("mlflow")),
        ("mlflow.entities", entities),
        ("mlflow.tracking", SimpleNamespace(MlflowClient=_Client)),
    ):
        monkeypatch.setitem(sys.modules, name, module)

    def read_fake(experiment: str, metric: str) -> tuple[str, list[tuple[int, float]]]:
        (run,) = [
            run
            for run in _Client.runs.values()
            if run.experiment_id == _Client.experiments[experiment]
        ]
        return run.status, [(step, value) for step, key, value in run.history if key == metric]

    return read_fake


def test_mlflow_gets_every_number_and_goes_on_in_the_same_run(mlflow, tmp_path):
    folder, training = tmp_path / "runs" / "law" / "sft", Training(mlflow="law")
    folder.mkdir(parents=True)
    with Metrics(folder, training=training) as metrics:
        metrics.log(1, loss=2.5, router_load=[[0.25, 0.75]])
        metrics.log(2, loss=2.0, **{"loss/my#data": 1.0})
    with Metrics(folder, first_step=2, training=training) as metrics:
        metrics.log(3, loss=math.nan)
    status, losses = mlflow("law", "loss")
    assert status == "FINISHED"
    assert losses[:2] == [(1, 2.5), (2, 2.0)] and losses[2][0] == 3 and math.isnan(losses[2][1])
    assert mlflow("law", "router_load.0.1")[1] == [(1, 0.75)]
    assert mlflow("law", "loss.my_data")[1] == [(2, 1.0)]
    assert [line["step"] for line in read_metrics(folder)] == [1, 2, 3]


def test_wandb_gets_every_number_and_goes_on_in_the_same_run(monkeypatch, tmp_path):
    said: list[tuple] = []
    run = SimpleNamespace(
        log=lambda numbers, step: said.append((step, numbers)),
        finish=lambda: said.append(("finish",)),
    )
    monkeypatch.setitem(
        sys.modules,
        "wandb",
        SimpleNamespace(
            init=lambda **options: (
                said.append(("init", options["project"], options["id"], options["resume"])) or run
            )
        ),
    )
    folder = tmp_path / "toy" / "math" / "sft"
    folder.mkdir(parents=True)
    with Metrics(folder, training=Training(wandb="mine")) as metrics:
        metrics.log(1, loss=2.5, router_load=[0.25])
    assert said == [
        ("init", "mine", "toy-math-sft", "allow"),
        (1, {"loss": 2.5, "router_load/0": 0.25}),
        ("finish",),
    ]


class _Fails:
    """A run of Weights & Biases whose service is gone after the first step."""

    def log(self, numbers: dict, step: int) -> None:
        if step > 1:
            raise ConnectionError("the service\nis gone")

    def finish(self) -> None:
        raise AssertionError("it is left alone")


def test_a_service_that_fails_stops_no_training(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **options: _Fails()))
    with Metrics(tmp_path, training=Training(wandb="mine")) as metrics:
        for step in (1, 2, 3):
            metrics.log(step, loss=1.0)
    assert capsys.readouterr().out == (
        "warning: wandb takes no more metrics: ConnectionError: the "
        "service is gone; metrics.jsonl has them\n"
    )
    assert len(read_metrics(tmp_path)) == 3


def test_a_service_that_cannot_be_begun_is_told_in_one_line(monkeypatch, tmp_path):
    def refuse(**options: Any) -> None:
        raise PermissionError("log in\nfirst")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=refuse))
    with pytest.raises(BarError, match=r"^wandb mine: PermissionError: log in first; mend that"):
        Metrics(tmp_path, training=Training(wandb="mine"))


def test_a_tracker_that_is_missing_is_told_before(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert missing_trackers(Training(wandb="a", mlflow="b")) == [
        "wandb is asked for and not installed; pip install wandb, or leave it out",
        "mlflow is asked for and not installed; pip install mlflow, or leave it out",
    ]
    assert missing_trackers(Training()) == []


def test_nothing_is_asked_of_a_rank_that_tells_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr("megatron_bar.training.metrics.is_main", lambda: False)
    with Metrics(Path(tmp_path), training=Training(mlflow="law")) as metrics:
        metrics.log(1, loss=1.0)
    assert list(tmp_path.iterdir()) == []
