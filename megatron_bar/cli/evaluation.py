"""`evaluate` and `report`: how good models are, and what a run amounts to."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from megatron_bar.recipe.fields import FUNCTION
from megatron_bar.recipe.paths import located
from megatron_bar.recipe.schema import Evaluate
from megatron_bar.recipe.training import Source
from megatron_bar.runtime.errors import BarError, raise_all

# NAME=FILE:VERIFIER, of which the last may be FILE.py:FUNCTION.
_TASK = re.compile(r"([^=]+)=(.+?):([^:]+\.py:[^:]+|[^:]+)")


def evaluate(args: argparse.Namespace) -> None:
    from megatron_bar.runtime.disk import check_output_folder

    if args.out is not None:
        check_output_folder(args.out)
    settings = _settings(args)
    if args.suite is not None:
        _suite(args, settings)
    else:
        _tasks(args, settings)


def report(args: argparse.Namespace) -> None:
    from megatron_bar.analysis.report import write_report
    from megatron_bar.comparison.compare import compare_runs
    from megatron_bar.comparison.page import write_comparison
    from megatron_bar.comparison.tables import comparison_section
    from megatron_bar.methods import last_model
    from megatron_bar.runtime.disk import check_output_file
    from megatron_bar.stages.registry import LABELS

    target = args.out or args.run / "report.html"
    if args.run.is_dir():  # else reported as what it is
        check_output_file(target)
    if not (args.run / "recipe.yaml").is_file() and any(args.run.glob("*/recipe.yaml")):
        systems = compare_runs([args.run, *args.compare])
        write_comparison(args.run.resolve().name, systems, target)
    else:
        more = []
        if args.compare:
            more.append(comparison_section(compare_runs([args.run, *args.compare])))
        write_report(args.run, target, last_model(args.run), LABELS, more)
    print(f"{target} is written")


def _tasks(args: argparse.Namespace, settings: Evaluate) -> None:
    """Ask the checkpoint itself, in ranks of this machine."""
    from megatron_bar.analysis.scores import task_table
    from megatron_bar.api.checkpoints import as_checkpoint, is_hf, model_folder
    from megatron_bar.checkpoints.hf import model_config_from_hf
    from megatron_bar.checkpoints.tokenizer_files import load_tokenizer
    from megatron_bar.evaluation.model import RESULTS
    from megatron_bar.launch import processes
    from megatron_bar.launch.check_data import check_tasks
    from megatron_bar.launch.processes import JobFailed
    from megatron_bar.models.config import ModelConfig
    from megatron_bar.runtime.console import console, say
    from megatron_bar.runtime.files import read_json
    from megatron_bar.runtime.layout import Layout
    from megatron_bar.stages.work.evaluate import evaluate_checkpoint

    tasks, template, seed = _asked(args)
    source = model_folder(args.checkpoint)
    model = model_config_from_hf(source) if is_hf(source) else ModelConfig.load(source)
    for name in settings.opt_out:
        model.expert_id(name)
    layout = (settings.layout or Layout()).fitted(model.num_experts)
    model.check(layout)
    check_tasks(tasks, load_tokenizer(source), template, model.max_position_embeddings, seed)
    beside = None if args.out is None else args.out.absolute().parent
    with _folder(args.out) as folder, as_checkpoint(args.checkpoint, beside) as checkpoint:
        try:
            processes.start(
                evaluate_checkpoint,
                checkpoint,
                args.checkpoint,
                tasks,
                settings,
                template,
                layout,
                seed,
                folder,
                processes=layout.processes,
            ).wait()
        except JobFailed as error:
            raise BarError(str(error)) from None
        console.print(task_table(read_json(folder / RESULTS)))
    if args.out is not None:
        say(f"{args.out} holds every answer")


def _asked(args: argparse.Namespace) -> tuple[dict[str, list[Source]], str | None, int]:
    """The tasks, the chat template and the seed, of the recipe or of the command line."""
    from megatron_bar.methods.graph import recipe_tasks
    from megatron_bar.methods.load import load_recipe
    from megatron_bar.verifiers.registry import verifier_for

    tasks: dict[str, list[Source]] = {}
    template, seed = args.chat_template, args.seed
    if args.recipe is not None:
        recipe = load_recipe(args.recipe)
        tasks |= recipe_tasks(recipe)
        template = template or recipe.chat_template
        seed = recipe.seed if seed is None else seed
    for task in args.task:
        if (given := _TASK.fullmatch(task)) is None:
            raise BarError(f"--task {task}: give NAME=FILE:VERIFIER")
        name, path, verifier = given.groups()
        tasks[name] = [Source(path=path, verifier=located(verifier, Path(), FUNCTION))]
        verifier_for(tasks[name][0])
    if not tasks:
        raise BarError("there is nothing to ask; give --task, --recipe with tasks, or --suite")
    return tasks, template, seed or 0


def _suite(args: argparse.Namespace, settings: Evaluate) -> None:
    """Have lm-eval ask the exported model."""
    import yaml

    from megatron_bar.analysis.suites import suite_table
    from megatron_bar.evaluation.harness import configuration, run_suite, runnable
    from megatron_bar.evaluation.suite import load_suite
    from megatron_bar.runtime.console import console, say
    from megatron_bar.runtime.disk import check_output_folder

    if args.task or args.recipe or settings.temperature or settings.samples > 1 or settings.opt_out:
        raise BarError(
            "--suite asks its own tasks of the whole model, greedily; leave --task, "
            "--recipe, temperature, samples and opt_out out"
        )
    suite = load_suite(args.suite)
    model, target = _exported(args, suite.name)
    check_output_folder(target)
    benchmarks, left_out = runnable(suite, args.python, args.run_code)
    config = configuration(suite, benchmarks, model, settings, args.backend, args.limit)
    if args.dry_run:
        print(yaml.safe_dump(config, sort_keys=False), end="")
        return
    scores = run_suite(suite, benchmarks, left_out, config, args.python, target)
    console.print(suite_table([scores]))
    for category in scores["categories"].values():
        for name, why in category["missing"].items():
            say(f"{name} is missing: {why}")
    say(f"{target} holds lm-eval's configuration, output and every answer")


def _exported(args: argparse.Namespace, suite: str) -> tuple[Path, Path]:
    """The Hugging Face folder of a run or the one that is given, and where scores go."""
    from megatron_bar.api.checkpoints import exported_by
    from megatron_bar.checkpoints.hub import local_folder

    run = Path(args.checkpoint)
    if (exported := exported_by(run)) is not None:
        return exported, args.out or run / "suites" / suite
    folder = local_folder(args.checkpoint)
    if not (folder / "config.json").is_file():
        raise BarError(
            f"{run} is neither a run that exported its model nor a Hugging Face folder; "
            "megatron-bar export makes one of a checkpoint"
        )
    if args.out is None:
        raise BarError("--out is missing: where should the scores of a Hugging Face folder go?")
    return folder, args.out


def _settings(args: argparse.Namespace) -> Evaluate:
    """The recipe's `evaluate`, with the command line's keys.

    A recipe's opt_out and each_stage ask for evaluations of several models, and the command line's
    opt_out for one of this model.
    """
    from megatron_bar.methods.load import load_recipe
    from megatron_bar.methods.values import evaluate_faults
    from megatron_bar.recipe.layers import overridden

    start = Evaluate()
    if args.recipe is not None:
        start = dataclasses.replace(load_recipe(args.recipe).evaluate, opt_out=[], each_stage=False)
    settings = overridden(start, args.overrides, "evaluate")
    raise_all(list(evaluate_faults(settings)))
    if settings.each_stage:
        raise BarError("each_stage is for recipes; name the checkpoint of the stage to evaluate")
    return settings


@contextlib.contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    from megatron_bar.runtime.files import whole_folder

    if out is not None:
        with whole_folder(out) as folder:
            yield folder
    else:
        with tempfile.TemporaryDirectory(prefix="megatron-bar-") as name:
            yield Path(name)
