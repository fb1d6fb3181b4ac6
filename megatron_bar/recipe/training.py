"""Keys of a recipe: data sources, and the settings of each kind of training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from megatron_bar.recipe.fields import (
    ABOVE_0,
    AT_LEAST_0,
    AT_MOST_1,
    CHATS,
    COUNT,
    DATA_FILES,
    DATASET,
    FACTOR,
    FIRST_AND_LAST,
    FUNCTION,
    ITEMS,
    PART,
    PATH,
    PATH_OR_NAME,
    PROMPTS,
    ROUNDING,
    SHARE,
    SHARE_ABOVE_0,
    TEXTS,
    WARMUP,
    key,
    one_of,
)
from megatron_bar.runtime.layout import Layout

DTYPE = one_of("float32", "bfloat16")
REFERENCES = "answer"  # the column of references where a source names none


@dataclass
class Source:
    """A source of examples. Give one of `path`, `hub` and `toy`.

    Mid-training reads texts, SFT and routing read conversations: a list of `messages` with `role`
    and `content`, and where they occur `functions` (on a system or user turn) and `function_calls`
    (on an assistant turn). docs/data.md has the other forms that are read.
    """

    # A file (.jsonl, .ndjson, .json, .parquet or .txt, all but .parquet also .gz), a folder of such
    # files, or a pattern such as law/*.jsonl; ~ and $HOME are filled in. Several files are one
    # source.
    path: str | None = key(None, file=PATH, contents=DATA_FILES)
    # a dataset of the Hugging Face hub, or a folder datasets can load
    hub: str | None = key(None, file=PATH_OR_NAME, contents=DATASET)
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
    text_column: str = key("text", forms=(TEXTS,))  # of texts
    messages_column: str = key("messages", forms=(CHATS, PROMPTS, ITEMS))  # of conversations
    # How answers to it are scored: math, code, tool_calls, instructions, safety or exact, or a
    # function in a file of yours, such as verifiers/law.py:score; a toy domain's own rule, else
    # exact, by default. What a reference is, each verifier's file says.
    verifier: str | None = key(None, file=FUNCTION, contents=FUNCTION, forms=(PROMPTS, ITEMS))
    # What answers the policy, in RLVR with several turns: a function in a file of yours, such as
    # tools/calculator.py:step. Where no verifier is named, rewards are what it gives.
    environment: str | None = key(None, file=FUNCTION, contents=FUNCTION, forms=(PROMPTS,))
    # A server of OpenAI's chat API, such as http://node7:8000, whose model judges for the verifier
    # safety whether an answer refuses; without it, phrases do.
    judge: str | None = key(None, forms=(PROMPTS, ITEMS))
    # The column of the references, which must then be in every record. By default it is answer, or,
    # where no record has that, the reply that a conversation ends with.
    reference_column: str | None = key(None, forms=(PROMPTS, ITEMS))


@dataclass
class Profile:
    """Steps to trace, as docs/training.md says."""

    steps: list[int] = key(list, FIRST_AND_LAST)  # the first and the last of them


@dataclass
class Training:
    """Settings of one stage's training. Defaults are what the stages of BAR have in common."""

    data: list[Source] = field(default_factory=list)  # what it reads, mixed
    # What trains: patterns over parameter groups. embeddings, attention, block_norms, final_norm,
    # head, ffn (of a dense model), expert.N and router.N, where 0 is the anchor. Where embeddings
    # are tied to the head, either name means both.
    trainable: list[str] = field(default_factory=list)
    steps: int | None = key(None, COUNT)  # give one of steps, epochs and tokens
    epochs: float | None = key(None, ABOVE_0)  # passes over the data
    tokens: str | None = None  # such as 50B: as many steps as read these, padding included
    sequence_length: int = key(4096, COUNT)  # tokens in a row, into which documents are packed
    # What becomes of conversations that are longer than a sequence.
    overlong: str = key("truncate", one_of("truncate", "drop"))
    # Sequences in an optimizer step, over all processes.
    global_batch_size: int = key(256, COUNT, formerly="batch_size")
    # Sequences a process computes at once.
    micro_batch_size: int = key(1, COUNT, runtime=ROUNDING)
    lr: float = key(1e-4, AT_LEAST_0)  # at the peak
    lr_scale: dict[str, float] = field(default_factory=dict)  # factor by group pattern
    schedule: str = key("linear", one_of("linear", "cosine", "constant"))  # Of the learning rate.
    warmup_ratio: float = key(0.03, WARMUP, formerly="warmup")  # share of the steps
    warmup_steps: int | None = key(None, AT_LEAST_0)  # or their number, in place of the share
    # The last learning rate, as a share of the peak.
    min_lr_ratio: float = key(0.0, SHARE, formerly="floor")
    beta1: float = key(0.9, PART)  # of AdamW, as beta2, eps and weight_decay
    beta2: float = key(0.95, PART)
    eps: float = key(1e-8, ABOVE_0)
    weight_decay: float = key(0.0, AT_LEAST_0)
    # The largest norm of all gradients together.
    max_grad_norm: float = key(1.0, AT_LEAST_0, formerly="clip")
    router_z_loss: float = key(1e-3, AT_LEAST_0)  # its coefficient
    distributed_optimizer: bool = True  # its state spread over data-parallel ranks
    # What the stage computes in, in bfloat16 with fp32 main weights and gradients; by default what
    # its start is stored in. What it writes is stored as its start is.
    dtype: str | None = key(None, DTYPE)
    # Multiply in FP8 in experts that don't train, where dtype is bfloat16 and every token goes to
    # all experts. It takes memory for these experts once more; docs/gpu.md says what it costs.
    fp8_frozen_experts: bool = False
    layout: Layout | None = key(None, runtime=True)  # the recipe's layout by default
    # Activations to compute a second time in the backward pass: those of the expert FFNs (moe) or
    # of whole layers (full).
    recompute: str = key("none", one_of("none", "moe", "full"), runtime=True)
    # Come to the same bits each time, and after a resume, on a GPU too; it costs some speed there.
    deterministic: bool = key(False, runtime=True)
    # Fields of Megatron-Core's configurations that make a stage faster or smaller and leave alone
    # what it computes, such as {overlap_grad_reduce: true}; docs/training.md lists them.
    megatron: dict[str, Any] = field(default_factory=dict)
    # A bad step: its loss or gradient isn't a number, or its gradient norm is more than `spike`
    # times the median of the last good ones. stop ends the stage with the items it saw; skip
    # leaves model and optimizer as they were, at most `max_skips` times in a row.
    on_bad_step: str = key("stop", one_of("stop", "skip"))
    spike: float | None = key(None, FACTOR)
    max_skips: int = key(10, COUNT)
    validation: list[Source] = key(list, runtime=True)  # loss by source, at intervals
    validate_every: int = key(500, COUNT, runtime=True)  # steps
    # What a stage leaves to go on from when it is cut short, every so many steps or minutes. keep
    # is how many of them; stop_after_minutes makes it save and end with exit status 75.
    save_every: int = key(500, COUNT, runtime=True)
    save_every_minutes: float | None = key(None, ABOVE_0, runtime=True)
    keep: int = key(1, COUNT, runtime=True)
    # Write it while training goes on, from a copy in host memory.
    save_async: bool = key(False, runtime=True)
    stop_after_minutes: float | None = key(None, ABOVE_0, runtime=True)
    # Leave AdamW's second moments of what is shared and trains with the checkpoint, 4 bytes a
    # parameter: what merge.shared fisher weighs branches by.
    second_moments: bool = key(False, runtime=True)
    log_every: int = key(10, COUNT, runtime=True)  # steps
    # Of one device in this dtype; known for H100, H200, A100.
    peak_tflops: float | None = key(None, ABOVE_0, runtime=True)
    # The mfu that `plan` reckons hours with, such as that of a first run's metrics; by default it
    # goes by what was measured on one GPU.
    expected_mfu: float | None = key(None, SHARE_ABOVE_0, runtime=True)
    # A Weights & Biases project that gets the metrics too.
    wandb: str | None = key(None, runtime=True)
    # Trace some steps, such as {steps: [10, 12]}, into the stage's folder.
    profile: Profile | None = key(None, runtime=True)
    # An MLflow experiment that gets them, at the place that MLFLOW_TRACKING_URI says.
    mlflow: str | None = key(None, runtime=True)

    @property
    def compute_dtype(self) -> str:
        """`dtype`, once it is settled by what the stage starts from."""
        assert self.dtype is not None
        return self.dtype

    @property
    def total_steps(self) -> int:
        """`steps`, once they are settled by the amount of data."""
        assert self.steps is not None
        return self.steps

    @property
    def row_length(self) -> int:
        """Tokens of a row, at most."""
        return self.sequence_length

    @property
    def rows_per_step(self) -> int:
        """Rows that a step reads, over all processes."""
        return self.global_batch_size


