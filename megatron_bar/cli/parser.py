"""The words of the command line, and the help that teaches them."""

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

_DESCRIPTION = """\
Branch, Adapt, Route: add a capability to a post-trained model without retraining it.

A recipe (YAML) goes from a dense Hugging Face checkpoint to a mixture of experts that transformers
and vLLM load: each domain expert is trained beside the frozen anchor, all are merged, and a small
router learns to weigh them.

  megatron-bar init toy                       writes toy.yaml: the whole of it, small
  megatron-bar run toy.yaml                   ... in minutes on a laptop
  megatron-bar run recipe.yaml route.fraction=0.1 seed=1      any key can be overridden
"""
_EXAMPLES = {
    "init": """\
Copies an example that this package carries, and a site.yaml that describes a cluster. Without a
name it tells what there is. Nothing is overwritten.

  megatron-bar init toy                       the whole of it, small
  megatron-bar init law mine                  a domain of your own; into the folder mine
""",
    "doctor": """\
A line for each part: what is here, what is missing and how to install it, what is known to be bad.
The status is 1 where something is missing that every run needs.

  megatron-bar doctor
  megatron-bar doctor --json > machine.json
""",
    "run": """\
Runs what is missing or stale, and what lies downstream of that. A second run does nothing. All is
checked before; a question is asked before hours of finished training are replaced.

  megatron-bar run examples/toy.yaml
  megatron-bar run examples/toy.yaml seed=1 name=toy-1
  rm -r runs/toy/math; megatron-bar run examples/toy.yaml     does the math expert again
""",
    "compare": """\
RUN is a run's folder, or one of several runs, as a recipe with systems makes. Runs that differ in
nothing but the seed are one line, with the standard deviation over the seeds.

  megatron-bar run examples/toy-compare.yaml
  megatron-bar compare runs/toy-compare runs/toy-compare-1 --json systems.json
""",
    "data prepare": """\
Tokenizes the sources of a recipe's training stages into its run's folder, where the stages find
them; they would do it themselves, but for datasets of the hub, which only this downloads. On a
cluster it spares the GPUs the wait: any machine that sees the folder will do. What is there stays;
what was cut short goes on.

  megatron-bar data prepare recipe.yaml                       all stages
  megatron-bar data prepare recipe.yaml math/midtrain --processes 64
""",
    "data show": """\
Prints what a stage reads at a step, document by document, with the tokens that carry loss in green.

  megatron-bar data show recipe.yaml math/sft
  megatron-bar data show recipe.yaml math/midtrain --step 1200 --items 10
""",
    "upgrade": """\
Replaces, adds or drops experts: merges and routes again, exports and measures, and leaves all else
as it is. BRANCH is a branch's checkpoint, the folder of a domain in another run, or a recipe whose
domain NAME is then trained here. What stood before stays in RUN/before until the next upgrade.

  megatron-bar upgrade runs/toy --replace code=runs/better/code
  megatron-bar upgrade runs/toy --add law=branches/law 'domains.law.routing=[{path: law.jsonl}]'
  megatron-bar upgrade runs/toy --add law=law.yaml --drop safety
  megatron-bar upgrade runs/toy                 goes on with one that was cut short
  megatron-bar upgrade runs/toy --undo          back to what stood before
""",
    "stage": """\
For job scripts: every rank runs this, with the environment torchrun gives it.

  torchrun --nproc-per-node 8 -m megatron_bar stage runs/bar-7b math/sft
""",
    "plan": """\
Nothing is run. What is assumed stands below the tables.

  megatron-bar plan examples/bar-7b.yaml --plot growth.png
  megatron-bar plan recipe.yaml layout.processes=256 --mfu 0.4
  megatron-bar plan recipe.yaml --simulate --nodes 16 --queue-wait 60 --time-limit 24
""",
    "rehearse": """\
Takes the recipe through all of its stages, in real ranks, with a model of two narrow layers that is
made like the anchor, and a few steps a stage; then loads the export with transformers, compares,
talks to it and generates. The recipe's own data, tokenizer, templates, verifiers and number types
are used; of its layouts as much as there are processes for. Nothing of the real run is touched.

  megatron-bar rehearse recipe.yaml
  megatron-bar rehearse recipe.yaml layout.tensor=4 --keep rehearsed
  megatron-bar rehearse examples/bar-7b.yaml --tokenizer OLMo-2-1124-7B     models that aren't here
""",
    "verify-data": """\
Scores the reference answer of every prompt of RLVR and every held-out item, which has to earn 1, an
empty answer and a wrong one, which have to earn 0. What doesn't is listed. No model is asked.

  megatron-bar verify-data recipe.yaml
  megatron-bar verify-data recipe.yaml domains.law.rlvr.data.0.verifier=law.py:score
""",
    "submit": """\
Queues a job for each stage that isn't done, with dependencies; branches run side by side. A second
submit goes on from what stands, and leaves alone what is queued.

  megatron-bar submit recipe.yaml --dry-run                   prints every script
  megatron-bar submit recipe.yaml --write                     writes them, for sbatch by hand
  megatron-bar submit recipe.yaml --site mycluster/site.yaml
  megatron-bar submit recipe.yaml --only math                 a domain, a stage or a pattern
  megatron-bar submit recipe.yaml --from merged               that stage and all downstream
  megatron-bar submit recipe.yaml --rehearse                  a short run first, with a small model
""",
    "status": """\
  megatron-bar status runs/bar-7b
""",
    "cancel": """\
What needs a cancelled stage is cancelled with it; the others go on.

  megatron-bar cancel runs/bar-7b --only math
""",
    "import": """\
Killed or interrupted, the same command goes on where it was. So do export, branch and merge.

  megatron-bar import OLMo-2-1124-7B-Instruct checkpoints/anchor
""",
    "export": """\
  megatron-bar export runs/toy/routed/checkpoint my-model --dtype bfloat16
  megatron-bar export runs/toy/math/sft/resume/100 half-way   of a stage that was cut short
""",
    "branch": """\
  megatron-bar branch --anchor checkpoints/anchor --pretrained checkpoints/pretrained \\
      --name math --out checkpoints/math
""",
    "merge": """\
Shared parameters become the mean, in fp32, over the branches and the anchor.

  megatron-bar merge --anchor checkpoints/anchor --out checkpoints/merged \\
      checkpoints/math checkpoints/code
  ... --average branches                        the mean leaves the anchor out
  ... --weights 'embeddings=math:3,code:1'      by group; relative to their sum

A merged model in place of the branches, alone or with branches to add to it:

  megatron-bar merge checkpoints/merged checkpoints/law --out checkpoints/with-law
  megatron-bar merge checkpoints/merged --experts anchor,code --out checkpoints/no-math

It counts in the mean for the models it was merged from: adding one to n gives
(n * merged + new) / (n + 1). What a dropped or replaced expert's branch brought into that
mean stays there.
""",
    "evaluate": """\
In-process, in any layout: answers to a recipe's tasks, or to items of a JSONL file, are scored by
its verifiers, with 95 % intervals. Items are conversations; docs/evaluation.md tells their columns.

  megatron-bar evaluate runs/toy/routed/checkpoint --recipe runs/toy/recipe.yaml
  megatron-bar evaluate checkpoints/merged --task gsm8k=gsm8k_test.jsonl:math max_new_tokens=1024 \\
      dtype=bfloat16 layout.processes=8 layout.tensor=2
  ... temperature=0.7 samples=8 --out scores/merged

Through lm-eval, on the exported model:

  megatron-bar evaluate runs/bar-7b --suite paper --backend vllm --python envs/lm-eval/bin/python
""",
    "report": """\
The page needs no network and runs no script. A run that isn't finished is reported as far as it is.

  megatron-bar report runs/toy
  megatron-bar report runs/toy --compare runs/toy-btx runs/toy-continued
  megatron-bar report runs/toy-compare                        all systems of a recipe
""",
    "verify": """\
CHECKPOINT alone (or a Hugging Face folder): every tensor against the manifest.

With HF_DIR: compares logits on random and real text with transformers', where the model has a
sliding window also on a text that is longer, and names the first module that diverges. Where both
models in fp32 don't fit into 80 % of the free memory, it compares tensor by tensor instead.

  megatron-bar verify checkpoints/anchor
  megatron-bar verify checkpoints/anchor OLMo-2-1124-7B-Instruct --gradients
""",
}

