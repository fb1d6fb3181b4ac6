"""Every kind of stage: a line each."""

from __future__ import annotations

from megatron_bar.stages.branch import AdoptStage, BranchStage
from megatron_bar.stages.dpo import DpoStage
from megatron_bar.stages.evaluate import EvaluateStage
from megatron_bar.stages.export_hf import ExportStage
from megatron_bar.stages.import_hf import ImportStage
from megatron_bar.stages.merge import AverageStage, MergeStage, StackStage
from megatron_bar.stages.pretrain import PretrainStage
from megatron_bar.stages.report import ReportStage
from megatron_bar.stages.rlvr import RlvrStage
from megatron_bar.stages.route import RouteStage
from megatron_bar.stages.stage import Stage
from megatron_bar.stages.train import MidtrainStage, SftStage

KINDS: tuple[type[Stage], ...] = (
    PretrainStage,
    ImportStage,
    BranchStage,
    AdoptStage,
    MidtrainStage,
    SftStage,
    DpoStage,
    RlvrStage,
    MergeStage,
    AverageStage,
    StackStage,
    RouteStage,
    ExportStage,
    EvaluateStage,
    ReportStage,
)

# What reports call them, in the order in which a domain passes them.
LABELS = {kind.KIND: kind.LABEL for kind in KINDS}
