"""lm-eval on an exported model: its configuration written, run in a process of its own, and read.

lm-eval may live in an environment of its own: vLLM brings a torch, and some tasks pin packages that
our own dependencies need in other versions.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from megatron_bar.evaluation.suite import Benchmark, Suite, group_scores
from megatron_bar.recipe.schema import Evaluate
from megatron_bar.runtime.console import say
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import read_json, whole_folder, write_json

SCORES = "scores.json"
_CONFIG, _RAW, _LOG = "config.yaml", "lm-eval", "log.txt"
_VERSIONS = """\
import importlib.metadata, json
print(json.dumps({d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions()
                  if d.metadata["Name"]}))
"""


def runnable(suite: Suite, python: str, allow_code: bool) -> tuple[list[Benchmark], dict[str, str]]:
    """The benchmarks that can be run in the environment of `python`, and why others can't.

    Raises BarError if lm-eval isn't installed there, or none can be run.
    """
    versions = _versions(python)
    if "lm-eval" not in versions and "lm_eval" not in versions:
        raise BarError(
            f"lm-eval isn't installed for {python}; pip install "
            "'megatron-bar[lm-eval]', or name another environment's Python by --python"
        )
    chosen, left_out = [], {}
    for benchmark in suite.benchmarks:
        unmet = [
            f"{package} {version}".strip()
            for package, version in benchmark.needs.items()
            if not versions.get(package.lower(), "-").startswith(version)
        ]
        if benchmark.missing is not None:
            left_out[benchmark.name] = benchmark.missing
        elif benchmark.code and not allow_code:
            left_out[benchmark.name] = "runs code that the model writes; --run-code allows it"
        elif unmet:
            left_out[benchmark.name] = f"needs {', '.join(unmet)} where lm-eval is installed"
        else:
            chosen.append(benchmark)
    if not chosen:
        raise BarError(
            f"suite {suite.name}: no benchmark can be run: "
            f"{'; '.join(f'{name} {why}' for name, why in left_out.items())}"
        )
    return chosen, left_out


def configuration(
    suite: Suite,
    benchmarks: Sequence[Benchmark],
    model: Path,
    settings: Evaluate,
    backend: str,
    limit: int | None,
) -> dict[str, Any]:
    """lm-eval's configuration, for `lm_eval run --config`.

    `backend` is hf (transformers) or vllm; `limit` the items that are asked of each task. vLLM
    spreads the model over `settings.layout.tensor` GPUs.
    """
    arguments: dict[str, Any] = {
        "pretrained": str(model.absolute()),
        "dtype": settings.dtype or "auto",
    }
    if backend == "vllm":
        arguments["tensor_parallel_size"] = settings.layout.tensor if settings.layout else 1
    config = {
        "model": backend,
        "model_args": arguments,
        "tasks": [benchmark.task for benchmark in benchmarks],
        "batch_size": settings.batch_size,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "output_path": _RAW,
        "log_samples": True,
        **suite.settings,
    }
    if suite.tasks_folder is not None:
        config["include_path"] = str(suite.tasks_folder)
    if limit is not None:
        config["limit"] = limit
    if any(benchmark.code for benchmark in benchmarks):
        config["confirm_run_unsafe_code"] = True
    return config


def run_suite(
    suite: Suite,
    benchmarks: Sequence[Benchmark],
    left_out: dict[str, str],
    config: dict[str, Any],
    python: str,
    target: Path,
) -> dict[str, Any]:
    """Run lm-eval with `config`; writes the folder `target` and returns the grouped scores.

    The folder holds the configuration, what lm-eval printed and wrote, and scores.json; it replaces
    an earlier one when all is done.

    Raises BarError with the end of lm-eval's output if it fails.
    """
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false"}
    if config.get("confirm_run_unsafe_code"):
        environment["HF_ALLOW_CODE_EVAL"] = "1"
    with whole_folder(target, overwrite=True) as folder:
        (folder / _CONFIG).write_text(yaml.safe_dump(config, sort_keys=False))
        say(
            f"lm-eval: {len(benchmarks)} of {len(suite.benchmarks)} benchmarks; what it prints is "
            f"in {folder / _LOG}"
        )
        with open(folder / _LOG, "w") as log:
            done = subprocess.run(
                [python, "-m", "lm_eval", "run", "--config", _CONFIG],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        if done.returncode:
            lines = (folder / _LOG).read_text(errors="replace").strip().splitlines()
            raise BarError(
                f"lm-eval ended with exit status {done.returncode}: "
                f"{lines[-1].strip() if lines else 'it said nothing'}"
            )
        found = sorted((folder / _RAW).rglob("results_*.json"))
        if not found:
            raise BarError("lm-eval wrote no results")
        scores = group_scores(suite, read_scores(read_json(found[-1]), benchmarks), left_out)
        scores |= {
            "model": config["model_args"]["pretrained"],
            "backend": config["model"],
            "limit": config.get("limit"),
        }
        write_json(folder / SCORES, scores)
    return scores


def read_scores(
    results: dict[str, Any], benchmarks: Sequence[Benchmark]
) -> dict[str, dict[str, Any]]:
    """`score` and `items` of each benchmark, from what lm-eval wrote.

    Raises BarError where it has no such metric.
    """
    return {benchmark.name: _score(results, benchmark) for benchmark in benchmarks}


def _score(results: dict[str, Any], benchmark: Benchmark) -> dict[str, Any]:
    assert benchmark.task is not None, "only what lm-eval has is run"
    total, items = 0.0, 0
    for task in _leaves(results.get("group_subtasks", {}), benchmark.task):
        known = results["results"].get(task, {})
        if benchmark.metric not in known:
            there = ", ".join(
                key
                for key, value in known.items()
                if isinstance(value, float) and "_stderr" not in key
            )
            raise BarError(
                f"lm-eval's task {task} has no metric {benchmark.metric!r}; "
                f"it has {there or 'none'}"
            )
        count = results["n-samples"][task]["effective"]
        total += known[benchmark.metric] * count
        items += count
    return {
        "score": total / items,
        "items": items,
        "task": benchmark.task,
        "metric": benchmark.metric,
    }


def _leaves(groups: dict[str, list[str]], task: str) -> list[str]:
    """The tasks that `task` is a group of, or itself."""
    members = groups.get(task)
    return [leaf for member in members for leaf in _leaves(groups, member)] if members else [task]


def _versions(python: str) -> dict[str, str]:
    try:
        said = subprocess.run([python, "-c", _VERSIONS], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BarError(f"--python {python} can't be run: {error}") from None
    return json.loads(said.stdout)
