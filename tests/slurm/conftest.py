"""A cluster, a dense model to start from, and a recipe small enough to go through it in seconds."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from megatron_bar.checkpoints import hf
from megatron_bar.data.tokenizer import train_tokenizer
from megatron_bar.data.toy import CHAT_TEMPLATE, DOMAINS, texts
from megatron_bar.models.presets import PRESETS
from megatron_bar.runtime.files import write_json
from tests.models_hf import random_dense
from tests.slurm.cluster import Cluster, cluster, missing

_TRAINING = dict(sequence_length=128, global_batch_size=2, micro_batch_size=1, lr=1e-3, log_every=1)
_OF_7B = {
    "data": [{"path": "data.jsonl"}],
    "steps": 100,
    "global_batch_size": 128,
    "dtype": "bfloat16",
}
_GENERAL = {"toy": "general", "count": 10}


def _domain(name: str, **training) -> dict:
    return {
        "sft": {
            **_TRAINING,
            "steps": 3,
            "data": [{"toy": name, "count": 20}, _GENERAL],
            **training,
        },
        "tasks": [{"toy": name, "split": "heldout", "count": 2}],
    }


def recipe_of(anchor: Path, runs: Path, name: str) -> dict:
    """Two domains. One trains on both nodes, as does the router; the other on one."""
    over_nodes = {"processes": 2, "expert": 2}
    return copy.deepcopy(
        {
            "name": name,
            "runs": str(runs),
            "anchor": str(anchor),
            "domains": {
                "math": _domain("math", layout=over_nodes),
                "safety": _domain("safety"),
            },
            "route": {
                "fraction": 0.5,
                "training": {**_TRAINING, "steps": 2, "layout": {"processes": 2}},
            },
            "evaluate": {"max_new_tokens": 4, "batch_size": 4},
        }
    )


@pytest.fixture(scope="session")
def anchor(tmp_path_factory) -> Path:
    """A Hugging Face folder, as a user would bring it."""
    folder = tmp_path_factory.mktemp("models") / "anchor model"
    words = [text for name in ("general", "math", "code") for text in texts(name, "train", 20, 0)]
    tokenizer = train_tokenizer(words, 320, folder, CHAT_TEMPLATE)
    random_dense(
        vocab_size=len(tokenizer),
        num_hidden_layers=2,
        max_position_embeddings=256,
    ).save_pretrained(folder)
    assert {"math", "safety"} <= set(DOMAINS)
    return folder


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    if reason := missing():
        pytest.skip(reason)
    with cluster() as running:
        yield running


@pytest.fixture
def on_cluster(slurm, monkeypatch) -> Cluster:
    """SLURM's commands, and jobs, see the cluster and this checkout."""
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    yield slurm
    slurm.cancel_all()


def write_site(folder: Path, **changes) -> Path:
    """A site of two nodes with one rank each, whatever the stage."""
    nodes = {"partition": "all", "ranks": 1, "gpus": False, "time": "10"}
    path = folder / "site.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "gpu_nodes": nodes,
                "cpu_nodes": nodes,
                "warning": 30,
                "python": sys.executable,
                "environment": {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
                **changes,
            }
        )
    )
    return path


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """A folder with the 7B's configuration in it, and a recipe for 64 GPUs."""
    anchor = tmp_path / "OLMo-2-1124-7B-Instruct"
    anchor.mkdir()
    model = PRESETS["olmo2-7b"]
    write_json(anchor / "config.json", hf.hf_config(model, "bfloat16", {"pad_token_id": None}))
    recipe = {
        "name": "bar-7b",
        "anchor": anchor.name,
        "layout": {"processes": 64, "expert": 2},
        "domains": {
            "math": {"midtrain": _OF_7B, "sft": _OF_7B},
            "safety": {"sft": {**_OF_7B, "layout": {"processes": 4, "expert": 2}}},
        },
        "route": {
            "training": {
                "steps": 66,
                "global_batch_size": 648,
                "dtype": "bfloat16",
                "layout": {"processes": 24, "expert": 3},
            }
        },
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.chdir(tmp_path)
    return tmp_path
