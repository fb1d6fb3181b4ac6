"""Drives NeMo-Aligner's trainer through a job."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from nemo_aligner.utils.batch_iterators import DefaultBatchIterator
from omegaconf import OmegaConf

from megatron_bar.rlvr.backend import Job
from megatron_bar.rlvr.nemo.adapter import (
    OptimizerAdapter,
    PolicyAdapter,
    PromptLoader,
    Rewards,
    ScheduleAdapter,
)
from megatron_bar.rlvr.nemo.trainer import BarReinforceTrainer


class NemoAlignerBackend:
    """The RLBackend that is built."""

    def fit(self, job: Job, state: dict[str, int] | None) -> dict[str, int]:
        settings = job.settings
        model = PolicyAdapter(job)
        optimizer = OptimizerAdapter(job, model)
        loader = PromptLoader(job)

        def save(monitor_candidates: dict[str, Any], is_train_end: bool) -> None:
            if not is_train_end:  # the stage writes its checkpoint then
                job.save(trainer.state_dict())

        trainer = BarReinforceTrainer(
            job,
            cfg=OmegaConf.create(dict(
                max_epochs=1,
                max_steps=settings.steps,
                val_check_interval=0,  # evaluation is a stage of its own
                save_interval=settings.save_every,
                gradient_clip_val=None,  # Megatron's optimizer clips
                initial_policy_kl_penalty=settings.kl_coefficient,
                use_absolute_kl=False,
                num_rollouts_per_prompt=1,  # the loader repeats each prompt instead
                rollout_batch_seq_length=None,
                model_gbs=settings.batch_size,
            )),
            model=model,
            optimizer=optimizer,
            scheduler=ScheduleAdapter(job),
            train_dataloader_builder=lambda consumed_samples: loader,
            val_dataloader_builder=None,
            collate_fn=loader.collate,
            rm=Rewards(job),
            batch_iterator_cls=DefaultBatchIterator,
            logger=_StepLog(job, optimizer),
            ckpt_callback=SimpleNamespace(custom_save=save),
            run_timer=SimpleNamespace(start_time=lambda: None, is_finished=job.stopping),
        )
        if state is not None:
            trainer.load_state_dict(state)
        trainer.fit()
        return trainer.state_dict()


# Our names for upstream's, and what of it is kept.
_NAMES = {
    "train_rollouts/rewards": "reward",
    "train_rollouts/generation_length": "response_length",
    "train_rollouts/truncated": "truncated",
    "train_rollouts/consumed_samples": "prompts",
    "train_rollouts/entropy": "entropy",
    "train_rollouts/kl": "kl",
    "train_rollouts/rollout_logprob_gap": "rollout_logprob_gap",
    "train_rollouts/rollout_logprob_gap_max": "rollout_logprob_gap_max",
    "train_rollouts/groups_dropped": "groups_dropped",
    "train_rollouts/prompts_resting": "prompts_resting",
    "train_optim/loss": "loss",
    "train_optim/clip_fraction": "clip_fraction",
    "train_optim/ratio_error": "ratio_error",
    "train_optim/lr": "lr",
    "timers/generate": "seconds_rollout",
    "timers/logprobs": "seconds_logprobs",
    "timers/init_logprobs": "seconds_reference",
    "timers/critic_wait": "seconds_verification",
    "timers/train_time": "seconds_update",
}


class _StepLog:
    """The trainer's `logger`: one line a step, when its timers come, which are the last."""

    def __init__(self, job: Job, optimizer: OptimizerAdapter) -> None:
        self.job = job
        self.optimizer = optimizer
        self.numbers: dict[str, Any] = {}

    def log_metrics(self, metrics: dict[str, Any], step: int, prefix: str) -> None:
        for name, value in metrics.items():
            name = name if name.startswith("reward/") else _NAMES.get(prefix + name)
            if name is not None:
                self.numbers[name] = value
        if prefix == "timers/":
            self.numbers["grad_norm"] = float(self.optimizer.gradient_norm)
            self.job.log(step + 1, self.numbers)
            self.numbers = {}

    def log_table(self, *args: Any, **kwargs: Any) -> None:
        """Upstream's table of samples grows without end; `Job.sample` keeps them instead."""

    def finalize(self) -> None:
        pass
