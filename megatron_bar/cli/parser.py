"""The words of the command line."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import megatron_bar
from megatron_bar.cli import simulation
from megatron_bar.cli.help_texts import DESCRIPTION, EXAMPLES
from megatron_bar.recipe.names import MERGE_RULES
from megatron_bar.recipe.schema import Merge

# Options of which each is 1 or more.
COUNTS = ("jobs", "processes", "memory", "limit", "max_new_tokens", "port", "gpus", "every")


class _Versions(argparse.Action):
    """Ours, and those of what decides what comes out, as a report of a fault should have them."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print versions")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        names = ("torch", "megatron-core", "transformer-engine", "transformers", "nemo-aligner")
        words = [f"megatron-bar {megatron_bar.__version__}", f"Python {platform.python_version()}"]
        for name in names:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                words.append(f"{name} {importlib.metadata.version(name)}")
        print(", ".join(words))
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "megatron-bar",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Versions)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, summary: str, among: Any = commands) -> argparse.ArgumentParser:
        return among.add_parser(
            name.split()[-1],
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.\n\n" + EXAMPLES[name],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    init = command("init", "write a commented recipe to start from, and a site file")
    init.add_argument("example", nargs="?", metavar="NAME", help="toy, law, bar-7b ...")
    init.add_argument(
        "folder",
        type=Path,
        nargs="?",
        default=Path(),
        metavar="FOLDER",
        help="where to (default: here)",
    )

    doctor = command("doctor", "tell what this machine has, and what to install")
    doctor.add_argument("--json", action="store_true", help="print it as JSON")

    run = command("run", "run a recipe on this machine")
    _add_recipe(run)
    run.add_argument("--jobs", type=int, help="processes at once (default: the cores)")
    run.add_argument(
        "--dry-run", action="store_true", help="check all and tell what would run; write nothing"
    )
    _add_yes(run)

    compare = command("compare", "put finished runs side by side: scores, forgetting, cost")
    compare.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    compare.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there, too")

    data = commands.add_parser("data", help="prepare a recipe's data, or look at them")
    data_commands = data.add_subparsers(dest="data_command", required=True, metavar="COMMAND")

    prepare = command("data prepare", "tokenize what a recipe trains on", data_commands)
    prepare.add_argument("recipe", type=Path)
    prepare.add_argument(
        "overrides",
        nargs="*",
        metavar="STAGE or key=value",
        help="which stages (default: all that train), and overrides",
    )
    prepare.add_argument("--processes", type=int, help="default: the cores")

    show = command("data show", "print items as the model will see them", data_commands)
    show.add_argument("recipe", type=Path)
    show.add_argument("stage", help="for example math/sft")
    show.add_argument("overrides", nargs="*", metavar="key=value")
    show.add_argument("--step", type=int, default=1, help="default: 1")
    show.add_argument("--items", type=int, default=3, help="default: 3")

    plan = command("plan", "work out what a recipe needs and costs, before it is run")
    _add_recipe(plan)
    _add_machine(plan)
    plan.add_argument(
        "--layouts", metavar="STAGE", help="list layouts in which it fits, the fastest first"
    )
    plan.add_argument("--plot", type=Path, metavar="PNG", help="draw how the cost grows")
    simulation.add_options(plan)

    rehearse = command("rehearse", "run a recipe small and short, before the real run")
    _add_recipe(rehearse)
    rehearse.add_argument(
        "--processes",
        type=int,
        metavar="N",
        help="ranks of a stage at most (default: the GPUs, or 4 of a CPU)",
    )
    rehearse.add_argument(
        "--tokenizer",
        type=Path,
        metavar="PATH",
        help="a folder or a tokenizer.json, where the anchor's isn't here",
    )
    rehearse.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="leave the small models and their run there"
    )
    _add_machine(rehearse)

    verify_data = command("verify-data", "try references on their verifiers, item by item")
    _add_recipe(verify_data)
    verify_data.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the list of what is wrong (default: verify-data.jsonl in the run's folder)",
    )

    upgrade = command("upgrade", "change experts of a finished run")
    upgrade.add_argument("run", type=Path, help="the run's folder")
    upgrade.add_argument("overrides", nargs="*", metavar="key=value")
    for name, what in (("replace", "a better branch for a domain"), ("add", "a new domain")):
        upgrade.add_argument(
            f"--{name}",
            action="append",
            default=[],
            metavar="NAME=BRANCH",
            help=f"{what}; may be given several times",
        )
    upgrade.add_argument(
        "--drop",
        action="append",
        default=[],
        metavar="NAME",
        help="a domain to leave out; may be given several times",
    )
    upgrade.add_argument(
        "--prepare",
        action="store_true",
        help="change RUN/recipe.yaml only, for run or submit to do the rest",
    )
    upgrade.add_argument("--undo", action="store_true", help="put back what stood before")
    upgrade.add_argument("--jobs", type=int, help="processes at once (default: the cores)")
    _add_yes(upgrade)

    submit = command("submit", "run a recipe as SLURM jobs")
    _add_recipe(submit)
    submit.add_argument(
        "--site",
        type=Path,
        metavar="YAML",
        help="the cluster (default: the project's slurm/site.yaml)",
    )
    submit.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="a domain, a stage or a pattern; may be given several times",
    )
    submit.add_argument(
        "--from", dest="start", metavar="STAGE", help="this stage and what lies downstream"
    )
    submit.add_argument(
        "--rehearse",
        action="store_true",
        help="rehearse the recipe in a first job, which all others wait for",
    )
    instead = submit.add_mutually_exclusive_group()
    instead.add_argument("--dry-run", action="store_true", help="print the scripts, submit nothing")
    instead.add_argument(
        "--write",
        action="store_true",
        help="write the scripts into the run's folder, submit nothing",
    )
    _add_yes(submit)

    status = command("status", "show where a run stands")
    status.add_argument("run", type=Path, help="the run's folder")

    watch = command("watch", "write a page of a run, anew while the run goes on")
    watch.add_argument("run", type=Path, help="the run's folder")
    watch.add_argument("--every", type=int, default=30, metavar="SECONDS", help="default: 30")
    watch.add_argument("--once", action="store_true", help="write it now, and no more")
    watch.add_argument(
        "--site",
        type=Path,
        metavar="YAML",
        help="the cluster, whose gpu_hour_price tells what the run costs",
    )
    watch.add_argument("--out", type=Path, metavar="FILE", help="default: RUN/watch.html")

    cancel = command("cancel", "cancel what is left of a submitted run")
    cancel.add_argument("run", type=Path, help="the run's folder")
    cancel.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="a domain, a stage or a pattern; may be given several times",
    )

    stage = command("stage", "run one stage of a run, as one of its ranks")
    stage.add_argument("run", type=Path, help="the run's folder")
    stage.add_argument("name", help="for example math/sft")

    import_ = command("import", "turn a Hugging Face folder into a checkpoint")
    import_.add_argument(
        "hf_dir",
        metavar="HF",
        help="a folder, or OWNER/NAME[@REVISION] of the Hugging Face hub, which is downloaded",
    )
    import_.add_argument("out", type=Path)
    _add_dtype(import_)
    _add_processes(import_)

    export = command("export", "turn a checkpoint into a Hugging Face folder")
    export.add_argument("checkpoint", type=Path)
    export.add_argument("out", type=Path)
    export.add_argument(
        "--chat-template",
        metavar="NAME",
        help="olmo, tulu or a .jinja file (default: what the checkpoint was "
        "trained with, or its tokenizer's own)",
    )
    export.add_argument(
        "--max-shard-size", default="5GB", metavar="SIZE", help="of a weights file (default: 5GB)"
    )
    export.add_argument(
        "--active",
        type=int,
        metavar="K",
        help="experts that a token goes to (default: as many as in training)",
    )
    _add_dtype(export)
    _add_processes(export)

    branch = command("branch", "make a 2-expert model of an anchor and a pretrained model")
    branch.add_argument("--anchor", type=Path, required=True, metavar="CKPT")
    branch.add_argument(
        "--pretrained",
        type=Path,
        metavar="CKPT",
        help="where expert 1 starts from (default: the anchor)",
    )
    branch.add_argument("--name", default="domain", help="what expert 1 is called")
    branch.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of the router's rows; the same for all branches of a merge",
    )
    branch.add_argument("--out", type=Path, required=True, metavar="CKPT")
    _add_processes(branch)

    merge = command("merge", "make one model of several branches")
    merge.add_argument(
        "models",
        type=Path,
        nargs="+",
        metavar="MODEL",
        help="branches, or a merged model and branches to add to it",
    )
    merge.add_argument("--anchor", type=Path, metavar="CKPT", help="the dense anchor")
    merge.add_argument(
        "--average",
        choices=("published", "branches"),
        default="published",
        help="shared parameters: the mean over branches and anchor (default), or over the branches",
    )
    merge.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="GROUP=NAME:W,...",
        help="what the models weigh in a group of parameters, by their expert's "
        "name, anchor or merged; may be repeated",
    )
    merge.add_argument(
        "--anchor-ffn",
        choices=("same", "average"),
        default="same",
        help="the anchor's FFN: proven the same everywhere (default), or averaged, "
        "where branches trained it",
    )
    merge.add_argument(
        "--experts",
        type=lambda text: text.split(","),
        metavar="anchor,NAME,...",
        help="which experts the result has, in which order (default: all)",
    )
    merge.add_argument(
        "--rule",
        choices=list(MERGE_RULES),
        metavar="NAME",
        help="shared parameters: what a rule makes of the branches' changes from "
        f"the anchor, in place of a mean: {', '.join(MERGE_RULES)}",
    )
    merge.add_argument(
        "--scale",
        type=float,
        default=Merge.scale,
        metavar="FACTOR",
        help="of task_arithmetic, ties and dare_*: of the combined change (default: %(default)s)",
    )
    merge.add_argument(
        "--density",
        type=float,
        default=Merge.density,
        metavar="SHARE",
        help="of ties and dare_*: what is kept of a change (default: %(default)s)",
    )
    merge.add_argument(
        "--t",
        type=float,
        default=Merge.t,
        metavar="SHARE",
        help="of slerp: of the way from the first to the second (default: %(default)s)",
    )
    merge.add_argument("--seed", type=int, default=0, help="of what dare_* draws")
    merge.add_argument("--out", type=Path, required=True, metavar="CKPT")
    _add_processes(merge)

    evaluate = command("evaluate", "ask a model held-out items, or lm-eval's benchmarks")
    evaluate.add_argument(
        "checkpoint",
        help="a checkpoint, a Hugging Face folder or OWNER/NAME of "
        "the hub; with --suite: a run, or one of the last two",
    )
    evaluate.add_argument(
        "overrides", nargs="*", metavar="key=value", help="keys of a recipe's evaluate"
    )
    evaluate.add_argument(
        "--task",
        action="append",
        default=[],
        metavar="NAME=FILE:VERIFIER",
        help="items of a file, and how answers are scored: a verifier's name or "
        "FILE.py:FUNCTION; may be repeated",
    )
    evaluate.add_argument("--recipe", type=Path, help="whose tasks and settings to use")
    evaluate.add_argument(
        "--chat-template",
        metavar="NAME",
        help="olmo, tulu or a .jinja file (default: the recipe's, what the "
        "checkpoint was trained with, or its tokenizer's own)",
    )
    evaluate.add_argument("--seed", type=int, help="of what is drawn (default: the recipe's or 0)")
    evaluate.add_argument("--out", type=Path, metavar="FOLDER", help="scores and all answers")
    evaluate.add_argument(
        "--suite", metavar="NAME", help="benchmarks of lm-eval: paper, or a .yaml file"
    )
    evaluate.add_argument(
        "--backend",
        choices=("hf", "vllm"),
        default="hf",
        help="what generates for lm-eval (default: hf, transformers)",
    )
    evaluate.add_argument(
        "--python",
        default=sys.executable,
        metavar="PATH",
        help="of the environment that lm-eval is installed in (default: this)",
    )
    evaluate.add_argument("--limit", type=int, help="items of each of lm-eval's tasks")
    evaluate.add_argument(
        "--run-code",
        action="store_true",
        help="run benchmarks that execute what the model writes, unprotected",
    )
    evaluate.add_argument(
        "--dry-run", action="store_true", help="print lm-eval's configuration, run nothing"
    )

    chat = command("chat", "talk to a model in the terminal, and see what each expert had")
    _add_answering_model(chat)
    chat.add_argument("--system", metavar="TEXT", help="what the conversation begins with")
    chat.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        help="0: the likeliest token (default); above it tokens are drawn",
    )
    chat.add_argument("--seed", type=int, default=0, help="of what is drawn")
    chat.add_argument(
        "--max-new-tokens", type=int, default=512, metavar="N", help="in an answer (default: 512)"
    )
    chat.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="EXPERT",
        help="an expert to leave out; may be given several times",
    )

    serve = command("serve", "write the command that serves a model by vLLM, or check a server")
    serve.add_argument(
        "model",
        help="a run, a checkpoint, a stage's folder, a Hugging Face folder "
        "or OWNER/NAME of the hub",
    )
    serve.add_argument("--name", help="what the server calls it (default: as its folder)")
    serve.add_argument("--port", type=int, default=8000, help="default: 8000")
    serve.add_argument("--gpus", type=int, default=1, help="that share the model (default: 1)")
    serve.add_argument(
        "--check", metavar="URL", help="compare what the server at this address says with the model"
    )
    serve.add_argument(
        "--tolerance",
        type=float,
        metavar="X",
        help="largest mean distance of log-probabilities (default: 0.1)",
    )
    _add_dtype_to_compute(serve)

    report = command("report", "write what a run amounts to as one HTML page")
    report.add_argument("run", type=Path, help="the run's folder, or a folder of runs to compare")
    report.add_argument(
        "--compare",
        type=Path,
        nargs="+",
        default=[],
        metavar="RUN",
        help="finished runs, or folders of runs, to compare it with",
    )
    report.add_argument("--out", type=Path, metavar="FILE", help="default: RUN/report.html")

    verify = command(
        "verify", "prove a checkpoint's bits, or that it computes what transformers does"
    )
    verify.add_argument("checkpoint", help="or a Hugging Face folder, where no other is given")
    verify.add_argument(
        "hf_dir",
        metavar="HF",
        nargs="?",
        help="a folder, or OWNER/NAME[@REVISION] of the Hugging Face hub",
    )
    verify.add_argument(
        "--tensors", action="store_true", help="compare tensor by tensor, whatever the model's size"
    )
    verify.add_argument("--gradients", action="store_true", help="compare gradients too")
    verify.add_argument(
        "--tolerance",
        type=float,
        default=1e-5,
        help="largest relative difference of a module's output (default: 1e-5)",
    )
    return parser


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, help="the recipe's file")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="keys of the recipe, changed for this time",
    )