COUNTS = ("jobs", "processes", "memory", "limit")  # options of which each is 1 or more


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
        "megatron-bar", description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Versions)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, summary: str, among: Any = commands) -> argparse.ArgumentParser:
        return among.add_parser(
            name.split()[-1], help=summary, description=f"{summary[0].upper()}{summary[1:]}.\n\n"
            + _EXAMPLES[name], formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    init = command("init", "write a commented recipe to start from, and a site file")
    init.add_argument("example", nargs="?", metavar="NAME", help="toy, law, bar-7b ...")
    init.add_argument("folder", type=Path, nargs="?", default=Path(), metavar="FOLDER",
                      help="where to (default: here)")

    doctor = command("doctor", "tell what this machine has, and what to install")
    doctor.add_argument("--json", action="store_true", help="print it as JSON")

    run = command("run", "run a recipe on this machine")
    _add_recipe(run)
    run.add_argument("--jobs", type=int, help="processes at once (default: the cores)")
    run.add_argument("--dry-run", action="store_true",
                     help="check all and tell what would run; write nothing")
    _add_yes(run)

    compare = command("compare", "put finished runs side by side: scores, forgetting, cost")
    compare.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    compare.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there, too")

    data = commands.add_parser("data", help="prepare a recipe's data, or look at them")
    data_commands = data.add_subparsers(dest="data_command", required=True, metavar="COMMAND")

    prepare = command("data prepare", "tokenize what a recipe trains on", data_commands)
    prepare.add_argument("recipe", type=Path)
    prepare.add_argument("overrides", nargs="*", metavar="STAGE or key=value",
                         help="which stages (default: all that train), and overrides")
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
    plan.add_argument("--plot", type=Path, metavar="PNG", help="draw how the cost grows")
    simulation.add_options(plan)

    rehearse = command("rehearse", "run a recipe small and short, before the real run")
    _add_recipe(rehearse)
    rehearse.add_argument("--processes", type=int, metavar="N",
                          help="ranks of a stage at most (default: the GPUs, or 4 of a CPU)")
    rehearse.add_argument("--tokenizer", type=Path, metavar="PATH",
                          help="a folder or a tokenizer.json, where the anchor's isn't here")
    rehearse.add_argument("--keep", type=Path, metavar="FOLDER",
                          help="leave the small models and their run there")
    _add_machine(rehearse)

    verify_data = command("verify-data", "try references on their verifiers, item by item")
    _add_recipe(verify_data)
    verify_data.add_argument("--out", type=Path, metavar="FILE",
                             help="the list of what is wrong (default: verify-data.jsonl in the "
                             "run's folder)")

    upgrade = command("upgrade", "change experts of a finished run")
    upgrade.add_argument("run", type=Path, help="the run's folder")
    upgrade.add_argument("overrides", nargs="*", metavar="key=value")
    for name, what in (("replace", "a better branch for a domain"), ("add", "a new domain")):
        upgrade.add_argument(f"--{name}", action="append", default=[], metavar="NAME=BRANCH",
                             help=f"{what}; may be given several times")
    upgrade.add_argument("--drop", action="append", default=[], metavar="NAME",
                         help="a domain to leave out; may be given several times")
    upgrade.add_argument("--prepare", action="store_true",
                         help="change RUN/recipe.yaml only, for run or submit to do the rest")
    upgrade.add_argument("--undo", action="store_true", help="put back what stood before")
    upgrade.add_argument("--jobs", type=int, help="processes at once (default: the cores)")
    _add_yes(upgrade)

    submit = command("submit", "run a recipe as SLURM jobs")
    _add_recipe(submit)
    submit.add_argument("--site", type=Path, metavar="YAML",
                        help="the cluster (default: the project's slurm/site.yaml)")
    submit.add_argument("--only", action="append", default=[], metavar="NAME",
                        help="a domain, a stage or a pattern; may be given several times")
    submit.add_argument("--from", dest="start", metavar="STAGE",
                        help="this stage and what lies downstream")
    submit.add_argument("--rehearse", action="store_true",
                        help="rehearse the recipe in a first job, which all others wait for")
    instead = submit.add_mutually_exclusive_group()
    instead.add_argument("--dry-run", action="store_true", help="print the scripts, submit nothing")
    instead.add_argument("--write", action="store_true",
                         help="write the scripts into the run's folder, submit nothing")
    _add_yes(submit)

    status = command("status", "show where a submitted run stands")
    status.add_argument("run", type=Path, help="the run's folder")

    cancel = command("cancel", "cancel what is left of a submitted run")
    cancel.add_argument("run", type=Path, help="the run's folder")
    cancel.add_argument("--only", action="append", default=[], metavar="NAME",
                        help="a domain, a stage or a pattern; may be given several times")

    stage = command("stage", "run one stage of a run, as one of its ranks")
    stage.add_argument("run", type=Path, help="the run's folder")
    stage.add_argument("name", help="for example math/sft")

    import_ = command("import", "turn a Hugging Face folder into a checkpoint")
    import_.add_argument("hf_dir", metavar="HF", help="a folder, or OWNER/NAME[@REVISION] of the "
                         "Hugging Face hub, which is downloaded")
    import_.add_argument("out", type=Path)
    _add_dtype(import_)
    _add_processes(import_)

    export = command("export", "turn a checkpoint into a Hugging Face folder")
    export.add_argument("checkpoint", type=Path)
    export.add_argument("out", type=Path)
    export.add_argument("--chat-template", metavar="NAME",
                        help="olmo, tulu or a .jinja file (default: what the checkpoint was "
                        "trained with, or its tokenizer's own)")
    export.add_argument("--max-shard-size", default="5GB", metavar="SIZE",
                        help="of a weights file (default: 5GB)")
    _add_dtype(export)
    _add_processes(export)

    branch = command("branch", "make a 2-expert model of an anchor and a pretrained model")
    branch.add_argument("--anchor", type=Path, required=True, metavar="CKPT")
    branch.add_argument("--pretrained", type=Path, metavar="CKPT",
                        help="where expert 1 starts from (default: the anchor)")
    branch.add_argument("--name", default="domain", help="what expert 1 is called")
    branch.add_argument("--seed", type=int, default=0,
                        help="of the router's rows; the same for all branches of a merge")
    branch.add_argument("--out", type=Path, required=True, metavar="CKPT")
    _add_processes(branch)

    merge = command("merge", "make one model of several branches")
    merge.add_argument("models", type=Path, nargs="+", metavar="MODEL",
                       help="branches, or a merged model and branches to add to it")
    merge.add_argument("--anchor", type=Path, metavar="CKPT", help="the dense anchor")
    merge.add_argument("--average", choices=("published", "branches"), default="published",
                       help="shared parameters: the mean over branches and anchor (default), or "
                       "over the branches")
    merge.add_argument("--weights", action="append", default=[], metavar="GROUP=NAME:W,...",
                       help="what the models weigh in a group of parameters, by their expert's "
                       "name, anchor or merged; may be repeated")
    merge.add_argument("--anchor-ffn", choices=("same", "average"), default="same",
                       help="the anchor's FFN: proven the same everywhere (default), or averaged, "
                       "where branches trained it")
    merge.add_argument("--experts", type=lambda text: text.split(","), metavar="anchor,NAME,...",
                       help="which experts the result has, in which order (default: all)")
    merge.add_argument("--out", type=Path, required=True, metavar="CKPT")
    _add_processes(merge)

    evaluate = command("evaluate", "ask a model held-out items, or lm-eval's benchmarks")
    evaluate.add_argument("checkpoint", help="a checkpoint, a Hugging Face folder or OWNER/NAME of "
                          "the hub; with --suite: a run, or one of the last two")
    evaluate.add_argument("overrides", nargs="*", metavar="key=value",
                          help="keys of a recipe's evaluate")
    evaluate.add_argument("--task", action="append", default=[], metavar="NAME=FILE:VERIFIER",
                          help="items of a file, and how answers are scored: a verifier's name or "
                          "FILE.py:FUNCTION; may be repeated")
    evaluate.add_argument("--recipe", type=Path, help="whose tasks and settings to use")
    evaluate.add_argument("--chat-template", metavar="NAME",
                          help="olmo, tulu or a .jinja file (default: the recipe's, what the "
                          "checkpoint was trained with, or its tokenizer's own)")
    evaluate.add_argument("--seed", type=int, help="of what is drawn (default: the recipe's or 0)")
    evaluate.add_argument("--out", type=Path, metavar="FOLDER", help="scores and all answers")
    evaluate.add_argument("--suite", metavar="NAME",
                          help="benchmarks of lm-eval: paper, or a .yaml file")
    evaluate.add_argument("--backend", choices=("hf", "vllm"), default="hf",
                          help="what generates for lm-eval (default: hf, transformers)")
    evaluate.add_argument("--python", default=sys.executable, metavar="PATH",
                          help="of the environment that lm-eval is installed in (default: this)")
    evaluate.add_argument("--limit", type=int, help="items of each of lm-eval's tasks")
    evaluate.add_argument("--run-code", action="store_true",
                          help="run benchmarks that execute what the model writes, unprotected")
    evaluate.add_argument("--dry-run", action="store_true",
                          help="print lm-eval's configuration, run nothing")

    report = command("report", "write what a run amounts to as one HTML page")
    report.add_argument("run", type=Path, help="the run's folder, or a folder of runs to compare")
    report.add_argument("--compare", type=Path, nargs="+", default=[], metavar="RUN",
                        help="finished runs, or folders of runs, to compare it with")
    report.add_argument("--out", type=Path, metavar="FILE", help="default: RUN/report.html")

    verify = command("verify", "prove a checkpoint's bits, or that it computes what "
                     "transformers does")
    verify.add_argument("checkpoint", help="or a Hugging Face folder, where no other is given")
    verify.add_argument("hf_dir", metavar="HF", nargs="?",
                        help="a folder, or OWNER/NAME[@REVISION] of the Hugging Face hub")
    verify.add_argument("--tensors", action="store_true",
                        help="compare tensor by tensor, whatever the model's size")
    verify.add_argument("--gradients", action="store_true", help="compare gradients too")
    verify.add_argument("--tolerance", type=float, default=1e-5,
                        help="largest relative difference of a module's output (default: 1e-5)")
    return parser


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")


def _add_yes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true",
                        help="replace finished training without a question")


def _add_machine(parser: argparse.ArgumentParser) -> None:
    """What a plan is made for."""
    parser.add_argument("--model", help="sizes to plan with, where the anchor isn't at hand")
    parser.add_argument("--gpu", default="H100", help="what the GPUs are (default: H100)")
    parser.add_argument("--memory", type=int, default=80, help="GiB of one GPU (default: 80)")
    parser.add_argument("--mfu", "--efficiency", dest="mfu", type=float, default=0.35,
                        help="model FLOPs utilisation that training reaches (default: 0.35)")


def _add_dtype(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"),
                        help="cast the weights (default: as they are)")


def _add_processes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--processes", type=int, metavar="N",
                        help="how many write at once (default: one for each half GiB, at most "
                        "one a core and 16); the result is the same")