@dataclass
class Dpo(Training):
    """Direct preference optimization; defaults are those of Ai2's retrained baseline.

    `data` are preference pairs: `prompt`, `chosen` and `rejected`. A batch counts pairs, and
    `sequence_length` is that of each of the two conversations. What the reference policy, the
    stage's start, says of them is computed once, before the first step.
    """

    lr: float = 1e-6
    warmup_ratio: float = 0.1
    router_z_loss: float = 0.0
    global_batch_size: int = 128  # pairs in an optimizer step, over all processes
    # How strongly the policy is held to the reference; 0.1 is usual without length_normalized.
    beta: float = key(5.0, ABOVE_0)
    # Take the mean of an answer's log-probabilities, not their sum.
    length_normalized: bool = True

    @property
    def row_length(self) -> int:
        """Tokens of a pair, at most."""
        return 2 * self.sequence_length


@dataclass
class Rlvr(Training):
    """Reinforcement learning with verifiable rewards; defaults are the published settings.

    `data` are prompts, conversations whose reply (or another column) the verifier compares with.
    `steps` counts rollouts: prompts_per_step * samples_per_prompt responses each, from which
    optimizer steps of `global_batch_size` responses are made. Trains all shared parameters by
    default; the published comparison, `trainable: [expert.1, router.1]`, keeps them frozen.
    """

    lr: float = 6e-7
    schedule: str = "constant"
    warmup_ratio: float = 0.0
    router_z_loss: float = 0.0
    global_batch_size: int = 128  # responses in an optimizer step, over all processes
    save_every: int = 10
    log_every: int = 1
    prompts_per_step: int = 64  # in a rollout
    samples_per_prompt: int = 8  # responses to each
    prompt_length: int = 2048  # longer prompts are left out
    response_length: int = 4096  # tokens at most; those of an environment are among them
    max_turns: int = key(8, COUNT)  # replies of the policy to a prompt that has an environment
    temperature: float = 1.0  # of sampling
    advantage: str = "centered"  # centered, grpo (over the deviation too) or rloo
    # dapo (published), cispo (the gradient of a clipped token stays) or gspo (one ratio for a whole
    # response); docs/rlvr.md has the formulas, and clips that go with each.
    loss_type: str = key("dapo", one_of("dapo", "cispo", "gspo"))
    clip_low: float = key(0.2, SHARE)  # the ratio to the sampling policy stays above 1 - clip_low
    clip_high: float = key(0.272, AT_LEAST_0)  # and below 1 + clip_high
    # Weigh each token by its probability in training over that in generation, but by no more than
    # this; 2 is usual. By default tokens aren't weighed.
    truncated_importance_sampling: float | None = key(None, ABOVE_0)
    fp32_lm_head: bool = False  # compute the logits in fp32 where dtype is bfloat16
    # Of the divergence from the stage's start, taken off the reward.
    kl_coefficient: float = key(0.0, AT_LEAST_0)
    reward_scale: float = key(10.0, ABOVE_0)  # a right answer is worth so much
    # Leave out prompts whose samples all got the same reward.
    filter_zero_std: bool = key(True, formerly="drop_equal")
    # Don't ask a prompt again that was solved in this share of its samples, or more.
    no_resampling_pass_rate: float = key(0.875, SHARE, formerly="rest_above")
    truncated: str = "keep"  # keep responses that were cut, mask them, or give them zero reward
    # How often the KL divergence from the stage's start is measured for the logs, which takes a
    # forward pass; at every step where kl_coefficient is set. 0: never.
    kl_every: int = key(10, AT_LEAST_0, runtime=True)
    # Responses a process generates (or asks a server for) at once.
    rollout_batch_size: int = key(64, runtime=ROUNDING)
    # vLLM servers that others started, which generate in place of the training processes, such as
    # [http://node7:8000].
    rollout_servers: list[str] = key(list, runtime=ROUNDING)
    # What these serve: each step exports its weights there. By default, for rollout_python, a
    # folder in the stage's own that is removed in the end.
    rollout_folder: str | None = key(None, runtime=True)
    # Or the Python of an environment with vLLM, whose servers the stage starts, watches and stops:
    # one on its first machine, or several on nodes of their own.
    rollout_python: str | None = key(None, runtime=ROUNDING, file=PATH)
    # More nodes in the stage's SLURM job, whose GPUs are all for such servers: as many on a node as
    # there is room for by rollout_options. 0: one server, beside the training processes.
    rollout_nodes: int = key(0, AT_LEAST_0, runtime=True)
    # More options of those servers, such as ['--tensor-parallel-size', '8'].
    rollout_options: list[str] = key(list, runtime=ROUNDING)
    # Servers give their GPUs' memory back while the policy learns (vLLM's sleep mode); for servers
    # that share GPUs with the training processes.
    rollout_sleep: bool = key(False, runtime=True)
    # Whether requests bring seeds; by default they do, but to a vLLM of ours on a CPU, which dies
    # of them.
    rollout_seeds: bool | None = key(None, runtime=True)
    # A server that takes longer for an answer, which may have to wait for its turn, is given up.
    rollout_answer_seconds: float = key(3600.0, ABOVE_0, runtime=True)
    # How far log-probabilities of generation may be from the trainer's, in the mean over tokens.
    # Kernels round some 0.01 to 0.03 apart in bfloat16; weights of another model are above 1.
    max_rollout_logprob_gap: float = key(0.1, ABOVE_0, runtime=True)
    # 1: servers answer the next step's prompts while this one's answers are learned from, with
    # weights of a step ago, which truncated_importance_sampling corrects. 0: after it.
    rollouts_ahead: int = key(0, AT_MOST_1)
    # Answers that a process has scored side by side.
    verifier_workers: int = key(8, COUNT, runtime=True, formerly="verifiers_at_once")
    # What drives the steps: nemo_aligner (its REINFORCE trainer) or native, a loop of our own that
    # takes the same ones; by default NeMo-Aligner where it is installed, else native.
    backend: str | None = key(None, runtime=True)

    @property
    def row_length(self) -> int:
        """Tokens of a prompt and its response, at most."""
        return self.prompt_length + self.response_length

    @property
    def served(self) -> bool:
        """Whether servers generate, in place of the training processes."""
        return bool(self.rollout_servers) or self.rollout_python is not None

    @property
    def rows_per_step(self) -> int:
        """Responses of a rollout, over all processes."""
        return self.prompts_per_step * self.samples_per_prompt


@dataclass
class RouteTraining(Training):
    """Defaults are the published settings, 1.31 million tokens a step; two epochs if unsaid.

    Where the recipe's `layout.expert` doesn't divide the merged model's experts, they are spread
    over as many ranks as divide both, unless `layout` is given here.
    """

    sequence_length: int = 2048
    global_batch_size: int = 640
