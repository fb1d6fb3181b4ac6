"""Requests to a server that speaks OpenAI's completions API, and its answers, checked.

    GET  /health, /v1/models     whether it serves, how the model is called, how long rows may be
    POST /v1/completions         token ids in and out (`return_token_ids`), log-probabilities
    POST /collective_rpc         a method of vLLM's workers: read the model's folder again
    POST /reset_prefix_cache     forget what the old weights remember
    POST /sleep, /wake_up        give the GPU's memory back, and take it again
    GET  /is_sleeping

All after completions is vLLM's, for servers started with VLLM_SERVER_DEV_MODE=1, and sleep for
those with --enable-sleep-mode too. An answer counts only as what was asked: a server that is ill
may well say 200.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import wait
from typing import Any

import httpx

from megatron_bar.generation.engine import Request, Response, Sampling
from megatron_bar.generation.waiting import in_background
from megatron_bar.runtime.errors import BarError

_CONNECT_SECONDS = 30.0  # a server that is there takes a connection at once
_REFRESH_SECONDS = 600.0  # to read weights, or a few tokens, with nothing else to do
_WATCH_SECONDS = 5.0  # between two looks whether a server still serves that reads weights
# Less than the 5 seconds after which vLLM closes a connection that nothing was asked on, so that no
# question meets one that is just being closed.
_KEPT_SECONDS = 2.0
_ROUNDED_UP = 1e-3  # by so much a log-probability may be above 0


class ServerFault(BarError):
    """A server is dead or slow, or answers something else than it was asked."""


class OpenAIApi:
    """One server. Its methods may be called by several threads; all raise ServerFault."""

    def __init__(self, address: str, answer_seconds: float) -> None:
        self.address, self._answer_seconds = address, answer_seconds
        self._client = httpx.Client(
            limits=httpx.Limits(max_connections=None, keepalive_expiry=_KEPT_SECONDS),
            follow_redirects=True,
        )

    def close(self) -> None:
        self._client.close()

    def serves(self) -> bool:
        """Whether it says of itself that it can answer, which one that starts doesn't yet."""
        with contextlib.suppress(httpx.HTTPError):
            return self._client.get(f"{self.address}/health", timeout=_CONNECT_SECONDS).is_success
        return False

    @property
    def longest_row(self) -> int | None:
        """The number of tokens that a prompt and its answer may have together, if it says so."""
        return self._model.get("max_model_len")

    @functools.cached_property
    def _model(self) -> dict[str, Any]:
        """The card of its model, of which it has one."""
        url = f"{self.address}/v1/models"
        reply = self._reply("GET", url)
        with _as_asked(url):
            return {"id": reply["data"][0]["id"]} | reply["data"][0]

    def complete(
        self, request: Request, sampling: Sampling, most: int, seed: int | None
    ) -> Response:
        """An answer of `most` tokens at most."""
        url = f"{self.address}/v1/completions"
        reply = self._reply(
            "POST",
            url,
            {
                "model": self._model["id"],
                "prompt": list(request.prompt),
                "add_special_tokens": False,
                "max_tokens": most,
                "temperature": sampling.temperature,
                # All of the distribution, and these ends, whatever its generation config says.
                "top_p": 1.0,
                "top_k": -1,
                "min_p": 0.0,
                "repetition_penalty": 1.0,
                "ignore_eos": True,
                "stop_token_ids": sorted(sampling.stop_ids),
                "logprobs": 0,
                "return_token_ids": True,
            }
            | ({} if seed is None else {"seed": seed}),
        )
        with _as_asked(url):
            return _response(url, reply["choices"][0], sampling, most)

    def logprobs(self, tokens: Sequence[int]) -> list[float]:
        """Log-probabilities of each of `tokens` but the first, at temperature 1."""
        url = f"{self.address}/v1/completions"
        reply = self._reply(
            "POST",
            url,
            {
                "model": self._model["id"],
                "prompt": list(tokens),
                "add_special_tokens": False,
                "max_tokens": 1,
                "temperature": 0.0,
                "prompt_logprobs": 0,
            },
            _REFRESH_SECONDS,
        )
        with _as_asked(url):
            said = reply["choices"][0]["prompt_logprobs"][1:]
            found = [
                float(of_place[str(token)]["logprob"])
                for of_place, token in zip(said, tokens[1:], strict=True)
            ]
            _check_logprobs(url, found)
            return found

    def call_workers(self, method: str, *arguments: str) -> None:
        """Have vLLM's workers do `method`, and forget what they know of prompts."""
        self._call_engine("collective_rpc", {"method": method, "args": list(arguments)})
        self._call_engine("reset_prefix_cache", {})

    def _call_engine(self, path: str, content: Any) -> None:
        """Ask for something that a server never answers if its engine dies over it."""
        ask = functools.partial(
            self._reply, "POST", f"{self.address}/{path}", content, _REFRESH_SECONDS
        )
        asked = in_background(ask)
        while not wait([asked], _WATCH_SECONDS).done:
            if not self.serves():
                raise ServerFault(f"{self.address} died over /{path}")
        asked.result()

    def sleep(self) -> None:
        """Have it give up all of its GPU's memory, weights too: the next ones are other ones."""
        self._call_engine("sleep?level=2", {})

    def is_asleep(self) -> bool:
        url = f"{self.address}/is_sleeping"
        reply = self._reply("GET", url)
        with _as_asked(url):
            return bool(reply["is_sleeping"])

    def wake_up(self, part: str) -> None:
        """Have it take memory again for a `part`: weights, or kv_cache."""
        self._call_engine(f"wake_up?tags={part}", {})

    def _reply(
        self, method: str, url: str, content: Any = None, seconds: float | None = None
    ) -> Any:
        """The JSON that it answers, or None where it has nothing to say.

        It has `seconds` for it, by default as long as for an answer.
        """
        timeout = httpx.Timeout(
            min(seconds or math.inf, self._answer_seconds), connect=_CONNECT_SECONDS
        )
        try:
            reply = self._client.request(method, url, json=content, timeout=timeout)
            reply.raise_for_status()
            return reply.json() if reply.content else None
        except httpx.HTTPStatusError as error:
            reply = error.response
            said = reply.text.strip()[:200] or reply.reason_phrase
            raise ServerFault(f"{url} answers {reply.status_code}: {said}") from None
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise ServerFault(f"{url} doesn't answer: {error or type(error).__name__}") from None


