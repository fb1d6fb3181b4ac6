"""Drives NeMo-Aligner's trainer through a learner's steps."""

from __future__ import annotations

from types import SimpleNamespace

from nemo_aligner.utils.batch_iterators import DefaultBatchIterator
from omegaconf import OmegaConf

from megatron_bar.rlvr.backends.nemo_aligner.adapter import (
    OptimizerAdapter,
    PolicyAdapter,
    PromptLoader,
    RewardAdapter,
    StepLog,
)
from megatron_bar.rlvr.backends.nemo_aligner.trainer import BarReinforceTrainer
from megatron_bar.rlvr.learner import Learner


def drive(learner: Learner) -> None:
    settings = learner.settings
    model, loader, log = PolicyAdapter(learner), PromptLoader(learner), StepLog()
    BarReinforceTrainer(
        learner,
        cfg=OmegaConf.create(
            dict(
                max_epochs=1,
                max_steps=settings.steps,
                val_check_interval=0,  # evaluation is a stage of its own
                save_interval=0,  # the learner saves, where the trainer asks whether time is up
                gradient_clip_val=None,  # Megatron's optimizer clips
                initial_policy_kl_penalty=settings.kl_coefficient,
                use_absolute_kl=False,
                num_rollouts_per_prompt=1,  # the loader repeats each prompt instead
                rollout_batch_seq_length=None,
                model_gbs=settings.global_batch_size,
            )
        ),
        model=model,
        optimizer=OptimizerAdapter(model, log),
        scheduler=SimpleNamespace(step=lambda: None),  # the optimizer's adapter does
        train_dataloader_builder=lambda consumed_samples: loader,
        val_dataloader_builder=None,
        collate_fn=loader.collate,
        rm=RewardAdapter(learner),
        batch_iterator_cls=DefaultBatchIterator,
        logger=log,
        ckpt_callback=None,
        run_timer=SimpleNamespace(
            start_time=lambda: None, is_finished=lambda: learner.end_step(log.of_step())
        ),
    ).fit()
