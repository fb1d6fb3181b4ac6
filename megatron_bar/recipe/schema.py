"""Every key a recipe may have.

A recipe is YAML with these keys; `megatron-bar run` reads it with OmegaConf, so that
`${...}` refers to other keys and `a.b=c` on the command line overrides one, `a.0.b=c` in an item
of a list.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from megatron_bar.runtime.layout import Layout

# In the metadata of fields that name a file or folder which stages read: what kind of name it is.
# `recipe/paths.py` makes them absolute, from the folder of the recipe's file.
FILE = "file"
PATH = "path"
PATH_OR_NAME = "path or name"  # where no such path is, a name on the Hugging Face hub
RUN = "run"  # the folder of a run; where there is none, it is one of the working directory
TEMPLATE = ".jinja"  # a path if it ends so, else a name
# In the metadata of a field that was renamed: what it was called in the version before, which a
# recipe may still say (`recipe/renamed.py`).
FORMERLY = "formerly"
# In the metadata of a field whose values have the keys of a recipe.
KEYS_OF_RECIPE = "keys of a recipe"


@dataclass
class Source:
    """Where examples come from. Give one of `path`, `hub` and `toy`.

    Mid-training reads texts, SFT and routing read conversations: a list of `messages` with `role`
    and `content`, and where they occur `functions` (on a system or user turn) and `function_calls`
    (on an assistant turn). docs/data.md has the other forms that are read.
    """

    # A file (.jsonl, .ndjson, .json, .parquet or .txt, all but .parquet also .gz), a folder of such
    # files, or a pattern such as law/*.jsonl; ~ and $HOME are filled in. Several files are one
    # source.
    path: str | None = field(default=None, metadata={FILE: PATH})
    # a dataset of the Hugging Face hub, or a folder datasets can load
    hub: str | None = field(default=None, metadata={FILE: PATH_OR_NAME})
    toy: str | None = None  # a domain of the toy world: general, math, code, tool_use, safety
    name: str | None = None  # how the source is called in logs; its file or domain name by default
    # The form of conversations: messages (OpenAI's, and the project's own), sharegpt, alpaca or
    # prompt_completion; by default it is seen from the first record.
    format: str | None = None
    # What becomes of an item that can't be used: stop says its place and ends; skip leaves it out,
    # and all that were are counted and listed in left_out.jsonl.
    on_bad_item: str = "stop"
    split: str = "train"  # of a hub dataset or the toy world
    count: int | None = None  # take this many examples, spread over the source by the seed
    repeat: int = 1  # go through the source this many times in each epoch
    # Instead of repeat: the source's share of the mixture, of its tokens in mid-training, of its
    # conversations in SFT. Weights are relative to each other; all sources of a stage have one or
    # none has. Without them sources are mixed as large as they are.
    weight: float | None = None
    text_column: str = "text"  # of texts
    messages_column: str = "messages"  # of conversations
    # How answers to it are scored: math, code, tool_calls, instructions, safety or exact; a toy
    # domain's own rule, else exact, by default. What a reference is, each verifier's file says.
    verifier: str | None = None
    reference_column: str = "answer"  # without one, the reply that a conversation ends with


@dataclass
class Training:
    """How one stage trains. Defaults are what the stages of BAR have in common."""

    data: list[Source] = field(default_factory=list)  # what it reads, mixed
    # What trains: patterns over parameter groups. embeddings, attention, block_norms, final_norm,
    # head, ffn (of a dense model), expert.N and router.N, where 0 is the anchor.
    trainable: list[str] = field(default_factory=list)
    steps: int | None = None  # give one of steps, epochs and tokens
    epochs: float | None = None  # passes over the data
    tokens: str | None = None  # such as 50B: as many steps as read these, padding included
    sequence_length: int = 4096  # tokens in a row, into which documents are packed
    overlong: str = "truncate"  # or drop: conversations that are longer than a sequence
    batch_size: int = 256  # sequences in an optimizer step, over all processes
    micro_batch_size: int = 1  # sequences a process computes at once
    lr: float = 1e-4  # at the peak
    lr_scale: dict[str, float] = field(default_factory=dict)  # factor by group pattern
    schedule: str = "linear"  # linear, cosine or constant
    warmup: float = 0.03  # share of the steps
    warmup_steps: int | None = None  # or their number, in place of the share
    # the last learning rate, as a share of the peak
    min_lr_ratio: float = field(default=0.0, metadata={FORMERLY: "floor"})
    beta1: float = 0.9  # of AdamW, as beta2, eps and weight_decay
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0  # the largest norm of all gradients together
    router_z_loss: float = 1e-3  # its coefficient
    distributed_optimizer: bool = True  # its state spread over data-parallel ranks
    # What the stage computes in: float32, or bfloat16 with fp32 main weights and gradients; by
    # default what its start is stored in. What it writes is stored as its start is.
    dtype: str | None = None
    layout: Layout | None = None  # the recipe's layout by default
    # Activations to compute a second time in the backward pass: none, moe (the expert FFNs) or
    # full (whole layers).
    recompute: str = "none"
    # Fields of Megatron-Core's configurations that make a stage faster or smaller and leave alone
    # what it computes, such as {overlap_grad_reduce: true}; docs/training.md lists them.
    megatron: dict[str, Any] = field(default_factory=dict)
    # A bad step: its loss or gradient isn't a number, or its gradient norm is more than `spike`
    # times the median of the last good ones. stop ends the stage with the items it saw; skip
    # leaves model and optimizer as they were, at most `max_skips` times in a row.
    on_bad_step: str = "stop"
    spike: float | None = None
    max_skips: int = 10
    validation: list[Source] = field(default_factory=list)  # loss by source, at intervals
    validate_every: int = 500  # steps
    # What a stage leaves to go on from when it is cut short, every so many steps or minutes. keep
    # is how many of them; stop_after_minutes makes it save and end with exit status 75.
    save_every: int = 500
    save_every_minutes: float | None = None
    keep: int = 1
    save_async: bool = False  # write it while training goes on, from a copy in host memory
    stop_after_minutes: float | None = None
    log_every: int = 10  # steps
    peak_tflops: float | None = None  # of one device in this dtype; known for H100, H200, A100
    wandb: str | None = None  # a Weights & Biases project that gets the metrics too


# Keys of Training that say how a stage is computed, and not what comes out but for rounding. One
# that is done stays done when they change, and one that was cut short goes on.
HOW_NOT_WHAT = frozenset({
    "layout", "micro_batch_size", "recompute", "validation", "validate_every", "save_every",
    "save_every_minutes", "keep", "save_async", "stop_after_minutes", "log_every", "peak_tflops",
    "wandb", "kl_every", "rollout_batch_size", "rollout_servers", "rollout_folder",
    "verifiers_at_once", "backend",
})


@dataclass
class Rlvr(Training):
    """Reinforcement learning with verifiable rewards; defaults are the published settings.

    `data` are prompts, conversations whose reply (or another column) the verifier compares with.
    `steps` counts rollouts: prompts_per_step * samples_per_prompt responses each, from which
    optimizer steps of `batch_size` responses are made. Trains all shared parameters by default;
    the published comparison, `trainable: [expert.1, router.1]`, keeps them frozen.
    """

    lr: float = 6e-7
    schedule: str = "constant"
    warmup: float = 0.0
    router_z_loss: float = 0.0
    batch_size: int = 128  # responses in an optimizer step, over all processes
    save_every: int = 10
    log_every: int = 1
    prompts_per_step: int = 64  # in a rollout
    samples_per_prompt: int = 8  # responses to each
    prompt_length: int = 2048  # longer prompts are left out
    response_length: int = 4096  # tokens at most
    temperature: float = 1.0  # of sampling
    advantage: str = "centered"  # centered, grpo (over the deviation too) or rloo
    clip_low: float = 0.2  # the ratio to the sampling policy stays above 1 - clip_low
    clip_high: float = 0.272  # and below 1 + clip_high
    kl_coefficient: float = 0.0  # of the divergence from the stage's start, taken off the reward
    reward_scale: float = 10.0  # a right answer is worth so much
    # leave out prompts whose samples all got the same reward
    filter_zero_std: bool = field(default=True, metadata={FORMERLY: "drop_equal"})
    # don't ask a prompt again that was solved in so many of its samples
    no_resampling_pass_rate: float = field(default=0.875, metadata={FORMERLY: "rest_above"})
    truncated: str = "keep"  # keep responses that were cut, mask them, or give them zero reward
    # How often the KL divergence from the stage's start is measured for the logs, which takes a
    # forward pass; at every step where kl_coefficient is set. 0: never.
    kl_every: int = 10
    rollout_batch_size: int = 64  # responses a process generates (or asks a server for) at once
    # OpenAI-compatible servers that generate in place of the training processes, such as
    # [http://node7:8000], and the folder that they serve: each step exports its weights there.
    rollout_servers: list[str] = field(default_factory=list)
    rollout_folder: str | None = None
    verifiers_at_once: int = 8  # answers a process has scored side by side
    # What drives the steps: nemo_aligner (its REINFORCE trainer) or native, a loop of our own that
    # takes the same ones; by default NeMo-Aligner where it is installed, else native.
    backend: str | None = None


@dataclass
class Pretrain:
    """Train a small dense base from scratch, where no Hugging Face folder is at hand.

    The model at `snapshot` (a share of the steps) plays the pretrained model, the last one the
    post-trained anchor.
    """

    model: str = "toy"  # a preset
    vocab_size: int = 512  # of the tokenizer that is trained
    snapshot: float = 0.5  # a share of the steps
    chat: list[Source] = field(default_factory=list)  # conversations, mixed with training.data
    training: Training = field(default_factory=Training)


@dataclass
class Domain:
    """One domain expert. A stage that isn't given is left out."""

    # A branch that was trained elsewhere from the same anchor, in place of the stages: a checkpoint
    # folder. `megatron-bar upgrade` writes it.
    checkpoint: str | None = field(default=None, metadata={FILE: PATH})
    routing: list[Source] = field(default_factory=list)  # what route samples; SFT's by default
    midtrain: Training | None = None  # on texts
    sft: Training | None = None  # on conversations
    rlvr: Rlvr | None = None  # on prompts with verifiable answers
    tasks: list[Source] = field(default_factory=list)  # held-out items that measure the domain


