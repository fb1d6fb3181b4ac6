"""A Hugging Face hub of one model: its cache as downloads leave it, and a server of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType

import pytest
from huggingface_hub import constants

NONE: Mapping[str, str] = MappingProxyType({})
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cached(
    cache: Path, name: str, folder: Path, files: Sequence[str] = (), commit: str = COMMIT
) -> Path:
    """Lay `files` of a folder, by default all, into the cache as the model's newest commit."""
    model = cache / f"models--{name.replace('/', '--')}"
    snapshot = model / "snapshots" / commit
    shutil.rmtree(snapshot, ignore_errors=True)
    snapshot.mkdir(parents=True)
    for file in files or [path.name for path in folder.iterdir()]:
        shutil.copyfile(folder / file, snapshot / file)
    (model / "refs").mkdir(exist_ok=True)
    (model / "refs" / "main").write_text(commit)
    return snapshot


def use_cache(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Have this process look into `cache`, without a network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@contextlib.contextmanager
def served(name: str, folder: Path) -> Iterator[str]:
    """The address of a hub that has `folder` as the model `name`, and `org/gated`.

    Asked for `org/unplugged` or `org/ill` it hangs up, or is ill.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            file = folder / path.rpartition("/")[2]
            if path.startswith(f"/api/models/{name}/revision/"):
                if path.rpartition("/")[2] not in ("main", COMMIT):
                    return self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
                files = [{"rfilename": path.name} for path in folder.iterdir()]
                about = {"id": name, "sha": COMMIT, "siblings": files, "private": False}
                return self._answer(200, json.dumps(about).encode())
            if "/org/unplugged/" in path:
                return self.connection.close()
            if "/org/ill/" in path:
                return self._answer(500, b"")
            if path.startswith("/api/models/org/gated/"):
                return self._answer(403, b"", {"X-Error-Code": "GatedRepo"})
            if path.startswith(f"/{name}/resolve/{COMMIT}/") and file.is_file():
                content = file.read_bytes()
                etag = hashlib.sha256(content).hexdigest()
                return self._answer(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
            return self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})

        def _answer(self, status: int, content: bytes, headers: Mapping[str, str] = NONE) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
