"""The model in training as servers have it: each step's weights are brought to them and proven.

The weights go by a folder in Hugging Face's format that all servers read. No answer counts before
a server has said of fixed tokens what the trainer says of them.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch

from megatron_bar.checkpoints.convert import export_hf
from megatron_bar.generation.openai_api import OpenAIApi, ServerFault
from megatron_bar.generation.openai_engine import Asking, OpenAIEngine
from megatron_bar.generation.probe import Probe, distance
from megatron_bar.generation.vllm_process import START_SECONDS, VllmProcess, find_vllm
from megatron_bar.generation.waiting import from_main_at_length
from megatron_bar.models.language_model import LanguageModel
from megatron_bar.recipe.training import Rlvr
from megatron_bar.runtime.beats import beat
from megatron_bar.runtime.console import say
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.ranks import is_main
from megatron_bar.training.checkpoints import write_checkpoint
from megatron_bar.training.model_run import ModelRun

LOG_FILE = "vllm.log"
_POLL_SECONDS = 1.0


class Server(Protocol):
    """A server, on the main rank. Its methods raise ServerFault."""

    @property
    def api(self) -> OpenAIApi: ...

    def take_weights(self) -> None:
        """Have it use the folder's weights, in the quickest way."""

    def take_weights_anew(self) -> None:
        """The same in the surest way there is, after the quick one failed."""

    def stop(self) -> None:
        """Leave it."""


