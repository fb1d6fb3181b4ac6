"""Every key a recipe may have.

A recipe is YAML with these keys; `megatron-bar run` reads it with OmegaConf, so that
`${...}` refers to other keys and `a.b=c` on the command line overrides one, `a.0.b=c` in an item
of a list.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from megatron_bar.recipe.fields import (
    ABOVE_0,
    AT_LEAST_0,
    COUNT,
    PATH,
    PATH_OR_NAME,
    RUN,
    SHARE,
    SHARE_ABOVE_0,
    TEMPLATE,
    key,
    one_of,
)
from megatron_bar.recipe.training import DTYPE, Dpo, Rlvr, RouteTraining, Source, Training
from megatron_bar.runtime.layout import Layout


@dataclass
class Pretrain:
    """Train a small dense base from scratch, where no Hugging Face folder is at hand.

    The model at `snapshot` (a share of the steps) plays the pretrained model, the last one the
    post-trained anchor.
    """

    model: str = "toy"  # a preset
    vocab_size: int = key(512, COUNT)  # of the tokenizer that is trained
    snapshot: float = key(0.5, SHARE_ABOVE_0)  # a share of the steps
    chat: list[Source] = field(default_factory=list)  # conversations, mixed with training.data
    training: Training = field(default_factory=Training)


@dataclass
class Domain:
    """One domain expert. A stage that isn't given is left out."""

    # A branch that was trained elsewhere from the same anchor, in place of the stages: a checkpoint
    # folder. `megatron-bar upgrade` writes it.
    checkpoint: str | None = key(None, file=PATH)
    routing: list[Source] = field(default_factory=list)  # what route samples; SFT's by default
    midtrain: Training | None = None  # on texts
    sft: Training | None = None  # on conversations
    dpo: Dpo | None = None  # on preference pairs
    rlvr: Rlvr | None = None  # on prompts with verifiable answers
    tasks: list[Source] = field(default_factory=list)  # held-out items that measure the domain


@dataclass
class Merge:
    """The way in which the models of the domains become one."""

    # What shared parameters become: published, the mean over the domains' models and the anchor;
    # branches, the mean over the domains' models alone; those of the one model named here, a
    # domain or anchor; or what a rule makes of the domains' changes from the anchor:
    # task_arithmetic, ties, dare_linear, dare_ties, fisher, row_wise or slerp (docs/merging.md).
    shared: str = "published"
    # Of task_arithmetic, ties and dare_*: what the combined change is multiplied by.
    scale: float = key(1.0, ABOVE_0)
    # Of a domain's change, the share of numbers that ties keeps, the largest ones, and that dare_*
    # keeps, drawn at random.
    density: float = key(0.2, SHARE_ABOVE_0)
    # Of slerp: the share of the way from the first domain's model to the second's.
    t: float = key(0.5, SHARE)


@dataclass
class Route:
    """Router training on the merged model."""

    fraction: float = 0.05  # of every source of every domain's SFT data
    # What the rows start from: each expert's own, as its branch trained it (stacked), or each
    # domain's mean router input, by layer (centroids; the anchor's is that of general data).
    start: str = key("stacked", one_of("stacked", "random", "centroids"))
    # Experts that a token goes to, k; all by default.
    experts_per_token: int | None = key(None, formerly="active")
    renormalize: bool = False  # make the probabilities of these k sum to 1
    # Coefficient of the loss that evens out use; for k below all.
    load_balancing_loss: float = key(0.0, AT_LEAST_0, formerly="load_balancing")
    training: RouteTraining = field(default_factory=RouteTraining)


@dataclass
class Evaluate:
    """Answers to held-out items, scored by the domain's rule."""

    general: list[Source] = field(default_factory=list)  # held-out items that every model gets
    max_new_tokens: int = key(64, COUNT)  # in an answer
    batch_size: int = key(64, COUNT)  # answers a data-parallel rank generates at once
    # 0: the most likely answer; above it answers are drawn by the seed.
    temperature: float = key(0.0, AT_LEAST_0)
    samples: int = key(1, COUNT)  # answers to an item, whose scores are averaged
    dtype: str | None = key(None, DTYPE)  # by default what the model is stored in
    # Experts to leave out of the routed model, one at a time, to measure what each brings.
    opt_out: list[str] = field(default_factory=list)
    # A domain's model after each of its stages, not only the last: what did RLVR bring?
    each_stage: bool = False
    # The recipe's layout by default. Items are shared among data-parallel ranks. A model whose
    # experts `expert` doesn't divide is spread over as many ranks as divide both.
    layout: Layout | None = key(None, runtime=True)

    @property
    def compute_dtype(self) -> str:
        """`dtype`, once it is settled by the model."""
        assert self.dtype is not None
        return self.dtype


@dataclass
class Recipe:
    """A whole run: from a dense Hugging Face checkpoint to one with experts."""

    name: str = "???"
    runs: str = "runs"  # the run is the folder runs/name
    seed: int = 0  # of data order, the new router rows, and sampling
    extends: str | None = None  # a recipe, named from this file's folder, that this one adds to
    # Which system is made of the domains' data: bar, or what it is compared with: flexolmo, btx,
    # dense_merge, continued, retrain or retrain_midtrain; docs/systems.md tells them apart.
    method: str = "bar"
    # Several runs in one, runs/name/SYSTEM each: this recipe with the keys given for the system, on
    # top of what the system extends in place of the recipe. What they have in common is made once.
    systems: dict[str, Any] = key(dict, keys_of_recipe=True)
    # Folders of other runs. Finished stages that are what this recipe asks for are taken from
    # there (as hard links where they can be), not made again.
    reuse: list[str] = key(list, file=RUN)
    # The post-trained model: a Hugging Face folder, or OWNER/NAME or OWNER/NAME@REVISION of the hub
    anchor: str | None = key(None, file=PATH_OR_NAME)
    # ... of the pretrained one, whose FFN the experts start from
    pretrained: str | None = key(None, file=PATH_OR_NAME)
    pretrain: Pretrain | None = None  # instead of the two above
    # olmo, tulu or a .jinja file; the tokenizer's own by default
    chat_template: str | None = key(None, file=TEMPLATE)
    layout: Layout = field(default_factory=Layout)  # of stages that train and name no other
    domains: dict[str, Domain] = field(default_factory=dict)  # one expert each, by name
    order: str = "mixed"  # of domains in method continued: mixed, or in sequence
    merge: Merge = field(default_factory=Merge)
    route: Route = field(default_factory=Route)
    # false: the routed checkpoint is the end. Needed for OLMo-3, as no Hugging Face class has
    # both its layers and experts.
    export: bool = True
    evaluate: Evaluate = field(default_factory=Evaluate)
