"""What the ranks of the distributed tests run. Importable, so that they can be started."""

from __future__ import annotations

import dataclasses
import json
import resource
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.pipeline_parallel import get_forward_backward_func

from benchmarks.counted_reads import count_reads
from megatron_bar.checkpoints.dcp import CheckpointReader
from megatron_bar.checkpoints.model_io import load_model, save_model
from megatron_bar.checkpoints.names import Slot
from megatron_bar.checkpoints.number_types import compute_type
from megatron_bar.data.batch import Batch, to_batch
from megatron_bar.data.packing import PackedDocuments
from megatron_bar.data.rows import PackedRows
from megatron_bar.data.transfer import on_device
from megatron_bar.evaluation.routed_tokens import route_texts
from megatron_bar.evaluation.token_kinds import LabelledText
from megatron_bar.models.config import ModelConfig
from megatron_bar.models.fp8 import copied_bytes
from megatron_bar.models.language_model import build_model
from megatron_bar.recipe.training import Dpo, Training
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.layout import Layout
from megatron_bar.training import resume
from megatron_bar.training.bad_steps import BadStepCheck
from megatron_bar.training.budget import PADDING, rank_budget
from megatron_bar.training.groups import (
    freeze,
    group_digests_by_ranks,
    group_sizes,
    matching,
)
from megatron_bar.training.loop import TrainingRun
from megatron_bar.training.model_run import ModelRun
from megatron_bar.training.objective import ChosenOverRejected, PreferenceLoss
from megatron_bar.training.optimizer import (
    build_optimizer,
    gradient_norm,
    wrap,
)
from megatron_bar.training.router_init import init_at_centroids
from megatron_bar.training.row_losses import row_losses
from megatron_bar.training.step import forward_backward
from tests import kills
from tests.models_hf import packed_batch


def rows_of(batch: Batch, rows: slice) -> Batch:
    tensors = {k: v[rows] for k, v in vars(batch).items() if isinstance(v, torch.Tensor)}
    return dataclasses.replace(batch, **tensors)


def gathered_logits(model: torch.nn.Module, batches: list[Batch]) -> torch.Tensor | None:
    """This data-parallel rank's logits over the whole vocabulary, on one of its ranks."""

    def forward_step(data, model):
        (batch,) = on_device([next(data).context_part()])
        logits = model(batch.tokens_BS, batch.positions_BS, batch.attention_mask_B1SS)
        return logits, lambda logits, non_loss_data: logits

    parts = get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iter(batches),
        model=[model],
        num_microbatches=len(batches),
        seq_length=batches[0].tokens_BS.shape[1],
        micro_batch_size=len(batches[0].tokens_BS),
        forward_only=True,
        collect_non_loss_data=True,
    )
    if not parallel_state.is_pipeline_last_stage():
        return None
    mine = torch.cat(parts).detach().contiguous()
    logits_BsV = _joined(mine, parallel_state.get_tensor_model_parallel_group(), dim=-1)
    context_group = parallel_state.get_context_parallel_group()
    logits_BSV = _joined(logits_BsV, context_group, dim=1)
    place_BS = torch.arange(batches[0].tokens_BS.shape[1]).expand_as(batches[0].tokens_BS)
    mine = dataclasses.replace(batches[0], tokens_BS=place_BS).context_part().tokens_BS
    places_S = _joined(mine.to(logits_BSV.device), context_group, dim=1)[0]
    is_first = parallel_state.get_tensor_model_parallel_rank() == context_group.rank() == 0
    return logits_BSV[:, places_S.argsort()].cpu() if is_first else None


def _joined(mine: torch.Tensor, group: dist.ProcessGroup, dim: int) -> torch.Tensor:
    shards = [torch.empty_like(mine) for _ in range(group.size())]
    dist.all_gather(shards, mine.contiguous(), group=group)
    return torch.cat(shards, dim)


def logits_and_gradients(checkpoint: Path, layout: Layout, batch: Batch, out: Path) -> None:
    """Write the logits, the loss and the gradients (as a checkpoint) of one batch into `out`."""
    with process_groups(layout):
        config = ModelConfig.load(checkpoint)
        model = build_model(config, layout)
        load_model(model, checkpoint)
        data_rank = parallel_state.get_data_parallel_rank()
        data_size = parallel_state.get_data_parallel_world_size()
        rows = len(batch.tokens_BS) // data_size
        mine = rows_of(batch, slice(data_rank * rows, (data_rank + 1) * rows))
        wrapped = wrap(model, Training(distributed_optimizer=False))
        wrapped.train()
        micro_batches = [rows_of(mine, slice(i, i + 1)) for i in range(rows)]
        logits_BSV = gathered_logits(wrapped, micro_batches)
        if logits_BSV is not None:
            torch.save(logits_BSV, out / f"logits-{data_rank}.pt")
        result = forward_backward(wrapped, micro_batches)
        for parameter in model.parameters():
            parameter.data = parameter.main_grad.clone()
        save_model(model, out / "gradients")
        if dist.get_rank() == 0:
            config.save(out / "gradients")
            (out / "loss.json").write_text(
                json.dumps({"loss": result.loss, "tokens": result.tokens})
            )


