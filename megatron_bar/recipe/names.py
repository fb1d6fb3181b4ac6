"""Names of the folders of a run and of the models in it, whatever its method."""

from __future__ import annotations

# Models that are evaluated beside the domains' own.
ANCHOR, MERGED, ROUTED = "anchor", "merged", "routed"
ALL = "all"  # the folder of stages that train on all domains at once, and the model they make
# A routed model that is evaluated without one of its experts.
WITHOUT = "without-"


def model_after(stage: str) -> str:
    """The evaluated model that a domain's stage left, before the domain's later ones: math.sft."""
    return stage.replace("/", ".")


def parts_of_model(model: str) -> tuple[str, str]:
    """The domain of an evaluated model, and the stage that it is after: "" for its last."""
    domain, _, kind = model.partition(".")
    return domain, kind


EXPORTED = "hf"  # the stage that makes a Hugging Face folder
GENERAL = "general"  # the task that belongs to no domain

# Words of merge.shared that name a rule over the branches' changes from the anchor, and the keys of
# `merge` that each takes.
MERGE_RULES: dict[str, tuple[str, ...]] = {
    "task_arithmetic": ("scale",),
    "ties": ("density", "scale"),
    "dare_linear": ("density", "scale"),
    "dare_ties": ("density", "scale"),
    "fisher": (),
    "row_wise": (),
    "slerp": ("t",),
}

# Folders of a run, a task, or a word of merge.shared, that a domain's name would collide with.
TAKEN_NAMES = frozenset(
    {
        ANCHOR,
        MERGED,
        ROUTED,
        ALL,
        GENERAL,
        "base",
        "pretrained",
        EXPORTED,
        "evaluate",
        "report",
        "logs",
        "data",
        "published",
        "branches",
        "sections",
        "suites",
        "before",
        "slurm",
        "replaced",
        "rehearsal",
        *MERGE_RULES,
    }
)
# No domain's name begins so: it would pass for a model without an expert, or its logs for an
# evaluation's.
TAKEN_STARTS = (WITHOUT, "evaluate-")
