"""`megatron-bar plan --simulate`: what failing nodes and a queue make of a plan."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from megatron_bar.runtime.errors import BarError

if TYPE_CHECKING:
    from megatron_bar.costs.machine import Machine
    from megatron_bar.launch.plan.simulate import Cluster
    from megatron_bar.stages.plan import StagePlan


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add --simulate, and the cluster that it plays on."""
    options = parser.add_argument_group("a cluster whose nodes fail")
    add = options.add_argument
    add(
        "--simulate",
        action="store_true",
        help="play the recipe through: when it ends, GPU-hours lost, how often to save",
    )
    add("--nodes", type=int, help="nodes for the run (default: those of its largest stage)")
    add(
        "--node-mtbf",
        type=float,
        metavar="HOURS",
        help="between two failures of one node (default: 6,335, as published of H100 in 2024)",
    )
    add(
        "--queue-wait",
        type=float,
        default=10.0,
        metavar="MINUTES",
        help="that a job waits in the mean each time it is queued (default: 10)",
    )
    add(
        "--start-minutes",
        type=float,
        default=5.0,
        metavar="MINUTES",
        help="from a job's start to its first step (default: 5)",
    )
    add(
        "--time-limit",
        type=float,
        default=math.inf,
        metavar="HOURS",
        help="of a job, which saves and is queued again (default: none)",
    )
    add(
        "--write-rate",
        type=float,
        metavar="GB/s",
        help="at which the file system takes what all nodes save (default: the site's, else 100)",
    )
    add(
        "--node-write-rate",
        type=float,
        metavar="GB/s",
        help="... and what one node does (default: the site's, else 5)",
    )
    add("--trials", type=int, default=200, help="runs that are played (default: 200)")
    add("--trial-seed", type=int, default=0, metavar="SEED", help="of failures and waits")


def show_simulation(args: argparse.Namespace, plans: Sequence[StagePlan], machine: Machine) -> None:
    """Print how often to save and what is to be expected.

    Raises BarError for numbers that can't be, and for a plan that can't be played.
    """
    from megatron_bar.launch.plan import show_simulation as show
    from megatron_bar.launch.plan.simulate import jobs_of, simulate
    from megatron_bar.runtime.console import print_wide

    cluster = _cluster(args, plans, machine)
    jobs = jobs_of(plans, cluster)
    print_wide(
        show.saving_table(plans, jobs, cluster),
        show.outcome_table(simulate(jobs, cluster, args.trials, args.trial_seed)),
    )
    print(show.assumptions(cluster, args.trials))


def _cluster(args: argparse.Namespace, plans: Sequence[StagePlan], machine: Machine) -> Cluster:
    from megatron_bar.costs.machine import FileSystem
    from megatron_bar.launch.plan.simulate import NODE_MTBF_HOURS, Cluster

    known = machine.file_system
    total = known.total if args.write_rate is None else args.write_rate
    node = known.node if args.node_write_rate is None else args.node_write_rate
    mtbf = NODE_MTBF_HOURS if args.node_mtbf is None else args.node_mtbf
    for option, value in (
        ("--node-mtbf", mtbf),
        ("--time-limit", args.time_limit),
        ("--write-rate", total),
        ("--node-write-rate", node),
        ("--trials", args.trials),
    ):
        if not value > 0:
            raise BarError(f"{option} must be more than 0, and is {value}")
    for option, value in (
        ("--queue-wait", args.queue_wait),
        ("--start-minutes", args.start_minutes),
    ):
        if not 0 <= value < math.inf:
            raise BarError(f"{option} must be 0 or more, and is {value}")
    largest = max(plan.gpus for plan in plans)
    return Cluster(
        args.nodes or math.ceil(largest / machine.per_node),
        machine.per_node,
        3600 * mtbf,
        60 * args.queue_wait,
        60 * args.start_minutes,
        3600 * args.time_limit,
        FileSystem(total, node),
    )
