"""What the ranks of the RLVR tests run."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_bar.checkpoints.model_io import load_model, save_model
from megatron_bar.checkpoints.tokenizer_files import ChatFormat
from megatron_bar.data import sources
from megatron_bar.data.bad_items import LeftOut
from megatron_bar.data.chat import prompt_ids
from megatron_bar.data.messages import Message
from megatron_bar.data.tokenizer import train_tokenizer
from megatron_bar.generation import rollouts
from megatron_bar.generation.engine import Request, Sampling
from megatron_bar.generation.node_servers import FOLDER_VARIABLE
from megatron_bar.generation.rollouts import MegatronEngine
from megatron_bar.launch import processes
from megatron_bar.models.config import ModelConfig
from megatron_bar.models.language_model import build_model
from megatron_bar.recipe.training import Rlvr, Source, Training
from megatron_bar.rlvr.backends import backend_of
from megatron_bar.rlvr.policy import Policy, Rows
from megatron_bar.rlvr.prompts import Prompt
from megatron_bar.rlvr.reinforce import reinforce
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.errors import BarError, VerifierFailed
from megatron_bar.runtime.layout import Layout
from megatron_bar.stages.rlvr import RLVR_GROUPS
from megatron_bar.stages.work import rlvr as work
from megatron_bar.training.metrics import read_metrics
from megatron_bar.training.model_run import ModelRun
from megatron_bar.training.optimizer import wrap
from megatron_bar.training.setup import set_up
from megatron_bar.verifiers.moves import Move
from tests import kills

SETTINGS = dict(
    trainable=list(RLVR_GROUPS),
    steps=3,
    global_batch_size=8,
    micro_batch_size=2,
    prompts_per_step=4,
    samples_per_prompt=4,
    response_length=6,
    lr=1e-3,
    weight_decay=0.1,
    reward_scale=1.0,
    kl_coefficient=0.1,
    rollout_batch_size=3,
)
# A response is its tokens' numbers.
CHAT_FORMAT = SimpleNamespace(
    tokenizer=SimpleNamespace(decode=lambda ids: " ".join(map(str, ids))),
    stop_ids=frozenset({0}),
    pad_id=0,
)


def likes_small_tokens(response: str) -> float:
    """A reward that says nothing about language: the share of tokens below 100."""
    tokens = [int(word) for word in response.split()]
    return sum(token < 100 for token in tokens) / max(1, len(tokens))


def prompts() -> list[Prompt]:
    ids = [[(7 * i + 3 * j) % 300 + 1 for j in range(4 + i % 3)] for i in range(8)]
    return [Prompt(row, str(row), "small", likes_small_tokens) for row in ids]


# A letter for the role, so that a turn is a few tokens.
TURNS_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role[0] + m.content + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>a' }}{% endif %}"
)


def talking(folder: Path) -> ChatFormat:
    """A format of bytes, in which a third of the tokens end a reply."""
    tokenizer = train_tokenizer(["a"], 264, folder / "tokenizer", TURNS_TEMPLATE)
    return ChatFormat(tokenizer, TURNS_TEMPLATE, frozenset(range(0, 331, 3)), 0)


def counts_characters(messages: Sequence[Message]) -> Move:
    """An environment whose rewards and turns differ from reply to reply."""
    replies = sum(message["role"] == "assistant" for message in messages)
    said = len(messages[-1]["content"])
    if said == 2:
        raise VerifierFailed("two characters")
    if replies == 3:
        return said % 5 / 4
    return None if said > 4 else {"role": "environment", "content": "=" * said}


def run_conversations(checkpoint: Path, layout: Layout, settings: Rlvr, folder: Path) -> None:
    """The stage, on prompts of which most have an environment."""
    backend_of(settings.backend).prepare()
    chat = talking(folder / f"rank{os.environ.get('RANK', '0')}")
    asked = [[{"role": "user", "content": text}] for text in ("1", "2+", "3", "4++", "5", "6")]
    prompts = [
        Prompt(
            prompt_ids(chat.tokenizer, messages, chat.template),
            messages[0]["content"],
            "length",
            lambda response: len(response) % 3 / 2,
            messages,
            counts_characters if i else None,
        )
        for i, messages in enumerate(asked)
    ]
    with process_groups(layout):
        run = ModelRun(ModelConfig.load(checkpoint), checkpoint, folder, layout, 1, "test")
        reinforce(run, settings, prompts, chat)


def run_reinforce(
    checkpoint: Path, layout: Layout, settings: Rlvr, folder: Path, die_at_save: bool = False
) -> None:
    """The stage; with `die_at_save` killed as soon as its first resume point stands."""
    if die_at_save:
        kills.die_at_save()
    backend_of(settings.backend).prepare()
    with process_groups(layout):
        run = ModelRun(ModelConfig.load(checkpoint), checkpoint, folder, layout, 1, "test")
        reinforce(run, settings, prompts(), CHAT_FORMAT)


def run_reinforce_in_a_job(job: Path, *args: Any) -> None:
    """`run_reinforce` as ranks of the SLURM job with this folder run it.

    They are told here: what forks them has the environment of the first test that started ranks.
    """
    os.environ[FOLDER_VARIABLE] = str(job)
    run_reinforce(*args)


def load_prompts_of(path: Path, out: Path) -> None:
    """Load the prompts of a file; each rank writes what it has, and how often it read sources."""
    reads = []

    def counted(*args):
        reads.append(args)
        return sources.load_conversations(*args)

    rank = int(os.environ["RANK"])
    chat = talking(out / f"rank{rank}")
    settings = Rlvr(data=[Source(path=str(path), verifier="exact")])
    with process_groups(Layout(processes=2)):
        work.load_conversations = counted
        try:
            loaded = work.load_prompts(chat.tokenizer, chat.template, settings, 64, 0, LeftOut())
            found = [[each.ids, each.score("one"), each.score("two")] for each in loaded]
        except BarError as error:
            found = str(error)
    (out / f"{rank}.json").write_text(json.dumps([len(reads), found]))


def run_until_asked(
    checkpoint: Path, layout: Layout, settings: Rlvr, folder: Path, place: str
) -> None:
    """The stage, whose last rank is asked to stop in the second step, where it generates or
    verifies. From then on these take half a second each time, and a line in `calls-RANK`.
    """
    rank = int(os.environ["RANK"])
    asked = []

    def slowly(original: Callable) -> Callable:
        def call(*args):
            if len(read_metrics(folder)) == 1:
                with open(folder / f"calls-{rank}", "a") as calls:
                    calls.write("one\n")
                if rank == layout.processes - 1 and not asked:
                    asked.append(True)
                    os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.5)
            return original(*args)

        return call

    backend_of(settings.backend).prepare()
    with process_groups(layout):
        asks = prompts()
        if place == "generate":
            rollouts.choose = slowly(rollouts.choose)
        else:
            asks = [dataclasses.replace(each, score=slowly(each.score)) for each in asks]
        run = ModelRun(ModelConfig.load(checkpoint), checkpoint, folder, layout, 1, "test")
        reinforce(run, settings, asks, CHAT_FORMAT)


def run_all(checkpoint: Path, settings: Mapping[str, Rlvr], backend: str, out: Path) -> None:
    """A stage by each of the settings, one after the other, in the folder of its name."""
    backend_of(backend).prepare()
    with process_groups(Layout()):
        for name, each in settings.items():
            (out / name).mkdir(parents=True)
            run = ModelRun(ModelConfig.load(checkpoint), checkpoint, out / name, Layout(), 1, name)
            reinforce(run, dataclasses.replace(each, backend=backend), prompts(), CHAT_FORMAT)


def one_update(checkpoint: Path, layout: Layout, settings: Rlvr, rows: Rows, folder: Path) -> None:
    """Score `rows`, then make one update from them; writes what was found and the new weights."""
    with process_groups(layout):
        config = ModelConfig.load(checkpoint)
        setup = set_up(ModelRun(config, checkpoint, folder, layout, 0, "test"), settings, 1)
        policy = Policy(setup.wrapped, settings.micro_batch_size, settings.temperature)
        policy.keep_start()
        setup.wrapped.train()
        mine = {
            name: value.chunk(layout.data)[parallel_state.get_data_parallel_rank()].to(
                torch.cuda.current_device()
            )
            for name, value in rows.items()
        }
        scored = policy.score(mine["tokens"])
        setup.wrapped.zero_grad_buffer()
        update = policy.update(mine, settings)
        setup.optimizer.step()
        reference_BT = policy.reference_logprobs(mine["tokens"])
        torch.save(
            {
                "logprobs": scored.logprobs_BT,
                "entropy": scored.entropy_BT,
                "reference": reference_BT,
                "after": policy.score(mine["tokens"]).logprobs_BT,
            },
            folder / f"scored-{parallel_state.get_data_parallel_rank()}.pt",
        )
        (folder / "after").mkdir(exist_ok=True)
        dist.barrier()
        save_model(setup.model, folder / "after")
        if dist.get_rank() == 0:
            config.save(folder / "after")
            (folder / "update.json").write_text(json.dumps(vars(update)))


def generate(
    checkpoint: Path,
    layout: Layout,
    prompts: Sequence[list[int]],
    sampling: Sampling,
    batch_size: int,
    out: Path,
) -> None:
    """Each data-parallel rank answers its share of the prompts, with the training model."""
    with process_groups(layout):
        config = ModelConfig.load(checkpoint)
        model = build_model(config, layout)
        load_model(model, checkpoint)
        policy = Policy(model, 1, 1.0)
        rank, ranks = parallel_state.get_data_parallel_rank(), layout.data
        requests = [Request(p, (i, 5)) for i, p in enumerate(prompts)][rank::ranks]
        with policy.generating() as bare:
            responses = MegatronEngine(bare, batch_size).generate(requests, sampling)
        (out / f"responses-{dist.get_rank()}.json").write_text(
            json.dumps({i: vars(r) for i, r in zip(range(rank, len(prompts), ranks), responses)})
        )


def generated(
    checkpoint: Path,
    layout: Layout,
    prompts: Sequence[list[int]],
    sampling: Sampling,
    batch_size: int,
    out: Path,
) -> list[dict]:
    """Start the ranks that `generate`; the responses' fields, in the order of the prompts."""
    out.mkdir()
    processes.start(
        generate,
        checkpoint,
        layout,
        prompts,
        sampling,
        batch_size,
        out,
        processes=layout.processes,
        timeout_seconds=120,
    ).wait()
    found: dict[int, dict] = {}
    for path in out.glob("responses-*.json"):
        for index, response in json.loads(path.read_text()).items():
            # Ranks of a model-parallel group have the same.
            assert found.setdefault(int(index), response)["tokens"] == response["tokens"]
    return [found[i] for i in range(len(prompts))]


def score_responses(
    checkpoint: Path,
    prompts: Sequence[list[int]],
    responses: Sequence[dict],
    temperature: float,
    out: Path,
) -> None:
    """Write what the model itself says of each response's tokens."""
    with process_groups(Layout()):
        model = build_model(ModelConfig.load(checkpoint), Layout())
        load_model(model, checkpoint)
        policy = Policy(wrap(model, Training()), 1, temperature)
        found = []
        for prompt, response in zip(prompts, responses):
            scored = policy.score(torch.tensor([prompt + response["tokens"]]))
            found.append(scored.logprobs_BT[0, len(prompt) - 1 :].tolist())
        (out / "logprobs.json").write_text(json.dumps(found))