def _add_yes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--yes", action="store_true", help="replace finished training without a question"
    )


def _add_answering_model(parser: argparse.ArgumentParser) -> None:
    """What is loaded into this process to answer."""
    parser.add_argument(
        "model",
        help="a checkpoint, a stage's folder, a Hugging Face folder or OWNER/NAME of the hub",
    )
    parser.add_argument(
        "--chat-template",
        metavar="NAME",
        help="olmo, tulu or a .jinja file (default: what it was trained with, or "
        "its tokenizer's own)",
    )
    _add_dtype_to_compute(parser)


def _add_dtype_to_compute(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="what it computes in (default: what it is stored in)",
    )


def _add_machine(parser: argparse.ArgumentParser) -> None:
    """What a plan is made for."""
    parser.add_argument("--model", help="sizes to plan with, where the anchor isn't at hand")
    parser.add_argument(
        "--site",
        type=Path,
        metavar="PATH",
        help="site.yaml, whose `machine` says what the GPUs are and what was measured on them",
    )
    parser.add_argument("--gpu", help="what the GPUs are (default: the site's, else H100)")
    parser.add_argument("--memory", type=int, help="GiB of one GPU (default: the site's, else 80)")
    parser.add_argument(
        "--mfu",
        "--efficiency",
        dest="mfu",
        type=float,
        help="model FLOPs utilisation that training reaches, with its communication (default: "
        "worked out from what was measured)",
    )


def _add_dtype(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="cast the weights (default: as they are)",
    )


def _add_processes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--processes",
        type=int,
        metavar="N",
        help="how many write at once (default: one for each half GiB, at most "
        "one a core and 16); the result is the same",
    )
