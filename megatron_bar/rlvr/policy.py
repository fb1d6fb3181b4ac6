"""The model in training, as reinforcement learning sees it: log-probabilities and updates.

Knows Megatron-Core and nothing of the trainer that drives it.

Shapes: B rows, S sequence, T = S - 1 (place t holds what is said of token t + 1), P = S padded.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.utils import set_model_to_sequence_parallel
from megatron.core.utils import unwrap_model

from megatron_bar.models.language_model import LanguageModel
from megatron_bar.models.loss import Targets
from megatron_bar.recipe.training import Rlvr
from megatron_bar.rlvr.objective import mean_weights, policy_loss

Rows = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Scored:
    """Log-probabilities of the policy for given tokens."""

    logprobs_BT: torch.Tensor  # of each next token, at the sampling temperature
    entropy_BT: torch.Tensor  # of the distribution that it comes from, in nats


@dataclass(frozen=True)
class Update:
    """One optimizer step's backward pass, the same numbers on every rank."""

    loss: float
    tokens: int
    clip_fraction: float
    ratio_error: float  # mean |log ratio|


class Policy:
    """`model` is wrapped for training; all ranks call its methods together.

    Rows differ from one data-parallel rank to the next; ranks of one model-parallel group are given
    the same ones. Rows are padded on the right, so that a causal mask keeps padding out.
    """

    def __init__(
        self, model: DistributedDataParallel, micro_batch_size: int, temperature: float
    ) -> None:
        self.wrapped = model
        self.model: LanguageModel = unwrap_model(model)
        self.micro_batch_size = micro_batch_size
        self.temperature = temperature
        self._start: dict[torch.nn.Parameter, torch.Tensor] = {}

    @contextlib.contextmanager
    def generating(self) -> Iterator[LanguageModel]:
        """The bare model, ready to generate one token at a time."""
        sequence_parallel = self.model.config.sequence_parallel
        set_model_to_sequence_parallel(self.model, False)
        self.model.eval()
        try:
            yield self.model
        finally:
            self.model.train()
            set_model_to_sequence_parallel(self.model, sequence_parallel)

    def keep_start(self) -> None:
        """Remember the open parameters, in host memory, as what the reference policy has."""
        opened = (p for p in self.model.parameters() if p.requires_grad)
        self._start = {p: p.detach().to("cpu", copy=True) for p in opened}

    @contextlib.contextmanager
    def _as_reference(self) -> Iterator[None]:
        assert self._start, "keep_start() comes first"
        now = {p: p.detach().to("cpu", copy=True) for p in self._start}
        for parameter, start in self._start.items():
            parameter.data.copy_(start)
        try:
            yield
        finally:
            for parameter, value in now.items():
                parameter.data.copy_(value)

    @torch.no_grad()
    def score(self, tokens_BS: torch.Tensor, temperature: float | None = None) -> Scored:
        """Log-probabilities and entropies of rows of tokens, by default at the temperature of
        sampling.
        """
        self.wrapped.eval()
        parts = self._run(
            {"tokens": tokens_BS}, lambda said, _: said, train=False, temperature=temperature
        )
        self.wrapped.train()
        shape = (2, *tokens_BS[:, 1:].shape)
        both = torch.cat(parts, dim=1) if parts else torch.empty(shape, device=tokens_BS.device)
        # Only the last pipeline stage has computed them.
        dist.broadcast(
            both,
            parallel_state.get_pipeline_model_parallel_last_rank(),
            group=parallel_state.get_pipeline_model_parallel_group(),
        )
        return Scored(logprobs_BT=both[0], entropy_BT=both[1])

    def reference_logprobs(self, tokens_BS: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of the reference policy; the starting values are swapped in and out."""
        with self._as_reference():
            return self.score(tokens_BS).logprobs_BT

    def update(self, rows: Rows, settings: Rlvr) -> Update:
        """Leave the gradient of the settings' objective in the parameters' buffers.

        `rows`: `tokens` [B, S] and, all [B, T], `mask`, `old_logprobs`, `advantages`. The loss is
        the mean over the responses of all data-parallel ranks' rows (`objective.mean_weights`).
        """
        data_group = parallel_state.get_data_parallel_group()
        mask_BT = rows["mask"]
        counts = torch.stack([mask_BT.sum(), mean_weights(mask_BT, settings.loss_type).sum()])
        dist.all_reduce(counts, group=data_group)
        tokens, total = counts
        micro_batches = len(rows["tokens"]) // self.micro_batch_size
        # Megatron divides by the number of micro-batches, its buffers by the data-parallel ranks.
        scale = micro_batches * data_group.size() / total.clamp_min(1)
        loss_of = functools.partial(self._loss, scale=scale, settings=settings)
        parts = self._run(rows, loss_of, train=True)
        sums = torch.stack(parts).sum(0) if parts else counts.new_zeros(3)
        dist.all_reduce(sums, group=data_group)
        dist.broadcast(
            sums,
            parallel_state.get_pipeline_model_parallel_last_rank(),
            group=parallel_state.get_pipeline_model_parallel_group(),
        )
        loss, clipped, error = (sums / total.clamp_min(1)).tolist()
        return Update(loss, int(tokens), clipped, error)

    def _run(
        self, rows: Rows, output_of: Callable, train: bool, temperature: float | None = None
    ) -> list[torch.Tensor]:
        """Megatron's schedule over micro-batches; what `output_of(said, rows)` kept of each.

        `said` are log-probabilities [B, T] or, where gradients are off, these and entropies.
        """
        size, temperature = self.micro_batch_size, temperature or self.temperature
        count, length = rows["tokens"].shape
        assert count % size == 0, (count, size)
        tensor = parallel_state.get_tensor_model_parallel_world_size()
        padded_length = -(-length // tensor) * tensor  # sequence parallelism cuts it in so many
        micro_batches = [
            {name: value[i : i + size] for name, value in rows.items()}
            for i in range(0, count, size)
        ]

        def forward_step(data: Iterator[Rows], model: torch.nn.Module):
            micro_batch = next(data)
            tokens_BS = micro_batch["tokens"]
            tokens_BP = torch.nn.functional.pad(tokens_BS, (0, padded_length - length))
            positions_BP = torch.arange(padded_length, device=tokens_BP.device).expand_as(tokens_BP)
            said_BP = model(
                tokens_BP,
                positions_BP,
                None,
                labels=Targets(tokens_BP.roll(-1, dims=1), temperature, with_entropy=not train),
            )

            def finish(said_BP: torch.Tensor, non_loss_data: bool = False):
                said_BT = said_BP[..., : length - 1]
                return output_of(
                    -said_BT if train else torch.stack([-said_BT[0], said_BT[1]]), micro_batch
                )

            return said_BP, finish

        return get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=iter(micro_batches),
            model=[self.wrapped],
            num_microbatches=len(micro_batches),
            seq_length=padded_length,
            micro_batch_size=size,
            forward_only=not train,
            collect_non_loss_data=not train,
        )

    def _loss(
        self, logprobs_BT: torch.Tensor, rows: Rows, scale: torch.Tensor, settings: Rlvr
    ) -> tuple[torch.Tensor, torch.Tensor]:
        found = policy_loss(
            logprobs_BT, rows["old_logprobs"], rows["advantages"], rows["mask"], settings
        )
        sums = torch.stack([found.loss.detach(), found.clipped, found.ratio_error])
        return found.loss * scale, sums
