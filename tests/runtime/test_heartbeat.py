"""The thread that watches a rank."""

from __future__ import annotations

import threading
import time

from megatron_bar.runtime import heartbeat


def test_the_thread_ends_with_what_it_watches(monkeypatch):
    """Left to the interpreter's end amid a call, it aborted ranks that were done."""
    signing = threading.Event()

    def sign_slowly(watch) -> None:
        signing.set()
        time.sleep(0.3)

    monkeypatch.setenv(heartbeat.HANG_MINUTES, "0.1")
    monkeypatch.setattr(heartbeat._Watchdog, "_sign", sign_slowly)
    with heartbeat.watched("math/sft"):
        assert signing.wait(10)
    assert "heartbeat" not in {thread.name for thread in threading.enumerate()}
