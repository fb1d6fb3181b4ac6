"""A server of completions with transformers, which answers as vLLM's documentation has it.

Token ids in and out, log-probabilities at the sampling temperature and of the prompt,
`collective_rpc` with `reload_weights`, `reset_prefix_cache`, sleep mode.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

# Of all servers of a process: while transformers loads a model, torch's default type is another one
# for every thread.
ONE_AT_A_TIME = threading.RLock()


class CompletionServer:
    """Serves the model in `folder`; `reloads` counts how often it was told to read it again.

    `calls` are the paths of what it was asked, without repetitions; asleep it answers nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reloads = 0
        self.requests: list[dict[str, Any]] = []
        self.calls: list[str] = []
        self.asleep: set[str] = set()  # the parts that have no memory
        self._load()

    def _load(self) -> None:
        with ONE_AT_A_TIME:
            self.model = AutoModelForCausalLM.from_pretrained(self.folder).eval()

    def get(self, path: str) -> Any:
        if path == "/health":
            return None
        if path == "/is_sleeping":
            return {"is_sleeping": bool(self.asleep)}
        assert path == "/v1/models", path
        return {"object": "list", "data": [{"id": "policy", "object": "model"}]}

    def post(self, path: str, content: dict[str, Any]) -> Any:
        with ONE_AT_A_TIME:
            if [path] != self.calls[-1:]:
                self.calls.append(path)
            if path == "/sleep?level=2":
                self.asleep = {"weights", "kv_cache"}
                return None
            if path.startswith("/wake_up?tags="):
                self.asleep.remove(path.partition("=")[2])
                return None
            assert "weights" not in self.asleep
            if path == "/collective_rpc":
                assert content == {"method": "reload_weights", "args": []}
                self._load()
                self.reloads += 1
                return {"results": [None]}
            if path == "/reset_prefix_cache":
                return None
            assert path == "/v1/completions" and not self.asleep, path
            if "prompt_logprobs" in content:
                return self._of_prompt(content)
            self.requests.append(content)
            return self._complete(content)

    @torch.no_grad()
    def _of_prompt(self, asked: dict[str, Any]) -> Any:
        tokens = asked["prompt"]
        logprobs_SV = self.model(torch.tensor([tokens])).logits[0].log_softmax(-1)
        said = [
            {str(token): {"logprob": float(logprobs_V[token])}}
            for token, logprobs_V in zip(tokens[1:], logprobs_SV)
        ]
        return {"choices": [{"prompt_logprobs": [None, *said]}]}

    @torch.no_grad()
    def _complete(self, asked: dict[str, Any]) -> Any:
        assert asked["model"] == "policy" and asked["return_token_ids"] and asked["logprobs"] == 0
        generator = torch.Generator().manual_seed(asked["seed"])
        tokens, logprobs, stopped = [], [], False
        while len(tokens) < asked["max_tokens"] and not stopped:
            logits_V = self.model(torch.tensor([asked["prompt"] + tokens])).logits[0, -1]
            if asked["temperature"]:
                logprobs_V = (logits_V / asked["temperature"]).log_softmax(-1)
                token = int(torch.multinomial(logprobs_V.exp(), 1, generator=generator))
            else:
                logprobs_V = logits_V.log_softmax(-1)
                token = int(logprobs_V.argmax())
            tokens.append(token)
            logprobs.append(float(logprobs_V[token]))
            stopped = token in asked["stop_token_ids"]
        return {
            "object": "text_completion",
            "model": "policy",
            "choices": [
                {
                    "index": 0,
                    "text": "",
                    "finish_reason": "stop" if stopped else "length",
                    "prompt_token_ids": asked["prompt"],
                    "token_ids": tokens,
                    "logprobs": {
                        "token_logprobs": logprobs,
                        "tokens": [f"token_id:{t}" for t in tokens],
                    },
                }
            ],
        }


class TakesWeights(CompletionServer):
    """The same, told of new weights as our worker in vLLM is."""

    def post(self, path: str, content: dict[str, Any]) -> Any:
        if path == "/collective_rpc":
            assert content == {"method": "take_weights", "args": [str(self.folder)]}
            content = {"method": "reload_weights", "args": []}
        return super().post(path, content)


@contextlib.contextmanager
def serving(answers: Any, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """The address of a server that answers with `answers.get(path)` and `.post(path, content)`.

    Those may return bytes too, which are sent as an error, or text, as it is. What they raise cuts
    the connection. `answers.connections`, where there is such a thing, is told of each connection.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # which keeps connections, as vLLM does

        def setup(self) -> None:
            super().setup()
            getattr(answers, "connections", []).append(self.client_address)

        def do_GET(self) -> None:
            self._send(answers.get(self.path))

        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._send(answers.post(self.path, content))

        def _send(self, answer: Any) -> None:
            failed = isinstance(answer, bytes)
            if isinstance(answer, dict | list):
                answer = json.dumps(answer)
            body = answer if failed else (answer or "").encode()
            self.send_response(500 if failed else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *request: Any) -> None:
            pass

    server = Server((host, port), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
