"""Servers as the stage's main rank has them: given each step's weights, in one of two ways."""

from __future__ import annotations

import time
from typing import Protocol

from megatron_bar.generation.openai_api import OpenAIApi
from megatron_bar.generation.vllm_process import START_SECONDS, VllmProcess
from megatron_bar.runtime.beats import beat

_POLL_SECONDS = 1.0


class Server(Protocol):
    """A server, on the main rank. Its methods raise ServerFault."""

    @property
    def api(self) -> OpenAIApi: ...

    def take_weights(self) -> None:
        """Have it use the folder's weights, in the quickest way."""

    def take_weights_anew(self) -> None:
        """The same in the surest way there is, after the quick one failed."""

    def recover(self) -> None:
        """Do what helps one that failed, so that it may take the next weights; wait for nothing."""

    def stop(self) -> None:
        """Leave it."""


class OthersServer:
    """A server that someone else has started and starts again: it is told to read its folder."""

    def __init__(self, address: str, answer_seconds: float, sleeps: bool) -> None:
        self.api, self.sleeps = OpenAIApi(address, answer_seconds), sleeps

    def take_weights(self) -> None:
        wake_with_weights(self.api, self.sleeps, "reload_weights")

    def take_weights_anew(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self.api.serves() and time.monotonic() < deadline:
            beat()
            time.sleep(_POLL_SECONDS)
        self.take_weights()

    def recover(self) -> None:
        """Whoever started it does."""

    def stop(self) -> None:
        self.api.close()


class OwnServer:
    """A server that this process has started, and starts anew."""

    def __init__(self, process: VllmProcess, sleeps: bool) -> None:
        self.process, self.sleeps = process, sleeps

    @property
    def api(self) -> OpenAIApi:
        assert self.process.api is not None, "take_weights() comes first"
        return self.process.api

    def take_weights(self) -> None:
        if self.process.runs:
            wake_with_weights(self.api, self.sleeps, "take_weights", str(self.process.folder))
        else:
            self.process.start()

    def take_weights_anew(self) -> None:
        self.process.start()

    def recover(self) -> None:
        """There is no other, so that it has been started anew already."""

    def stop(self) -> None:
        self.process.stop()


def wake_with_weights(api: OpenAIApi, sleeps: bool, method: str, *arguments: str) -> None:
    """Have workers take weights by `method`; one that sleeps first gets memory for just these."""
    asleep = sleeps and api.is_asleep()
    if asleep:
        api.wake_up("weights")
    api.call_workers(method, *arguments)
    if asleep:
        api.wake_up("kv_cache")
