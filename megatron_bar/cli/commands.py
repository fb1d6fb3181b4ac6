"""The work of each command: thin, and slow imports only where they are needed."""

from __future__ import annotations

import argparse

from megatron_bar.cli import checkpoints, evaluation
from megatron_bar.cli.planning import plan, planned_machine
from megatron_bar.runtime.errors import BarError


def _init(args: argparse.Namespace) -> None:
    from megatron_bar.cli.init import write_start

    write_start(args)


def _doctor(args: argparse.Namespace) -> int:
    from megatron_bar.cli.doctor import examine_machine

    return examine_machine(args.json)


def _run(args: argparse.Namespace) -> None:
    from megatron_bar.analysis.scores import load_results, score_table
    from megatron_bar.api.runs import run_all
    from megatron_bar.comparison.compare import compare_runs
    from megatron_bar.comparison.page import write_comparison
    from megatron_bar.comparison.tables import comparison_tables
    from megatron_bar.launch.local import show_work
    from megatron_bar.launch.stale import check_in_place
    from megatron_bar.methods import last_model
    from megatron_bar.methods.load import load_recipes
    from megatron_bar.runtime.console import console, print_wide, say

    recipes = load_recipes(args.recipe, args.overrides, values=False)
    check_in_place(args.recipe, recipes, args.overrides)
    if args.dry_run:
        show_work(recipes)
        return
    runs = run_all(recipes, args.jobs, args.yes)
    if len(runs) > 1:
        systems = compare_runs([run.folder for run in runs])
        print_wide(*comparison_tables(systems))
        page = runs[0].folder.parent / "report.html"
        write_comparison(page.parent.name, systems, page)
        say(f"report: {page}")
        return
    (run,) = runs
    console.print(score_table(load_results(run.folder), last_model(run.folder)))
    say(f"model: {run.model}   report: {run.report}")


def _compare(args: argparse.Namespace) -> None:
    from megatron_bar.comparison.compare import compare_runs, comparison_data
    from megatron_bar.comparison.tables import comparison_tables
    from megatron_bar.runtime.console import print_wide
    from megatron_bar.runtime.disk import check_output_file
    from megatron_bar.runtime.files import write_json

    if args.json is not None:
        check_output_file(args.json)
    systems = compare_runs(args.runs)
    print_wide(*comparison_tables(systems))
    if args.json is not None:
        write_json(args.json, comparison_data(systems))
        print(f"{args.json} is written")


def _data(args: argparse.Namespace) -> None:
    from megatron_bar.launch.data import prepare_data, show_data
    from megatron_bar.methods.load import load_recipe

    if args.data_command == "prepare":
        overrides = [word for word in args.overrides if "=" in word]
        names = [word for word in args.overrides if "=" not in word]
        prepare_data(load_recipe(args.recipe, overrides), names, args.processes)
    else:
        show_data(load_recipe(args.recipe, args.overrides), args.stage, args.step, args.items)


def _rehearse(args: argparse.Namespace) -> None:
    from megatron_bar.launch.rehearse.rehearsal import RehearsalOptions, rehearse
    from megatron_bar.launch.rehearse.table import closing, rehearsal_table
    from megatron_bar.methods.load import load_recipe
    from megatron_bar.runtime.console import print_wide, say
    from megatron_bar.runtime.disk import check_output_folder

    if args.keep is not None:
        check_output_folder(args.keep)
    machine = planned_machine(args)
    options = RehearsalOptions(machine, args.processes, args.model, args.tokenizer, args.keep)
    recipe = load_recipe(args.recipe, args.overrides, values=False)
    rehearsed = rehearse(recipe, options)
    if rehearsed.stages:
        print_wide(rehearsal_table(rehearsed))
        print(closing())
    for fault in rehearsed.faults:
        say(f"fault: {fault}")
    if rehearsed.faults:
        raise BarError(f"the recipe isn't ready to run; faults: {len(rehearsed.faults)}")
    say("no faults; the recipe is ready to run")


def _verify_data(args: argparse.Namespace) -> None:
    from megatron_bar.launch.check import check_writable
    from megatron_bar.launch.stale import run_folder
    from megatron_bar.launch.verify_data import verify_data
    from megatron_bar.methods.load import load_recipe
    from megatron_bar.runtime.disk import check_output_file

    recipe = load_recipe(args.recipe, args.overrides)
    run = run_folder(recipe)
    if args.out is None:
        check_writable(run)
    else:
        check_output_file(args.out)
    verify_data(recipe, args.out or run / "verify-data.jsonl")


