"""`report`: the table of all scores, and report.html."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megatron_bar.stages.export_hf import MODEL_FOLDER
from megatron_bar.stages.stage import Stage

if TYPE_CHECKING:
    import torch

    from megatron_bar.costs.machine import Machine
    from megatron_bar.models.config import ModelConfig
    from megatron_bar.stages.context import Context
    from megatron_bar.stages.plan import StagePlan

REPORT = "report.html"


@dataclass(frozen=True)
class ReportStage(Stage):
    """Reads what all other stages left, and tells the scores to the exported model's card."""

    KIND = "report"
    LABEL = "report"

    def plan(self, model: ModelConfig, machine: Machine, stored: torch.dtype) -> StagePlan:
        from megatron_bar.stages.plan import no_cost

        return no_cost(self, model)

    def run(self, context: Context) -> dict[str, Any]:
        from megatron_bar.analysis.report import write_report
        from megatron_bar.analysis.routing_page import PAGE, write_routing_page
        from megatron_bar.analysis.scores import (
            kept_share,
            load_results,
            score_lines,
            score_table,
        )
        from megatron_bar.checkpoints.model_card import add_scores
        from megatron_bar.recipe.names import EXPORTED
        from megatron_bar.runtime.console import console
        from megatron_bar.stages.registry import LABELS

        results, last = load_results(context.run), context.graph.method.MODEL
        console.print(score_table(results, last))
        write_report(context.run, context.run / REPORT, last, LABELS)
        write_routing_page(context.run, context.run / PAGE)
        if EXPORTED in self.inputs and last in results:
            add_scores(context.run / EXPORTED / MODEL_FOLDER, score_lines(results, last))
        return {"kept_share": kept_share(results, last)}
