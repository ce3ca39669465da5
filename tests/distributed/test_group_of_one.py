"""A group of one process goes all the ways of several, on whatever device there is: with a GPU, those of NCCL."""

import dataclasses

import pytest
import torch

from drifting.distributed import load_shards, local, processes, save_shards
from drifting.loss import DriftingLoss
from drifting.training.loop import train
from tests.distributed import one_step
from tests.distributed.one_step import GUIDED, Case
from tests.distributed.pair import free_port

pytestmark = pytest.mark.distributed
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
CASES = {
    "copies": Case(dtype=torch.float32, schedule={"max_grad_norm": 1e-3, **GUIDED}),
    "micro-batches": Case(dtype=torch.float32, schedule={"micro_batch": 5, **GUIDED}),
    "shares": Case(dtype=torch.float32, sharded=True, checkpointing=True, schedule={"micro_batch": 5, "max_grad_norm": 1e-3}),
    "shares, bfloat16": Case(dtype=torch.float32, sharded=True, schedule={"precision": "bfloat16"}),
    "one population": Case(dtype=torch.float32, labelled=False, bank=True, sharded=True),
}


@pytest.fixture
def group(monkeypatch):
    """A process group of this process alone, which the trainings below join."""
    for name, value in {"RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}.items():
        monkeypatch.setenv(name, value)
    joined = processes._joined(0, 1)
    monkeypatch.setattr(one_step, "join", lambda: joined)
    yield joined
    joined.leave()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_training_is_that_of_a_process_alone(case, device, request):
    case = dataclasses.replace(case, device=device, steps=2)
    expected = one_step.trained(dataclasses.replace(case, sharded=False))
    request.getfixturevalue("group")
    found = one_step.trained(case)
    tolerance = 3e-2 if case.schedule.get("precision") else 1e-4
    for name, gradient in expected["gradients"].items():
        assert found["gradients"][name].device.type == device
        torch.testing.assert_close(found["gradients"][name], gradient, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found["loss"], expected["loss"], rtol=tolerance, atol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_shares_are_written_and_read_back(group, device, tmp_path):
    case = Case(sharded=True, dtype=torch.float32, device=device, steps=2)
    state, positives, schedule = case.make()
    list(train(state, positives, one_step.encode, DriftingLoss(), schedule))
    save_shards(tmp_path, state.tensors())
    other, *_ = dataclasses.replace(case, steps=2).make()
    other.restore(load_shards(tmp_path, other.layout), 2, "the shards")
    found = other.tensors()
    assert found.keys() == state.tensors().keys()
    assert all(torch.equal(local(found[name]), local(value)) for name, value in state.tensors().items())
