"""A program that starts and answers as vLLM's server does: transformers, where there is no vLLM.

python -m tests.generation.vllm_stand_in -m vllm... --model M --host H --port P ...
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from tests.generation.openai_server import TakesWeights, serving

# As `find_vllm` asks for them.
_FACTS = '{"transformers": "5.13.0", "on_cpu": false}'
_ROOT = Path(__file__).parents[2]
SERVER = f"env PYTHONPATH={_ROOT} {sys.executable} -m tests.generation.vllm_stand_in"


def python_in(folder: Path, server: str = SERVER) -> str:
    """What `rollout_python` may name: an executable in `folder` whose vLLM is the command `server`.

    It first prints which GPUs it sees.
    """
    python = folder / "python"
    python.write_text(
        f"#!/bin/sh\n[ \"$1\" != -c ] || {{ echo '{_FACTS}'; exit; }}\n"
        'echo "GPUs $CUDA_VISIBLE_DEVICES"\n'
        f'exec {server} "$@"\n'
    )
    python.chmod(0o755)
    return str(python)


def main() -> None:
    model, host, port = (
        sys.argv[sys.argv.index(option) + 1] for option in ("--model", "--host", "--port")
    )
    with serving(TakesWeights(Path(model)), host, int(port)):
        threading.Event().wait()


if __name__ == "__main__":
    main()
