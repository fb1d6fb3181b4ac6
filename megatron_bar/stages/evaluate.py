"""`evaluate`: one model's greedy answers to held-out items, scored, and how it routes them."""

from __future__ import annotations

import time
from itertools import islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from megatron_bar.analysis.routed_tokens import ROUTING, route_texts
from megatron_bar.analysis.token_kinds import told
from megatron_bar.checkpoints.model_io import load_model
from megatron_bar.data.chat import chat_template, prompt_ids
from megatron_bar.data.sources import Conversation, load_conversations
from megatron_bar.models.config import ModelConfig
from megatron_bar.models.olmo import OlmoModel, build_model
from megatron_bar.models.router import leave_out
from megatron_bar.recipe.schema import Source
from megatron_bar.rlvr.engine import Request, Response, Sampling
from megatron_bar.rlvr.rollouts import MegatronEngine
from megatron_bar.rlvr.verifiers import reference_of, score_answers
from megatron_bar.runtime.console import progress
from megatron_bar.runtime.distributed import is_main
from megatron_bar.runtime.files import write_json
from megatron_bar.stages.context import Context, sources
from megatron_bar.stages.data import load_tokenizer, pad_id, stop_ids

RESULTS = "results.json"
SAMPLES_KEPT = 5


def run(context: Context) -> dict[str, Any]:
    settings = context.stage.settings
    checkpoint = context.checkpoint("checkpoint")
    tokenizer = load_tokenizer(checkpoint)
    template = chat_template(settings["chat_template"], tokenizer)
    config = ModelConfig.load(checkpoint)
    model = build_model(config, context.stage.layout, sequence_parallel=False)
    load_model(model, checkpoint)
    leave_out(model, [config.expert_id(name) for name in settings.get("opt_out", ())])
    stops = stop_ids(checkpoint, tokenizer)
    tasks, routing = {}, {}
    for task, entries in settings["tasks"].items():
        items = [(source, c) for source in sources(entries)
                 for c in load_conversations(source, settings["seed"])]
        tasks[task], answers = _score(model, tokenizer, template, items, stops, settings, task)
        if config.num_experts is not None:
            routing[task] = route_texts(
                model, [told(tokenizer, template, c.messages, answer.tokens)
                        for (_, c), answer in zip(items, answers)], pad_id(tokenizer),
            )
    name = context.stage.name.removeprefix("evaluate/")
    scores = ", ".join(f"{task} {result['score']:.2f}" for task, result in tasks.items())
    if is_main():
        write_json(context.folder / RESULTS, {
            "model": name, "experts": config.all_expert_names, "tasks": tasks,
            "routing": {task: routed["layers"] for task, routed in routing.items()},
        })
        if routing:
            write_json(context.folder / ROUTING, {
                "experts": config.all_expert_names, "tasks": routing,
            })
    return {"summary": scores}


def _score(
    model: OlmoModel,
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    items: list[tuple[Source, Conversation]],
    stops: set[int],
    settings: dict[str, Any],
    task: str,
) -> tuple[dict[str, Any], list[Response]]:
    started = time.time()
    prompts = [prompt_ids(tokenizer, c.messages, template) for _, c in items]
    with progress(f"evaluate {task}", len(items)) as advance:
        engine = MegatronEngine(model.eval(), settings["batch_size"])
        answers = engine.generate(
            [Request(prompt) for prompt in prompts],
            Sampling(settings["max_new_tokens"], frozenset(stops)), advance,
        )
    responses = [tokenizer.decode(answer.answer) for answer in answers]
    with progress(f"score {task}", len(items)) as advance:
        scores = score_answers(items, responses, advance)
    samples = [
        {"prompt": tokenizer.decode(prompt), "response": response,
         "expected": _expected(source, conversation), "score": score}
        for (source, conversation), prompt, response, score in
        islice(zip(items, prompts, responses, scores), SAMPLES_KEPT)
    ]
    result = {"score": sum(scores) / len(scores), "count": len(scores),
              "seconds": round(time.time() - started, 2), "samples": samples}
    return result, answers


def _expected(source: Source, conversation: Conversation) -> str:
    """The reply that the item ends with, else its reference."""
    reply = conversation.messages[-1]
    if reply["role"] != "assistant":
        return str(reference_of(source, conversation))
    return (reply.get("content") or "") + (reply.get("function_calls") or "")