class OthersServer:
    """A server that someone else has started and starts again: it is told to read its folder."""

    def __init__(self, address: str, answer_seconds: float, sleeps: bool) -> None:
        self.api, self.sleeps = OpenAIApi(address, answer_seconds), sleeps

    def take_weights(self) -> None:
        _wake_with_weights(self.api, self.sleeps, "reload_weights")

    def take_weights_anew(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self.api.serves() and time.monotonic() < deadline:
            beat()
            time.sleep(_POLL_SECONDS)
        self.take_weights()

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
            _wake_with_weights(self.api, self.sleeps, "take_weights", str(self.process.folder))
        else:
            self.process.start()

    def take_weights_anew(self) -> None:
        self.process.start()

    def stop(self) -> None:
        self.process.stop()


def _wake_with_weights(api: OpenAIApi, sleeps: bool, method: str, *arguments: str) -> None:
    """Have workers take weights by `method`; one that sleeps first gets memory for just these."""
    asleep = sleeps and api.is_asleep()
    if asleep:
        api.wake_up("weights")
    api.call_workers(method, *arguments)
    if asleep:
        api.wake_up("kv_cache")


class ServedPolicy:
    """The servers of a stage, from its start to its end. All ranks call its methods together."""

    def __init__(self, run: ModelRun, settings: Rlvr, dtype: str) -> None:
        """`dtype` is what servers of our own compute in, as PyTorch calls it."""
        self.run, self.settings = run, settings
        self.positions = run.config.max_position_embeddings
        self.folder = Path(settings.rollout_folder or run.folder / "served")
        self.servers: list[Server] = list(self._servers(dtype)) if is_main() else []
        seeds = from_main_at_length(self._seeds)
        if not seeds:
            say(f"{run.label}: requests bring no seeds, so what is sampled can't be repeated")
        self.asking = Asking(
            settings.rollout_batch_size,
            self.positions,
            seeds,
            settings.rollout_answer_seconds,
            self._log if settings.rollout_python is not None else None,
        )
        self.numbers: dict[str, float] = {}  # what there is to log of the last weights
        self._probe: Probe | None = None
        self._before: Probe | None = None

    def _seeds(self) -> bool:
        """Whether requests bring seeds, by default where our own vLLM can take them."""
        seeds, on_cpu = self.settings.rollout_seeds, False
        if self.settings.rollout_python is not None:
            vllm = find_vllm(self.settings.rollout_python)
            vllm.check_model(self.run.config.family)
            on_cpu = vllm.on_cpu
        return not on_cpu if seeds is None else seeds

    def _servers(self, dtype: str) -> Iterator[Server]:
        settings = self.settings
        for address in settings.rollout_servers:
            yield OthersServer(address, settings.rollout_answer_seconds, settings.rollout_sleep)
        if settings.rollout_python is not None:
            sleep_mode = ["--enable-sleep-mode"] if settings.rollout_sleep else []
            alone = os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")
            yield OwnServer(
                VllmProcess(
                    settings.rollout_python,
                    [
                        "--dtype",
                        dtype,
                        "--max-model-len",
                        str(self._row),
                        *sleep_mode,
                        *settings.rollout_options,
                    ],
                    self.folder,
                    self._log,
                    "127.0.0.1" if alone else socket.gethostname(),
                    settings.rollout_answer_seconds,
                ),
                settings.rollout_sleep,
            )

    @property
    def _log(self) -> Path:
        """What a server of our own prints."""
        return self.run.folder / LOG_FILE

    @property
    def _row(self) -> int:
        """Tokens of a prompt and its answer, at most."""
        return min(self.settings.row_length, self.positions)

    def engine(self, model: LanguageModel, probe: Probe) -> OpenAIEngine:
        """Bring the weights of `model`, which says `probe`, to all servers; what asks them.

        Raises BarError where the folder can't be written, and where a server hasn't these weights
        after a second try.
        """
        started = time.monotonic()
        self._before, self._probe = self._probe, probe
        checkpoint = self.folder.with_name(f"{self.folder.name}.checkpoint")
        write_checkpoint(model, self.run.config, checkpoint, self.run.tokenizer_folder)

        def export() -> None:
            export_hf(checkpoint, self.folder, overwrite=True, processes=1)
            shutil.rmtree(checkpoint)

        from_main_at_length(export)
        exported = time.monotonic()
        if self.settings.rollout_sleep:
            torch.cuda.empty_cache()  # servers on these GPUs need what updates have left
        addresses = self._bring()
        self.numbers["seconds_export"] = exported - started
        self.numbers["seconds_refresh"] = time.monotonic() - exported
        return OpenAIEngine(addresses, self.asking, lambda: self._bring(anew=True))

    def rest(self) -> None:
        """Have servers give their GPUs' memory back until the next weights, by rollout_sleep."""

        def sleep() -> None:
            for server in self.servers:
                try:
                    server.api.sleep()
                except ServerFault as fault:
                    say(f"{self.run.label}: {fault}; it keeps its memory in this step")

        if self.settings.rollout_sleep:
            from_main_at_length(sleep)

    def close(self) -> None:
        """Stop what this process has started, and remove the folder that it made for that."""
        for server in self.servers:
            server.stop()
        if is_main() and self.settings.rollout_folder is None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _bring(self, anew: bool = False) -> Sequence[str]:
        """Have servers use the folder's weights, and prove it; the addresses of those that do.

        One that fails is left out until the next weights, where others don't. Where all fail they
        are given the weights `anew`.
        """

        def bring() -> list[str]:
            for surely in (True,) if anew else (False, True):
                gaps: dict[str, float] = {}
                faults = []
                for server in self.servers:
                    try:
                        server.take_weights_anew() if surely else server.take_weights()
                        gaps[server.api.address] = self._proven(server)
                    except ServerFault as fault:
                        faults.append(fault)
                for failure in faults if gaps else ():
                    say(f"{self.run.label}: {failure}; other servers answer for it in this step")
                if gaps:
                    self.numbers["refresh_logprob_gap"] = max(gaps.values())
                    return list(gaps)
                if not surely:
                    say(f"{self.run.label}: {faults[0]}; the weights are brought once more")
            raise faults[0]

        return from_main_at_length(bring)

    def _proven(self, server: Server) -> float:
        """The distance of what it says from what the trainer says, which is small enough."""
        if (longest := server.api.longest_row) is not None and longest < self._row:
            raise BarError(
                f"{server.api.address} takes rows of {longest} tokens, and "
                f"prompt_length and response_length ask for {self._row}; start it with "
                f"--max-model-len {self._row}, or lower them"
            )
        assert self._probe is not None  # made with the weights
        found = [server.api.logprobs(row) for row in self._probe.rows]
        limit = self.settings.max_rollout_logprob_gap
        if fault := self._probe.fault(found, self._before, limit):
            raise ServerFault(f"{server.api.address} hasn't the weights in training: {fault}")
        return distance(found, self._probe.logprobs)