@dataclass
class Merge:
    """How the models of the domains become one."""

    # What shared parameters become: published, the mean over the domains' models and the anchor;
    # branches, the mean over the domains' models alone; or those of the one model named here, a
    # domain or anchor.
    shared: str = "published"


@dataclass
class RouteTraining(Training):
    """Defaults are the published settings, 1.31 million tokens a step; two epochs if unsaid.

    Where the recipe's `layout.expert` doesn't divide the merged model's experts, they are spread
    over as many ranks as divide both, unless `layout` is given here.
    """

    sequence_length: int = 2048
    batch_size: int = 640


@dataclass
class Route:
    """Router training on the merged model."""

    fraction: float = 0.05  # of every source of every domain's SFT data
    # What the rows start from: stacked (each expert's own, as its branch trained it), random, or
    # centroids (each domain's mean router input, by layer; the anchor's is that of general data).
    start: str = "stacked"
    active: int | None = None  # experts that a token goes to, k; all by default
    renormalize: bool = False  # make the probabilities of these k sum to 1
    load_balancing: float = 0.0  # coefficient of the loss that evens out use; for k below all
    training: RouteTraining = field(default_factory=RouteTraining)


@dataclass
class Evaluate:
    """Answers to held-out items, scored by the domain's rule."""

    general: list[Source] = field(default_factory=list)  # held-out items that every model gets
    max_new_tokens: int = 64  # in an answer
    batch_size: int = 64  # answers a data-parallel rank generates at once
    temperature: float = 0.0  # 0: the most likely answer; above it answers are drawn by the seed
    samples: int = 1  # answers to an item, whose scores are averaged
    dtype: str | None = None  # float32 or bfloat16; by default what the model is stored in
    # Experts to leave out of the routed model, one at a time, to measure what each brings.
    opt_out: list[str] = field(default_factory=list)
    # The recipe's layout by default. Items are shared among data-parallel ranks. A model whose
    # experts `expert` doesn't divide is spread over as many ranks as divide both.
    layout: Layout | None = None


