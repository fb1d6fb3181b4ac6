"""Whether a program that was killed leaves processes behind."""

from __future__ import annotations

import subprocess
import time


def assert_group_ends(group: int, seconds: float) -> None:
    """Whatever was started in the process group `group` ends within `seconds`.

    A program is in a group of its own if it was started in a new session.
    """
    deadline = time.monotonic() + seconds
    while _is_alive(group):
        assert time.monotonic() < deadline, f"processes go on {seconds:.0f} s after they should end"
        time.sleep(0.05)


def _is_alive(group: int) -> bool:
    """Zombies don't count: whoever adopts orphans buries them in its own time."""
    listed = subprocess.run(
        ["ps", "-axo", "pgid=,stat="], capture_output=True, text=True, check=True
    ).stdout
    return any(
        int(pgid) == group and not state.startswith("Z")
        for pgid, state in map(str.split, listed.splitlines())
    )
