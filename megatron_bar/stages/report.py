"""`report`: the table of all scores, and report.html."""

from __future__ import annotations

from typing import Any

from megatron_bar.analysis.report import write_report
from megatron_bar.analysis.routing_page import PAGE, write_routing_page
from megatron_bar.analysis.runs import last_model
from megatron_bar.analysis.scores import kept_share, load_results, score_table
from megatron_bar.runtime.console import console
from megatron_bar.stages.context import Context

REPORT = "report.html"


def run(context: Context) -> dict[str, Any]:
    results, last = load_results(context.run), last_model(context.run)
    console.print(score_table(results, last))
    target = context.run / REPORT
    write_report(context.run, target)
    write_routing_page(context.run, context.run / PAGE)
    return {"kept_share": kept_share(results, last)}
