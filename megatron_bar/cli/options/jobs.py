"""Commands of a run on a cluster, and of one that goes on."""

from __future__ import annotations

from pathlib import Path

from megatron_bar.cli.options.shared import Commands, add_recipe, add_yes


def add_job_commands(commands: Commands) -> None:
    """Add submit, status, watch, cancel and stage."""
    submit = commands.add("submit", "run a recipe as SLURM jobs")
    add_recipe(submit)
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
    add_yes(submit)

    status = commands.add("status", "show where a run stands")
    status.add_argument("run", type=Path, help="the run's folder")

    watch = commands.add("watch", "write a page of a run, anew while the run goes on")
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

    cancel = commands.add("cancel", "cancel what is left of a submitted run")
    cancel.add_argument("run", type=Path, help="the run's folder")
    cancel.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="a domain, a stage or a pattern; may be given several times",
    )

    stage = commands.add("stage", "run one stage of a run, as one of its ranks")
    stage.add_argument("run", type=Path, help="the run's folder")
    stage.add_argument("name", help="for example math/sft")