def _upgrade(args: argparse.Namespace) -> None:
    from megatron_bar.analysis.upgrade import upgrade_table
    from megatron_bar.launch.upgrade import UpgradeRequest, undo, upgrade
    from megatron_bar.runtime.console import console, say

    replace, add = (
        _branches(option, given)
        for option, given in (("--replace", args.replace), ("--add", args.add))
    )
    request = UpgradeRequest(replace, add, args.drop, args.overrides)
    if args.undo:
        if request.anything or args.prepare:
            raise BarError("--undo goes alone")
        undo(args.run)
        say(f"{args.run} is as it was before its last upgrade")
        return
    done = upgrade(args.run, request, args.jobs, args.prepare, args.yes)
    if done is not None:
        console.print(upgrade_table(done))
        if others := done.others():
            say(others)
        say(done.words())
        say(f"before: {args.run / 'before'}   report: {args.run / 'report.html'}")


def _branches(option: str, given: list[str]) -> dict[str, str]:
    """NAME=BRANCH, each name once."""
    found: dict[str, str] = {}
    for word in given:
        name, separator, branch = word.partition("=")
        if not (name and separator and branch):
            raise BarError(f"{option} {word}: write NAME=BRANCH")
        if name in found:
            raise BarError(f"{option}: {name} is given twice")
        found[name] = branch
    return found


def _submit(args: argparse.Namespace) -> None:
    from megatron_bar.launch.slurm.site import TEMPLATES, load_site, template_of
    from megatron_bar.launch.slurm.submit import scripts_of, submit_recipe, write_scripts
    from megatron_bar.launch.stale import check_in_place
    from megatron_bar.methods.load import load_recipe

    site_path = args.site or TEMPLATES / "site.yaml"
    recipe = load_recipe(args.recipe, args.overrides, values=False)
    check_in_place(args.recipe, [recipe], args.overrides)
    chosen = (
        recipe,
        load_site(site_path),
        template_of(site_path),
        args.only,
        args.start,
        args.rehearse,
    )
    if args.dry_run:
        for name, script in scripts_of(*chosen).items():
            print(f"===== {name}\n{script}")
    elif args.write:
        write_scripts(*chosen, args.yes)
    else:
        submit_recipe(*chosen, args.yes)


def _status(args: argparse.Namespace) -> None:
    from megatron_bar.launch.slurm.status import stage_statuses, status_table
    from megatron_bar.runtime.console import print_wide

    print_wide(status_table(stage_statuses(args.run)))


def _watch(args: argparse.Namespace) -> None:
    from megatron_bar.launch.slurm.site import load_site
    from megatron_bar.launch.watch import PAGE, watch
    from megatron_bar.runtime.disk import check_output_file

    site = None if args.site is None else load_site(args.site)
    target = args.out or args.run / PAGE
    if args.out is not None:
        check_output_file(target)
    watch(args.run, target, args.every, site, args.once)


def _cancel(args: argparse.Namespace) -> None:
    from megatron_bar.launch.slurm.status import cancel

    stages = cancel(args.run, args.only)
    print(f"cancelled: {', '.join(stages)}" if stages else "no job is left to cancel")


def _stage(args: argparse.Namespace) -> None:
    from megatron_bar.runtime.machine_faults import machine_faults_told
    from megatron_bar.runtime.stopping import RaiseOnStopSignal

    with RaiseOnStopSignal(), machine_faults_told():
        from megatron_bar.methods.run import run_stage

        run_stage(args.run, args.name)


def _chat(args: argparse.Namespace) -> None:
    from megatron_bar.cli.chat import chat

    chat(args)


def _serve(args: argparse.Namespace) -> None:
    from megatron_bar.cli.serve import serve

    serve(args)


COMMANDS = {
    "init": _init,
    "doctor": _doctor,
    "run": _run,
    "compare": _compare,
    "data": _data,
    "plan": plan,
    "rehearse": _rehearse,
    "verify-data": _verify_data,
    "upgrade": _upgrade,
    "submit": _submit,
    "status": _status,
    "watch": _watch,
    "cancel": _cancel,
    "stage": _stage,
    "import": checkpoints.import_,
    "export": checkpoints.export,
    "branch": checkpoints.branch,
    "merge": checkpoints.merge,
    "verify": checkpoints.verify,
    "evaluate": evaluation.evaluate,
    "chat": _chat,
    "serve": _serve,
    "report": evaluation.report,
}
