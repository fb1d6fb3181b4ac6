"""What is told by its exit status to be a machine's fault."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from megatron_bar.runtime.machine_faults import MACHINE_FAILED, machine_faults_told


@pytest.mark.parametrize(
    "error, told",
    [
        (torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered", 214), True),
        (dist.DistBackendError("NCCL error: remote process exited"), True),
        (RuntimeError("shapes differ"), False),
        (torch.OutOfMemoryError("CUDA out of memory"), False),  # it would be as short elsewhere
    ],
)
def test_faults_of_a_gpu_and_of_nccl_are(error, told, capsys):
    with pytest.raises(SystemExit if told else type(error)) as raised, machine_faults_told():
        raise error
    if told:
        assert raised.value.code == MACHINE_FAILED
        assert str(error).split(",")[0] in capsys.readouterr().err
