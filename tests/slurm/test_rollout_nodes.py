"""RLVR in a real SLURM whose answers come from a server on a node of its own.

That is vLLM where MEGATRON_BAR_VLLM_PYTHON names it (`make test-vllm`), else a stand-in.
"""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest
import yaml

from megatron_bar.cli import main
from megatron_bar.launch.logs import log_path
from megatron_bar.launch.slurm.failed_nodes import failed_nodes_path
from megatron_bar.training.metrics import read_metrics
from tests.generation import vllm_stand_in
from tests.models_hf import TALKING, random_dense, talking
from tests.slurm.cluster import Cluster, wait_until
from tests.slurm.conftest import write_site

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(900)]

VLLM = os.environ.get("MEGATRON_BAR_VLLM_PYTHON")
_STEPS = 4


def _recipe(folder: Path) -> Path:
    """One domain, which hardly learns before rewards."""
    # Heads of a size that vLLM's attention on a CPU has.
    shape = TALKING | dict(hidden_size=128, intermediate_size=256, num_attention_heads=4)
    anchor = talking(random_dense(num_hidden_layers=2, **shape), folder / "anchor")
    sft = dict(
        data=[{"toy": "math", "count": 16}],
        steps=1,
        sequence_length=128,
        global_batch_size=2,
        lr=1e-4,
    )
    rlvr = dict(
        data=[{"toy": "math", "count": 16}],
        steps=_STEPS,
        prompts_per_step=2,
        samples_per_prompt=4,
        global_batch_size=8,
        micro_batch_size=4,
        rollout_batch_size=8,
        prompt_length=64,
        response_length=16,
        lr=1e-4,
        save_every=1,
        rollout_nodes=1,
        rollout_python=VLLM or vllm_stand_in.python_in(folder),
        rollout_options=["--enforce-eager"] if VLLM else [],
    )
    recipe = {
        "name": "served",
        "runs": str(folder / "runs"),
        "anchor": str(anchor),
        "domains": {"math": {"sft": sft, "rlvr": rlvr}},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def _server(slurm: Cluster) -> psutil.Process:
    """The server itself, not the shell that ends it."""
    found = map(psutil.Process, slurm.processes_with("VLLM_SERVER_DEV_MODE=1"))
    words = {process: process.cmdline() for process in found}
    (server,) = (
        of for of in words if "--worker-extension-cls" in words[of] and words[of][0] != "sh"
    )
    return server


def test_a_server_on_its_own_node_answers_and_its_death_costs_no_step(on_cluster, tmp_path):
    recipe, run = _recipe(tmp_path), tmp_path / "runs" / "served"
    threads_and_cache = {"OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    site = write_site(tmp_path, environment=threads_and_cache)
    command = ["submit", str(recipe), "--site", str(site)]
    for stage in ("anchor", "math/branch", "math/sft", "math/rlvr"):
        command += ["--only", stage]
    assert main(command) == 0
    metrics = run / "math/rlvr"
    wait_until("a step with its answers", lambda: len(read_metrics(metrics)) > 0, 600)
    _server(on_cluster).kill()
    wait_until("all jobs ended", lambda: not on_cluster.jobs(), 600)
    log = log_path(run, "math/rlvr").read_text()
    lines = read_metrics(metrics)
    assert [line["step"] for line in lines] == list(range(1, _STEPS + 1)), log
    for line in lines:
        assert line["rollout_logprob_gap_max"] < 1e-3 and line["refresh_logprob_gap"] < 1e-3
    assert "vLLM server 0-0 on" in log and "was ended by SIGKILL, and is started anew" in log
    assert (run / "math/rlvr" / "checkpoint").is_dir()
    noted = failed_nodes_path(run).read_text()
    assert "math/rlvr: vLLM server 0-0 on " in noted
    assert not on_cluster.processes_with("VLLM_SERVER_DEV_MODE=1")