def preference_gradients(
    layout: Layout,
    rows: PackedRows,
    beta: float,
    cases: Sequence[tuple[Path, str, bool, Path]],
) -> None:
    """Write what a model says of pairs, DPO's loss and its gradients.

    Each case: a checkpoint, the type that it computes in, whether it's by length, and the folder.
    """
    with process_groups(layout):
        for checkpoint, dtype, normalized, out in cases:
            config = ModelConfig.load(checkpoint)
            model = build_model(config, layout, getattr(torch, dtype))
            load_model(model, checkpoint)
            training = Dpo(
                global_batch_size=len(rows),
                micro_batch_size=2,
                distributed_optimizer=False,
                dtype=dtype,
            )
            difference = ChosenOverRejected(normalized)
            reference = row_losses(model, rows, 0, training, difference)
            wrapped = wrap(model, training)
            wrapped.train()
            mine = np.arange(len(rows)).reshape(layout.data, -1, 2)[
                parallel_state.get_data_parallel_rank()
            ]
            result = forward_backward(
                wrapped,
                [to_batch(rows.take(some), 0) for some in mine],
                objective=PreferenceLoss(beta, difference),
            )
            for parameter in model.parameters():
                parameter.data = parameter.main_grad.clone()
            if dist.get_rank() == 0:
                (out / "gradients").mkdir(parents=True)
            dist.barrier()
            save_model(model, out / "gradients")
            if dist.get_rank() == 0:
                config.save(out / "gradients")
                (out / "told.json").write_text(
                    json.dumps({"reference": reference, "loss": result.loss, **result.metrics})
                )


def train_steps(
    checkpoint: Path,
    layout: Layout,
    training: Training,
    rows: PackedRows,
    folder: Path,
    die_at_save: bool = False,
    validation: PackedRows | None = None,
    snapshots: dict[int, Path] | None = None,
    bad_steps: int = 0,
    longest_file: int | None = None,
    unmarked: bool = False,
) -> None:
    """A stage's training; with `die_at_save` killed as soon as its first resume point stands.

    The first `bad_steps` are judged to be bad. No file may have more than `longest_file` bytes.
    `unmarked` saves states as versions did that don't mark them as sound.
    """
    if unmarked:
        resume._SOUND = "known to none"
    if longest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (longest_file, longest_file))
    if die_at_save:
        kills.die_at_save()
    judge = BadStepCheck.fault
    BadStepCheck.fault = lambda self, *numbers: (
        "it is one of the first" if self.progress.step < bad_steps else judge(self, *numbers)
    )
    with process_groups(layout):
        config = ModelConfig.load(checkpoint)
        run = ModelRun(config, checkpoint, folder, layout, 0, "test")
        TrainingRun(
            run,
            training,
            rows,
            0,
            snapshots=snapshots or {},
            validation=validation,
        ).run()


def count_loaded(checkpoint: Path, layout: Layout, out: Path) -> None:
    """Write RANK.json: how many bytes of the checkpoint's tensors this rank has read to start."""
    read = count_reads()
    with process_groups(layout):
        load_model(build_model(ModelConfig.load(checkpoint), layout), checkpoint)
        (out / f"{dist.get_rank()}.json").write_text(json.dumps(sum(read)))


def count_digested(checkpoint: Path, layout: Layout, out: Path) -> None:
    """Write RANK.json: the digests of all groups, and how many numbers this rank has read."""
    counts = []
    read = CheckpointReader.read

    def counted(self: CheckpointReader, slot: Slot) -> torch.Tensor:
        counts.append(torch.Size(slot.shape).numel())
        return read(self, slot)

    CheckpointReader.read = counted
    with process_groups(layout):
        digests = group_digests_by_ranks(checkpoint)
        (out / f"{dist.get_rank()}.json").write_text(json.dumps([digests, sum(counts)]))


def budgets(checkpoint: Path, layout: Layout, trainings: dict[str, Training], out: Path) -> None:
    """Write NAME-RANK.json for each training: its budget, and what a step has then allocated."""
    with process_groups(layout):
        config = ModelConfig.load(checkpoint)
        for name, training in trainings.items():
            model = build_model(config, layout, compute_type(training.dtype, checkpoint))
            load_model(model, checkpoint)
            freeze(model, config, matching(list(group_sizes(config)), training.trainable, "test"))
            wrapped = wrap(model, training)
            optimizer = build_optimizer(wrapped, training)
            budget = rank_budget(wrapped, optimizer)
            batch = packed_batch(config.vocab_size)
            rank = parallel_state.get_data_parallel_rank()
            forward_backward(wrapped, [rows_of(batch, slice(rank, rank + 1))])
            gradient_norm(optimizer)
            optimizer.step()
            (out / f"{name}-{dist.get_rank()}.json").write_text(
                json.dumps(
                    {
                        "gradients": budget.gradients,
                        "optimizer": budget.optimizer,
                        "allocated": _allocated(wrapped, optimizer),
                        "grads_of_frozen": sum(
                            p.grad is not None or hasattr(p, "main_grad")
                            for p in model.parameters()
                            if not p.requires_grad
                        ),
                        "open": sum(p.numel() for p in model.parameters() if p.requires_grad),
                        "shares": sum(
                            p.numel() / _copies(p, layout)
                            for p in model.parameters()
                            if p.requires_grad
                        ),
                    }
                )
            )