@contextlib.contextmanager
def _as_asked(url: str) -> Iterator[None]:
    """A reply of another form is the server's fault."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ServerFault(
            f"{url}: the answer isn't of the form that was asked for "
            f"({type(error).__name__}: {error})"
        ) from None


def _response(url: str, choice: dict[str, Any], sampling: Sampling, most: int) -> Response:
    tokens = choice.get("token_ids")
    logprobs = (choice.get("logprobs") or {}).get("token_logprobs")
    if not tokens or not logprobs or len(tokens) != len(logprobs):
        raise ServerFault(
            f"{url}: the answer lacks token ids or their log-probabilities; use a "
            "server that knows return_token_ids, as vLLM does from 0.10.2 on"
        )
    tokens, logprobs = [int(token) for token in tokens], [float(number) for number in logprobs]
    _check_logprobs(url, logprobs)
    stopped = tokens[-1] in sampling.stop_ids
    if len(tokens) > most or (len(tokens) < most and not stopped):
        raise ServerFault(
            f"{url}: the answer has {len(tokens)} tokens and doesn't end there, of "
            f"{most} that were asked for ({choice.get('finish_reason')})"
        )
    return Response(tokens, logprobs, stopped)


def _check_logprobs(url: str, logprobs: Sequence[float]) -> None:
    for number in logprobs:
        if not (math.isfinite(number) and number <= _ROUNDED_UP):
            raise ServerFault(f"{url}: the answer has the log-probability {number}")
