"""Saving and stop signals."""

from __future__ import annotations

import signal

from megatron.core import dist_checkpointing

from megatron_bar.checkpoints.model_io import save_shards
from megatron_bar.runtime.stopping import STOP_SIGNALS


def test_what_a_save_starts_hears_no_stop_signal(tmp_path, monkeypatch):
    """On a GPU Megatron-Core has a process that stays; without it the last state can't be saved."""
    blocked = []
    monkeypatch.setattr(dist_checkpointing, "save", lambda *args, **more: blocked.append(
        signal.pthread_sigmask(signal.SIG_BLOCK, [])))
    save_shards({}, tmp_path)
    assert blocked[0] >= set(STOP_SIGNALS)
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(STOP_SIGNALS)
