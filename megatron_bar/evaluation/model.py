"""A checkpoint's answers to held-out items, scored by the verifiers, in any layout."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from megatron.core.transformer.utils import set_model_to_sequence_parallel

from megatron_bar.analysis.routing import ROUTING
from megatron_bar.checkpoints.model_io import load_model
from megatron_bar.checkpoints.number_types import compute_type, type_name
from megatron_bar.checkpoints.tokenizer_files import ChatFormat
from megatron_bar.data.bad_items import BadItems, LeftOut
from megatron_bar.data.chat import prompt_ids
from megatron_bar.data.chat_format import check_prompt_length
from megatron_bar.data.sources import Conversation, load_conversations, source_name
from megatron_bar.evaluation.routed_tokens import route_texts
from megatron_bar.evaluation.token_kinds import label_tokens
from megatron_bar.generation.answers import answer_all
from megatron_bar.generation.engine import Response, Sampling
from megatron_bar.generation.rollouts import MegatronEngine
from megatron_bar.models.config import ModelConfig
from megatron_bar.models.language_model import LanguageModel, build_model
from megatron_bar.models.router import leave_out
from megatron_bar.recipe.schema import Evaluate
from megatron_bar.recipe.training import Source
from megatron_bar.runtime.console import progress
from megatron_bar.runtime.distributed import is_main, on_main
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import write_json, write_json_lines
from megatron_bar.runtime.layout import Layout
from megatron_bar.verifiers.failures import Failures
from megatron_bar.verifiers.registry import Scorers, reference_of, score_answers

RESULTS = "results.json"
ANSWERS = "answers.jsonl"
_SHOWN = 5  # items whose answers are among the results

Item = tuple[Source, Conversation]


def evaluate(
    checkpoint: Path,
    tasks: Mapping[str, Sequence[Source]],
    settings: Evaluate,
    chat_format: ChatFormat,
    layout: Layout,
    seed: int,
    name: str,
    folder: Path,
) -> dict[str, float]:
    """Ask `checkpoint` every item of `tasks`; returns the mean score of each task.

    Called by every rank inside `process_groups(layout)`. Writes results.json (scores, how the
    routers chose, the first answers), answers.jsonl (all of them) and, of a model with experts,
    routing.json (how the routers chose, in detail) into `folder`, which exists, from one rank.
    Scores are the same in every layout, but for rounding that turns an answer.

    Raises BarError for sources that are broken, prompts that the model has no room for, references
    that a verifier can't read, and experts to leave out that the model hasn't.
    """
    config = ModelConfig.load(checkpoint)
    dtype = compute_type(settings.dtype, checkpoint)
    model = build_model(config, layout, dtype)
    load_model(model, checkpoint)
    leave_out(model, [config.expert_id(name) for name in settings.opt_out])
    set_model_to_sequence_parallel(model, False)  # one token can't be cut into pieces
    model.eval()
    results, routing, answers, left_out = {}, {}, [], LeftOut()
    for task, sources in tasks.items():
        items, prompts = load_items(
            task, sources, chat_format, model.max_sequence_length, seed, left_out
        )
        started = time.time()
        responses = _answer(model, prompts, settings, chat_format, seed, task)
        failures = Failures()
        scored = on_main(
            functools.partial(
                _scored, items, prompts, responses, chat_format, task, left_out, failures
            )
        )
        results[task] = _result(scored, settings.samples, time.time() - started) | {
            "verifier_failures": failures.count
        }
        answers += scored
        if config.num_experts is not None:
            texts = [
                label_tokens(
                    chat_format.tokenizer, chat_format.template, conversation.messages, one.tokens
                )
                for (_, conversation), (one, *_) in zip(items, responses)
            ]
            # No padding counts, so any token will do where the tokenizer has none for it.
            routing[task] = route_texts(model, texts, chat_format.pad_id or 0)
    if is_main():
        left_out.record(folder)
        write_json_lines(folder / ANSWERS, answers)
        write_json(
            folder / RESULTS,
            {
                "model": name,
                "experts": config.all_expert_names,
                "tasks": results,
                "routing": {task: routed["layers"] for task, routed in routing.items()},
                "layout": str(layout),
                "seed": seed,
                "dtype": type_name(dtype),
                "temperature": settings.temperature,
                "samples": settings.samples,
                "max_new_tokens": settings.max_new_tokens,
            },
        )
        if routing:
            write_json(folder / ROUTING, {"experts": config.all_expert_names, "tasks": routing})
    return {task: result["score"] for task, result in results.items()}


def _answer(
    model: LanguageModel,
    prompts: Sequence[list[int]],
    settings: Evaluate,
    chat_format: ChatFormat,
    seed: int,
    task: str,
) -> list[list[Response]]:
    sampling = Sampling(settings.max_new_tokens, chat_format.stop_ids, settings.temperature, seed)
    engine = MegatronEngine(model, settings.batch_size)
    with progress(f"evaluate {task}", len(prompts) * settings.samples) as advance:
        return answer_all(engine, prompts, settings.samples, sampling, advance)


def _result(answers: list[dict[str, Any]], samples: int, seconds: float) -> dict[str, Any]:
    by_item = [answers[i : i + samples] for i in range(0, len(answers), samples)]
    means = [fmean(answer["score"] for answer in of_item) for of_item in by_item]
    return {
        "score": fmean(means),
        "count": len(means),
        "items": means,
        "cut": fmean(not answer["stopped"] for answer in answers),
        "seconds": round(seconds, 2),
        "samples": [of_item[0] for of_item in by_item[:_SHOWN]],
    }


def load_items(
    task: str,
    sources: Sequence[Source],
    chat_format: ChatFormat,
    positions: int,
    seed: int,
    left_out: LeftOut,
) -> tuple[list[Item], list[list[int]]]:
    """The items of a task and the prompt of each, for a model of so many `positions`.

    Raises BarError for an item that can't be asked or has no reference, with its place, unless its
    source says to skip such items: then it is in `left_out`.
    """
    items, prompts = [], []
    for source in sources:
        bad, scorers = _bad(left_out, task, source), Scorers(source)
        for conversation in load_conversations(source, seed, bad):
            with bad.caught(conversation.number, conversation.where):
                prompt = prompt_ids(
                    chat_format.tokenizer, conversation.messages, chat_format.template
                )
                check_prompt_length(len(prompt), positions)
                scorers.scorer(conversation)  # a missing reference is known before it is needed
                items.append((source, conversation))
                prompts.append(prompt)
    if not items:
        raise _nothing_left(task, "asked", left_out)
    return items, prompts


def _nothing_left(task: str, done: str, left_out: LeftOut) -> BarError:
    return BarError(
        "; ".join([f"task {task} has no item left that can be {done}", *left_out.lines().values()])
    )


def _scored(
    items: Sequence[Item],
    prompts: Sequence[list[int]],
    responses: Sequence[Sequence[Response]],
    chat_format: ChatFormat,
    task: str,
    left_out: LeftOut,
    failures: Failures,
) -> list[dict[str, Any]]:
    """Every answer with what it is worth, item by item; none of an item that can't be scored.

    Raises BarError for such an item, unless its source says to skip it: then it is in `left_out`.
    Answers on which a verifier fails are counted in `failures`.
    """
    decode = chat_format.tokenizer.decode
    asked = [
        (number, item, sample, response)
        for number, (item, samples) in enumerate(zip(items, responses))
        for sample, response in enumerate(samples)
    ]
    texts = [decode(response.answer) for *_, response in asked]
    with progress(f"score {task}", len(texts)) as advance:
        scores = score_answers(
            [item for _, item, _, _ in asked],
            texts,
            [_bad(left_out, task, source) for _, (source, _), _, _ in asked],
            failures,
            advance,
        )
    unscored = {number for (number, *_), score in zip(asked, scores) if score is None}
    if len(unscored) == len(items):
        raise _nothing_left(task, "scored", left_out)
    return [
        {
            "task": task,
            "item": number,
            "sample": sample,
            "prompt": decode(prompts[number]),
            "response": text,
            "expected": _expected(*item),
            "score": score,
            "stopped": response.stopped,
        }
        for (number, item, sample, response), text, score in zip(asked, texts, scores)
        if number not in unscored
    ]


def _bad(left_out: LeftOut, task: str, source: Source) -> BadItems:
    return left_out.of(f"{task}/{source_name(source)}", source)


def _expected(source: Source, conversation: Conversation) -> str:
    """The reply that the item ends with, else its reference."""
    reply = conversation.messages[-1]
    if reply["role"] != "assistant":
        return str(reference_of(source, conversation))
    return (reply.get("content") or "") + (reply.get("function_calls") or "")
