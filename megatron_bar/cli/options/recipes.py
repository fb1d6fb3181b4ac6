"""Commands that start, check and run a recipe."""

from __future__ import annotations

from pathlib import Path

from megatron_bar.cli import simulation
from megatron_bar.cli.options.shared import Commands, add_machine, add_recipe, add_yes


def add_recipe_commands(commands: Commands) -> None:
    """Add init, doctor, run and the others, up to upgrade."""
    init = commands.add("init", "write a commented recipe to start from, and a site file")
    init.add_argument("example", nargs="?", metavar="NAME", help="toy, law, bar-7b ...")
    init.add_argument(
        "folder",
        type=Path,
        nargs="?",
        default=Path(),
        metavar="FOLDER",
        help="where to (default: here)",
    )

    doctor = commands.add("doctor", "tell what this machine has, and what to install")
    doctor.add_argument("--json", action="store_true", help="print it as JSON")

    run = commands.add("run", "run a recipe on this machine")
    add_recipe(run)
    run.add_argument("--jobs", type=int, help="processes at once (default: the cores)")
    run.add_argument(
        "--dry-run", action="store_true", help="check all and tell what would run; write nothing"
    )
    add_yes(run)

    compare = commands.add("compare", "put finished runs side by side: scores, forgetting, cost")
    compare.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    compare.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there, too")

    data = commands.group("data", "prepare a recipe's data, or look at them")
    prepare = data.add("prepare", "tokenize what a recipe trains on")
    prepare.add_argument("recipe", type=Path)
    prepare.add_argument(
        "overrides",
        nargs="*",
        metavar="STAGE or key=value",
        help="which stages (default: all that train), and overrides",
    )
    prepare.add_argument("--processes", type=int, help="default: the cores")

    show = data.add("show", "print items as the model will see them")
    show.add_argument("recipe", type=Path)
    show.add_argument("stage", help="for example math/sft")
    show.add_argument("overrides", nargs="*", metavar="key=value")
    show.add_argument("--step", type=int, default=1, help="default: 1")
    show.add_argument("--items", type=int, default=3, help="default: 3")

    plan = commands.add("plan", "work out what a recipe needs and costs, before it is run")
    add_recipe(plan)
    add_machine(plan)
    plan.add_argument(
        "--layouts", metavar="STAGE", help="list layouts in which it fits, the fastest first"
    )
    plan.add_argument("--plot", type=Path, metavar="PNG", help="draw how the cost grows")
    simulation.add_options(plan)

    rehearse = commands.add("rehearse", "run a recipe small and short, before the real run")
    add_recipe(rehearse)
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
    add_machine(rehearse)

    verify_data = commands.add("verify-data", "try references on their verifiers, item by item")
    add_recipe(verify_data)
    verify_data.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the list of what is wrong (default: verify-data.jsonl in the run's folder)",
    )

    upgrade = commands.add("upgrade", "change experts of a finished run")
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
    add_yes(upgrade)
