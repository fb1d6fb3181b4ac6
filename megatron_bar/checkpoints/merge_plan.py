"""The plan of a merge: which models, what each weighs in a group, which experts in which order.

Inputs are 2-expert branches, at most one merged model, and the dense anchor. A merged model counts
for as many models as its shared parameters are the mean of (`merged_from` in its model.json), so
that adding branches to it one by one gives the mean over all, but for the rounding in between.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_bar.checkpoints.dcp import CheckpointReader
from megatron_bar.checkpoints.names import shared_names
from megatron_bar.checkpoints.number_types import check_one_type
from megatron_bar.checkpoints.resume_point import open_checkpoint
from megatron_bar.models.config import ModelConfig, check_same_shape
from megatron_bar.recipe.names import ANCHOR
from megatron_bar.runtime.errors import BarError

MERGED = "merged"
ANCHOR_FFN = "expert.0"


@dataclass(frozen=True)
class Input:
    """A model that takes part. `name` is what weights call it: its expert, `anchor`, `merged`."""

    name: str
    folder: Path
    model: ModelConfig
    reader: CheckpointReader

    @property
    def models(self) -> tuple[str, ...]:
        """The names of the models that its shared parameters are the mean of."""
        return self.model.merged_from or () if self.name == MERGED else (self.name,)

    @property
    def branches(self) -> int:
        """The number of branches that its anchor's router row is the mean of."""
        return len([m for m in self.models if m != ANCHOR]) or self.model.ffns_per_layer - 1


@dataclass(frozen=True)
class Expert:
    """The origin of an expert of the result."""

    name: str
    source: Input
    index: int


@dataclass(frozen=True)
class Inputs:
    """All models of one merge, of one shape."""

    anchor: Input | None
    merged: Input | None
    branches: tuple[Input, ...]

    @property
    def with_experts(self) -> tuple[Input, ...]:
        return ((self.merged,) if self.merged else ()) + self.branches

    @property
    def all(self) -> tuple[Input, ...]:
        return self.with_experts + ((self.anchor,) if self.anchor else ())


def open_inputs(models: Sequence[Path], anchor: Path | None) -> Inputs:
    """Open what the user names. Raises BarError unless they can be merged."""
    if not models:
        raise BarError("merge needs at least one branch")
    for number, folder in enumerate(models):
        if Path(folder).resolve() in [Path(other).resolve() for other in models[:number]]:
            raise BarError(
                f"{folder} is given twice, and a model counts once; --weights says what it weighs"
            )
    opened = [_open(Path(folder)) for folder in models]
    merged = [i for i in opened if i.name == MERGED]
    branches = [i for i in opened if i.name != MERGED]
    if len(merged) > 1:
        raise BarError(
            f"{merged[0].folder} and {merged[1].folder} are both merged models; "
            "merge takes one of them and branches"
        )
    if merged and anchor is not None:
        raise BarError(
            f"{merged[0].folder} is a merged model and holds the anchor; leave out --anchor"
        )
    names = [branch.name for branch in branches]
    if len(set(names)) < len(names):
        if merged:
            raise BarError(f"two branches have an expert of the same name ({', '.join(names)})")
        branches = [dataclasses.replace(b, name=f"expert{i}") for i, b in enumerate(branches, 1)]
    dense = None
    if anchor is not None:
        model = ModelConfig.load(anchor)
        if model.num_experts is not None:
            raise BarError(f"{anchor} has {model.num_experts} experts; the anchor is a dense model")
        dense = Input(ANCHOR, Path(anchor), model, open_checkpoint(anchor))
    inputs = Inputs(dense, merged[0] if merged else None, tuple(branches))
    first, *others = inputs.all
    for other in others:
        check_same_shape(
            other.folder, other.model.without_experts(), first.folder, first.model.without_experts()
        )
    check_one_type([(i.model, i.reader) for i in inputs.all])
    return inputs


def _open(folder: Path) -> Input:
    model = ModelConfig.load(folder)
    if model.num_experts is None:
        raise BarError(f"{folder} is a dense model, not a branch (anchor and one domain expert)")
    is_branch = model.num_experts == 2 and model.merged_from is None
    name = model.all_expert_names[1] if is_branch else MERGED
    return Input(name, folder, model, open_checkpoint(folder))


