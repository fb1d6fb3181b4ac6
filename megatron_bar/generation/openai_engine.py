"""Generation by servers that speak OpenAI's completions API and hold the model's export.

It has been run against a small server of the tests, which answers as vLLM documents it; not
against vLLM. What it uses of a server:

    GET  /v1/models              how the model is called
    POST /v1/completions         token ids in and out (`return_token_ids`), log-probabilities
    POST /collective_rpc         `reload_weights`: read the model's folder again
    POST /reset_prefix_cache     forget what the old weights remember

The last two are vLLM's, for servers started with VLLM_SERVER_DEV_MODE=1.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_bar.checkpoints.convert import export_hf
from megatron_bar.generation.engine import Request, Response, Sampling
from megatron_bar.models.config import ModelConfig
from megatron_bar.models.language_model import LanguageModel
from megatron_bar.recipe.schema import Rlvr
from megatron_bar.runtime.distributed import on_main
from megatron_bar.runtime.errors import BarError
from megatron_bar.training.checkpoints import write_checkpoint

_ANSWER_SECONDS = 3600.0  # an answer may have to wait for its turn
_CONNECT_SECONDS = 30.0  # a server that is there takes a connection at once
# Less than the 5 seconds after which vLLM closes a connection that nothing was asked on, so that no
# question meets one that is just being closed.
_KEPT_SECONDS = 2.0


@dataclass(frozen=True)
class ServedModel:
    """The folder that the servers have loaded, and how a model in training gets there."""

    config: ModelConfig
    tokenizer_folder: Path  # tokenizer and token ids
    settings: Rlvr

    def engine(self, model: LanguageModel) -> OpenAIEngine:
        """Export the weights, have all servers load them; every rank calls this.

        Raises BarError if the export can't be written or a server doesn't answer.
        """
        folder = Path(self.settings.rollout_folder)
        checkpoint = folder.with_name(f"{folder.name}.checkpoint")
        write_checkpoint(model, self.config, checkpoint, self.tokenizer_folder)

        def refresh() -> str | None:
            """What is wrong, told to all ranks."""
            try:
                export_hf(checkpoint, folder, overwrite=True, processes=1)
                shutil.rmtree(checkpoint)
                with _client() as client:
                    for server in self.settings.rollout_servers:
                        _post(client, f"{server}/collective_rpc", {"method": "reload_weights"})
                        _post(client, f"{server}/reset_prefix_cache", {})
            except BarError as error:
                return str(error)

        if fault := on_main(refresh):
            raise BarError(fault)
        return OpenAIEngine(
            self.settings.rollout_servers, self.settings.rollout_batch_size,
            model.max_sequence_length,
        )


class OpenAIEngine:
    """A RolloutEngine; `at_once` requests are under way at each server for each data-parallel rank.

    The first rank of a model-parallel group asks, and tells the others. The same requests get the
    same answers as far as the servers see to it: each request brings a seed of its own.
    """

    def __init__(self, servers: Sequence[str], at_once: int, max_sequence_length: int) -> None:
        self.servers = servers
        self.at_once = at_once
        self.max_sequence_length = max_sequence_length

    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        advance: Callable[[int], None] = lambda done: None,
    ) -> list[Response]:
        """See RolloutEngine. Raises BarError if a server fails, or doesn't tell token ids."""
        group = parallel_state.get_model_parallel_group()
        answers: list[Any] = [None]
        if group.rank() == 0:
            try:
                answers = [self.ask(requests, sampling, advance)]
            except BarError as error:
                answers = [error]
        dist.broadcast_object_list(answers, group=group, group_src=0)
        if isinstance(answers[0], BarError):
            raise answers[0]
        return answers[0]

    def ask(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        advance: Callable[[int], None] = lambda done: None,
    ) -> list[Response]:
        """Return what `generate` does, on this rank alone, from any thread. Raises as it does."""
        first = parallel_state.get_data_parallel_rank()  # so that ranks start at other servers
        with _client() as client:
            names = [_reply(client, "GET", f"{server}/v1/models")["data"][0]["id"]
                     for server in self.servers]

            def ask(index: int) -> Response:
                place = (first + index) % len(names)
                response = self._ask(
                    client, self.servers[place], names[place], requests[index], sampling
                )
                advance(1)
                return response

            with ThreadPoolExecutor(self.at_once * len(names)) as threads:
                return list(threads.map(ask, range(len(requests))))

    def _ask(
        self, client: httpx.Client, server: str, name: str, request: Request, sampling: Sampling
    ) -> Response:
        room = self.max_sequence_length - len(request.prompt)
        url = f"{server}/v1/completions"
        choice = _post(client, url, {
            "model": name, "prompt": list(request.prompt), "add_special_tokens": False,
            "max_tokens": min(sampling.max_new_tokens, room),
            "temperature": sampling.temperature, "seed": request_seed(request, sampling.seed),
            # All of the distribution, whatever the model's generation config says.
            "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0,
            "stop_token_ids": sorted(sampling.stop_ids), "logprobs": 0, "return_token_ids": True,
        })["choices"][0]
        tokens = choice.get("token_ids")
        logprobs = (choice.get("logprobs") or {}).get("token_logprobs")
        if not tokens or not logprobs or len(tokens) != len(logprobs):
            raise BarError(f"{url}: the answer lacks token ids or their log-probabilities; use a "
                           "server that knows return_token_ids, as vLLM does from 0.10.2 on")
        return Response(tokens, logprobs, tokens[-1] in sampling.stop_ids)


def request_seed(request: Request, seed: int) -> int:
    """31 bits that depend on the seed and the request's key alone."""
    text = json.dumps([seed, *request.key])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def _client() -> httpx.Client:
    """Connections that threads share and that are used again."""
    return httpx.Client(
        timeout=httpx.Timeout(_ANSWER_SECONDS, connect=_CONNECT_SECONDS),
        limits=httpx.Limits(keepalive_expiry=_KEPT_SECONDS),
        follow_redirects=True,
    )


def _post(client: httpx.Client, url: str, content: dict[str, Any]) -> Any:
    return _reply(client, "POST", url, content)


def _reply(client: httpx.Client, method: str, url: str, content: Any = None) -> Any:
    """The JSON that a server answers, or None where it has nothing to say."""
    try:
        reply = client.request(method, url, json=content).raise_for_status()
        return reply.json() if reply.content else None
    except httpx.HTTPStatusError as error:
        reply = error.response
        said = reply.text.strip()[:200] or reply.reason_phrase
        raise BarError(f"{url} answers {reply.status_code}: {said}") from None
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise BarError(f"{url} doesn't answer: {error}; start the server, or leave "
                       "rollout_servers out") from None
