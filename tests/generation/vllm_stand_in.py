"""A program that starts and answers as vLLM's server does: transformers, where there is no vLLM.

python vllm_stand_in.py -m vllm.entrypoints.openai.api_server --model M --host H --port P ...
python vllm_stand_in.py -c PROGRAM      # says which vLLM it is
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.generation.openai_server import CompletionServer, serving

FACTS = {"transformers": "4.57.6", "on_cpu": False}


def python_in(folder: Path) -> str:
    """What `rollout_python` may name: this program, by an executable in `folder`."""
    python = folder / "python-with-vllm"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} "$@"\n')
    python.chmod(0o755)
    return str(python)


class _TakesWeights(CompletionServer):
    def post(self, path: str, content: dict[str, Any]) -> Any:
        if path == "/collective_rpc":
            assert content == {"method": "take_weights", "args": [str(self.folder)]}
            content = {"method": "reload_weights", "args": []}
        return super().post(path, content)


def main() -> None:
    if sys.argv[1] == "-c":
        print(json.dumps(FACTS))
        return
    model, host, port = (
        sys.argv[sys.argv.index(option) + 1] for option in ("--model", "--host", "--port")
    )
    with serving(_TakesWeights(Path(model)), host, int(port)):
        threading.Event().wait()


if __name__ == "__main__":
    main()