def choose_experts(inputs: Inputs, names: Sequence[str] | None) -> list[Expert]:
    """The experts of the result, anchor first: those that `names` say, in this order.

    By default those of the merged model, then those of the branches. A branch whose expert has the
    name of one in the merged model takes its place.

    Raises BarError for a name that no input has, and unless the anchor comes first.
    """
    known: dict[str, Expert] = {}
    for source in inputs.with_experts:
        known.setdefault(ANCHOR, Expert(ANCHOR, source, 0))
        is_merged = source.name == MERGED
        domains = source.model.all_expert_names[1:] if is_merged else (source.name,)
        for index, name in enumerate(domains, 1):
            known[name] = Expert(name, source, index)
    if names is None:
        return list(known.values())
    if unknown := [name for name in names if name not in known]:
        raise BarError(
            f"--experts: there is no expert {unknown[0]!r}; there are {', '.join(known)}"
        )
    if names[:1] != [ANCHOR] or len(names) < 2 or len(set(names)) < len(names):
        raise BarError(
            f"--experts: name {ANCHOR} first, which is always expert 0, then at least "
            "one other, each once"
        )
    return [known[name] for name in names]


def default_weights(inputs: Inputs, average: str) -> dict[str, float] | None:
    """The weight of each input; None where a merged model doesn't say what it is the mean of.

    Raises BarError if `average` is unknown or needs an anchor that isn't given.
    """
    if average not in ("published", "branches"):
        raise BarError(f"--average: {average!r} is neither published nor branches")
    if inputs.merged is not None:
        if inputs.branches and not inputs.merged.models:
            return None
        return {i.name: float(len(i.models) or 1) for i in inputs.with_experts}
    if average == "branches":
        return {i.name: 1.0 for i in inputs.branches}
    if inputs.anchor is None:
        raise BarError(
            "the published mean takes the anchor in: give --anchor CKPT, or --average branches"
        )
    return {i.name: 1.0 for i in inputs.all}


def group_weights(
    inputs: Inputs, default: Mapping[str, float] | None, rules: Sequence[str]
) -> dict[str, dict[str, float]]:
    """The weight of each input, by group; inputs that weigh nothing are left out.

    A rule is `GROUP=NAME:WEIGHT,NAME:WEIGHT`, where GROUP may be a pattern and a NAME that isn't
    given weighs nothing; later rules go before earlier ones. Weights are relative to their sum.

    Raises BarError for a rule that can't be read, names what isn't there, or where one is missing.
    """
    shared = dict.fromkeys(name.group for name in shared_names(inputs.all[0].model))
    averaged = [*shared, ANCHOR_FFN]
    found: dict[str, Mapping[str, float]] = {}
    if default is not None:
        found = dict.fromkeys(averaged, default)
    for rule in rules:
        pattern, separator, right = rule.partition("=")
        groups = fnmatch.filter(averaged, pattern)
        if not separator or not groups:
            raise BarError(
                f"--weights {rule!r}: write GROUP=NAME:WEIGHT,..., where GROUP is one "
                f"of {', '.join(averaged)} or a pattern"
            )
        found |= dict.fromkeys(groups, _parse_weights(rule, right, [i.name for i in inputs.all]))
    if len(found) < len(averaged):
        assert inputs.merged is not None  # no other has a default that isn't known
        raise BarError(
            f"{inputs.merged.folder} doesn't say how many models its shared parameters are the "
            f"mean of; say what it weighs, for example --weights '*={MERGED}:4,"
            f"{inputs.branches[0].name}:1'"
        )
    return {
        group: {name: weight for name, weight in weights.items() if weight}
        for group, weights in ((group, found[group]) for group in averaged)
    }


def _parse_weights(rule: str, text: str, names: Sequence[str]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for term in text.split(","):
        name, _, number = term.partition(":")
        try:
            weights[name] = float(number)
        except ValueError:
            raise BarError(f"--weights {rule!r}: {term!r} is not NAME:WEIGHT") from None
        if name not in names:
            raise BarError(
                f"--weights {rule!r}: there is no {name!r}; there are {', '.join(names)}"
            )
        if not 0 <= weights[name] < float("inf"):
            raise BarError(f"--weights {rule!r}: a weight is a number that isn't negative")
    if not any(weights.values()):
        raise BarError(f"--weights {rule!r}: some weight must be above 0")
    return weights
