"""Models by their name on the hub: found in its cache, downloaded, or refused in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_bar.checkpoints.hub import commit_of, local_folder
from megatron_bar.checkpoints.verify import verify_tensors
from megatron_bar.cli import main
from megatron_bar.runtime.errors import BarError
from tests import hub

NAME = "org/model-1B"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    hub.use_cache(monkeypatch, tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def _refused(name: str, **how) -> str:
    with pytest.raises(BarError) as raised:
        local_folder(name, **how)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_name_is_found_in_the_cache(cache, dense_hf):
    older, newer = "a" * 40, "b" * 40
    hub.cached(cache, NAME, dense_hf, commit=older)
    folder = hub.cached(cache, NAME, dense_hf, commit=newer)
    assert local_folder(NAME) == local_folder(f"{NAME}@main") == folder
    assert commit_of(local_folder(NAME)) == newer
    assert commit_of(local_folder(f"{NAME}@{older}")) == older
    assert commit_of(dense_hf) is None


def test_a_folder_of_the_name_goes_first(cache, dense_hf, tmp_path):
    hub.cached(cache, NAME, dense_hf)
    (tmp_path / NAME).mkdir(parents=True)
    assert local_folder(NAME) == Path(NAME)


def test_what_the_cache_lacks_is_named_with_the_command_that_gets_it(cache, experts_hf):
    command = f"download it first with: hf download {NAME}"
    assert _refused(NAME).endswith(f"in the hub's cache; {command}")
    assert _refused(f"{NAME}@v2").endswith(f"{command} --revision v2")
    files = ["config.json", "model.safetensors.index.json"]
    folder = hub.cached(cache, NAME, experts_hf, files)
    assert local_folder(NAME, weights=False) == folder
    message = _refused(NAME)
    assert "model-00001-of-" in message and message.endswith(command)
    hub.cached(cache, NAME, experts_hf, files[1:])
    assert "config.json is not in the hub's cache" in _refused(NAME, weights=False)


@pytest.mark.parametrize("name", ["nowhere", "/a/b", "a/b/c", "./a/b", "../b", "a/b@", "~/b"])
def test_a_path_is_no_name_of_the_hub(name, cache):
    assert "is not a folder; give a Hugging Face model folder, or OWNER/NAME" in _refused(name)


def test_commands_take_names(cache, dense_hf, tmp_path, capsys):
    hub.cached(cache, NAME, dense_hf)
    assert main(["import", NAME, "checkpoint"]) == 0
    assert main(["verify", "checkpoint", f"{NAME}@{hub.COMMIT}", "--tensors"]) == 0
    assert "all 47 tensors are equal" in capsys.readouterr().out
    assert main(["import", "org/other", "other"]) == 1
    assert "download it first with: hf download org/other" in capsys.readouterr().err


REFUSED = {
    "org/none": "is neither a folder here nor a model of the hub; if it is private there, log in",
    "org/gated": "org/gated is gated: accept its terms at http://127.0.0.1:",
    f"{NAME}@v9": "the hub's org/model-1B has no revision v9",
    "org/unplugged": "in the hub's cache; download it first with: hf download org/unplugged",
    "org/ill": "in the hub's cache; download it first with: hf download org/ill",
}


@pytest.mark.slow
def test_a_download_is_as_the_hub_has_it(dense_hf, tmp_path):
    """In a process that may ask a hub, which is a server of this machine's."""
    script = (
        "import sys; from megatron_bar.cli import main\n"
        "for name, out in zip(sys.argv[1::2], sys.argv[2::2]): print(main(['import', name, out]))"
    )
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    names = [NAME, *REFUSED, f"{NAME}@{hub.COMMIT}"]
    outs = [str(tmp_path / str(number)) for number in range(len(names))]
    with hub.served(NAME, dense_hf) as endpoint:
        done = subprocess.run(
            [sys.executable, "-c", script, *(word for pair in zip(names, outs) for word in pair)],
            env=environment | {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home")},
            capture_output=True,
            text=True,
            timeout=120,
        )
    messages = [line for line in done.stderr.splitlines() if line.startswith("megatron-bar: ")]
    assert len(messages) == len(REFUSED), done.stderr
    assert all(message in line for message, line in zip(REFUSED.values(), messages)), messages
    assert [line for line in done.stdout.split() if line in "01"] == ["0", *"11111", "0"]
    for out in (outs[0], outs[-1]):
        assert verify_tensors(Path(out), dense_hf) == 47
