"""The model in training as servers have it: each step's weights are brought to them and proven.

The weights go by a folder in Hugging Face's format that all servers read. No answer counts before
a server has said of fixed tokens what the trainer says of them.
"""

from __future__ import annotations

import functools
import os
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from megatron_bar.checkpoints.convert import export_hf
from megatron_bar.generation.node_servers import NodeServer, Order, job_folder
from megatron_bar.generation.openai_api import ServerFault
from megatron_bar.generation.openai_engine import Asking, OpenAIEngine
from megatron_bar.generation.places import places
from megatron_bar.generation.probe import Probe, distance
from megatron_bar.generation.servers import OthersServer, OwnServer, Server
from megatron_bar.generation.vllm_process import VllmProcess, find_vllm
from megatron_bar.generation.waiting import from_main_at_length, map_in_background
from megatron_bar.models.language_model import LanguageModel
from megatron_bar.recipe.training import Rlvr
from megatron_bar.runtime.console import say
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.ranks import is_main
from megatron_bar.training.checkpoints import write_checkpoint
from megatron_bar.training.model_run import ModelRun

LOG_FILE = "vllm.log"


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
        if settings.rollout_python is None:
            return
        sleep_mode = ["--enable-sleep-mode"] if settings.rollout_sleep else []
        length = ["--max-model-len", str(self._row)]
        options = ["--dtype", dtype, *length, *sleep_mode, *settings.rollout_options]
        if settings.rollout_nodes:
            yield from self._on_nodes(settings.rollout_python, options)
            return
        alone = os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")
        yield OwnServer(
            VllmProcess(
                settings.rollout_python,
                options,
                self.folder,
                self._log,
                "127.0.0.1" if alone else socket.gethostname(),
                settings.rollout_answer_seconds,
            ),
            settings.rollout_sleep,
        )

    def _on_nodes(self, python: str, options: list[str]) -> Iterator[Server]:
        """Those of nodes of their own, of which each has as many GPUs as this one has ranks."""
        settings, job = self.settings, job_folder()
        node_gpus = int(os.environ["LOCAL_WORLD_SIZE"])
        for name, gpus in places(settings.rollout_nodes, node_gpus, options):
            log = self._log.with_name(f"{self._log.stem}-{name}{self._log.suffix}")
            answer_seconds = settings.rollout_answer_seconds
            order = Order(0, python, options, str(self.folder), str(log), answer_seconds, gpus)
            yield NodeServer(name, order, job)

    @property
    def _log(self) -> Path:
        """What a server of our own prints; with several, their names are added to its name."""
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
                take = functools.partial(self._gap_or_fault, surely)
                outcomes = map_in_background(take, self.servers, len(self.servers))
                both = list(zip(self.servers, outcomes))
                gaps = {of.api.address: gap for of, gap in both if isinstance(gap, float)}
                faults = {of: fault for of, fault in both if isinstance(fault, ServerFault)}
                if gaps:
                    for server, fault in faults.items():
                        say(f"{self.run.label}: {fault}; other servers answer for it in this step")
                        server.recover()
                    self.numbers["refresh_logprob_gap"] = max(gaps.values())
                    return list(gaps)
                first = next(iter(faults.values()))
                if not surely:
                    say(f"{self.run.label}: {first}; the weights are brought once more")
            raise first

        return from_main_at_length(bring)

    def _gap_or_fault(self, anew: bool, server: Server) -> float | ServerFault:
        """The gap that proves the weights which it has taken, or what was wrong with it."""
        try:
            server.take_weights_anew() if anew else server.take_weights()
            return self._proven(server)
        except ServerFault as fault:
            return fault

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