@dataclass
class Recipe:
    """A whole run: from a dense Hugging Face checkpoint to a FlexOlmo one."""

    name: str = "???"
    runs: str = "runs"  # the run is the folder runs/name
    seed: int = 0  # of data order, the new router rows, and sampling
    extends: str | None = None  # a recipe, named from this file's folder, that this one adds to
    # Which system is made of the domains' data: bar, or what it is compared with: flexolmo, btx,
    # dense_merge, continued, retrain or retrain_midtrain; docs/systems.md tells them apart.
    method: str = "bar"
    # Several runs in one, runs/name/SYSTEM each: this recipe with the keys given for the system, on
    # top of what the system extends in place of the recipe. What they have in common is made once.
    systems: dict[str, Any] = field(default_factory=dict, metadata={KEYS_OF_RECIPE: True})
    # Folders of other runs. Finished stages that are what this recipe asks for are taken from
    # there (as hard links where they can be), not made again.
    reuse: list[str] = field(default_factory=list, metadata={FILE: RUN})
    # The post-trained model: a Hugging Face folder, or OWNER/NAME or OWNER/NAME@REVISION of the hub
    anchor: str | None = field(default=None, metadata={FILE: PATH_OR_NAME})
    # ... of the pretrained one, whose FFN the experts start from
    pretrained: str | None = field(default=None, metadata={FILE: PATH_OR_NAME})
    pretrain: Pretrain | None = None  # instead of the two above
    # olmo, tulu or a .jinja file; the tokenizer's own by default
    chat_template: str | None = field(default=None, metadata={FILE: TEMPLATE})
    layout: Layout = field(default_factory=Layout)  # of stages that train and name no other
    domains: dict[str, Domain] = field(default_factory=dict)  # one expert each, by name
    order: str = "mixed"  # of domains in method continued: mixed, or in sequence
    merge: Merge = field(default_factory=Merge)
    route: Route = field(default_factory=Route)
    # false: the routed checkpoint is the end. Needed for OLMo-3, as no Hugging Face class has
    # both its layers and experts.
    export: bool = True
    evaluate: Evaluate = field(default_factory=Evaluate)
