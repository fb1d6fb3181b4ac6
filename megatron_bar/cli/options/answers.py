"""Commands that ask a model, and tell what a run amounts to."""

from __future__ import annotations

import sys
from pathlib import Path

from megatron_bar.cli.options.shared import Commands, add_answering_model, add_dtype_to_compute


def add_answer_commands(commands: Commands) -> None:
    """Add evaluate, chat, serve and report."""
    evaluate = commands.add("evaluate", "ask a model held-out items, or lm-eval's benchmarks")
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

    chat = commands.add("chat", "talk to a model in the terminal, and see what each expert had")
    add_answering_model(chat)
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

    serve = commands.add(
        "serve", "write the command that serves a model by vLLM, or check a server"
    )
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
    add_dtype_to_compute(serve)

    report = commands.add("report", "write what a run amounts to as one HTML page")
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