def _allocated(wrapped: torch.nn.Module, optimizer: MegatronOptimizer) -> dict[str, int]:
    """Bytes that live in the gradient buffers, and in fp32 tensors that only the optimizer has."""
    buffers = wrapped.buffers + wrapped.expert_parallel_buffers
    of_model = {p.data_ptr() for p in wrapped.module.parameters()}
    of_model |= {b.param_data.data_ptr() for b in buffers if b.param_data is not None}
    total = 0
    for part in optimizer.chained_optimizers:
        if part.optimizer is None:
            continue
        for state in part.optimizer.state.values():
            total += sum(v.nbytes for v in state.values() if torch.is_tensor(v) and v.dim())
        for parameter in part.get_parameters():
            storage = parameter.untyped_storage()
            if parameter.dtype is torch.float32 and wrapped.module.config.bf16:
                total += parameter.nbytes
                assert storage.data_ptr() not in of_model
    return {
        "gradients": sum(b.grad_data.untyped_storage().nbytes() for b in buffers),
        "optimizer": total,
    }


def _copies(parameter: torch.nn.Parameter, layout: Layout) -> int:
    """Over how many ranks the distributed optimizer shares a parameter's state."""
    if not getattr(parameter, "allreduce", True):
        return parallel_state.get_expert_data_parallel_world_size()
    return parallel_state.get_data_parallel_world_size(with_context_parallel=True)


def allocations(
    checkpoint: Path, layout: Layout, training: Training, groups: tuple[str, ...], out: Path
) -> None:
    """Write rank-RANK.json: the bytes of weights, gradients and optimizer state after a step."""
    with process_groups(layout):
        config = ModelConfig.load(checkpoint)
        model = build_model(config, layout, compute_type(training.dtype, checkpoint))
        load_model(model, checkpoint)
        trainable = matching(list(group_sizes(config)), groups, "test")
        freeze(model, config, trainable)
        wrapped = wrap(model, training)
        weights = sum(p.nbytes + copied_bytes(p) for p in model.parameters())
        optimizer = build_optimizer(wrapped, training)
        budget = rank_budget(wrapped, optimizer)
        gradients = {g: size for g, size in budget.gradients.items() if g != PADDING}
        (out / f"rank-{dist.get_rank()}.json").write_text(
            json.dumps(
                {
                    "weights": weights,
                    "gradients": sum(gradients.values()),
                    "optimizer": sum(budget.optimizer.values()),
                    "trainable": trainable,
                    "pipeline_rank": parallel_state.get_pipeline_model_parallel_rank(),
                    "expert_rank": parallel_state.get_expert_model_parallel_rank(),
                }
            )
        )


def kept_for_backward(
    config: ModelConfig, training: Training, groups: tuple[str, ...], out: Path
) -> None:
    """Write kept.json: the bytes that one micro batch leaves for its backward pass."""
    layout = Layout()
    with process_groups(layout):
        model = build_model(config, layout, router_z_loss=1e-3)
        freeze(model, config, matching(list(group_sizes(config)), groups, "test"))
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        kept: dict[int, torch.Tensor] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.untyped_storage().data_ptr() not in weights:
                kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        batch = packed_batch(config.vocab_size, training.micro_batch_size, training.sequence_length)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(
                batch.tokens_BS,
                batch.positions_BS,
                batch.attention_mask_B1SS,
                labels=batch.labels_BS,
            )
        size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
        (out / "kept.json").write_text(json.dumps(size))


def routed_texts(checkpoint: Path, layout: Layout, texts: list[LabelledText], out: Path) -> None:
    """Write RANK.json: what the routers do with `texts`, as that rank knows it."""
    with process_groups(layout):
        model = build_model(ModelConfig.load(checkpoint), layout, sequence_parallel=False)
        load_model(model, checkpoint)
        found = route_texts(model.eval(), texts, 0)
        (out / f"{dist.get_rank()}.json").write_text(json.dumps(found))


def centroids(
    checkpoint: Path, layout: Layout, rows: PackedDocuments, owners: list[int], out: Path
) -> None:
    """Save the model with its router rows at the centroids of `rows`."""
    with process_groups(layout):
        config = ModelConfig.load(checkpoint)
        model = build_model(config, layout)
        load_model(model, checkpoint)
        init_at_centroids(model, rows, owners, config.all_expert_names, 0)
        save_model(model, out)
        if dist.get_rank() == 0:
            config.save(out)
