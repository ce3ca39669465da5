"""A group of one process goes all the ways of several, on whatever device there is: with a GPU, those of NCCL."""

import dataclasses
import errno
import os
from pathlib import Path

import pytest
import torch

from drifting import distributed, presets
from drifting.checkpoint import load_checkpoint, save_checkpoint
from drifting.distributed import load_shards, local, save_shards
from drifting.errors import InputError, StorageError
from drifting.loss import DriftingLoss
from drifting.runs.folder import ending
from drifting.training.loop import train
from tests.distributed import one_step
from tests.distributed.one_step import GUIDED, Case
from tests.distributed.pair import free_port

pytestmark = pytest.mark.distributed
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
CASES = {
    "copies": Case(dtype=torch.float32, schedule={"max_grad_norm": 1e-3, **GUIDED}),
    "microbatches": Case(dtype=torch.float32, schedule={"microbatch_size": 5, **GUIDED}),
    "shares": Case(
        dtype=torch.float32, sharded=True, gradient_checkpointing=True, schedule={"microbatch_size": 5, "max_grad_norm": 1e-3}
    ),
    "shares, bfloat16": Case(dtype=torch.float32, sharded=True, schedule={"precision": "bfloat16"}),
    "one population": Case(dtype=torch.float32, labeled=False, bank=True, sharded=True),
}


@pytest.fixture
def group(monkeypatch):
    """A process group of this process alone, which the trainings below join."""
    for name, value in {"RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}.items():
        monkeypatch.setenv(name, value)
    joined = distributed._joined(0, 1)
    monkeypatch.setattr(one_step, "join", lambda: joined)
    yield joined
    distributed._joined.cache_clear()
    torch.distributed.destroy_process_group()


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


FAULTS = {errno.ENOSPC: "Make room", errno.EROFS: "Make it writable", errno.EACCES: "Make it writable"}


@pytest.mark.parametrize("number", FAULTS, ids=errno.errorcode.get)
def test_disk_that_refuses_a_share_is_reported_in_a_sentence_and_leaves_the_older_checkpoint(group, tmp_path, monkeypatch, number):
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    state, *_ = Case(sharded=True, dtype=torch.float32).make()
    folder = tmp_path / "checkpoints"
    save_checkpoint(folder, 1, state.tensors(), {}, keep=1, processes=group)

    def refuse(self, *_):
        (Path(self.path) / "shard-00001-model-00001-of-00001.safetensors").write_bytes(b"half")
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(HuggingFaceStorageWriter, "write_data", refuse)
    with (
        pytest.raises(StorageError) as caught,
        ending(tmp_path, presets.preset("toy"), group, resume=True),
    ):
        save_checkpoint(folder, 2, state.tensors(), {}, keep=1, processes=group)
    safe = "its checkpoint step-00000001 is whole"
    command = f"drifting train toy --save-dir {tmp_path} --resume"
    said = f"({os.strerror(number).lower()}); {safe}. {FAULTS[number]}, then go on with: {command}"
    assert str(caught.value) == f"a file cannot be written or read {said}"
    assert [path.name for path in folder.iterdir()] == ["step-00000001"]
    assert load_checkpoint(folder / "step-00000001")[0].keys() == state.tensors().keys()


@pytest.mark.parametrize("kept", [0, 100, -8])
def test_damaged_share_is_refused_in_a_sentence(group, tmp_path, kept):
    state, *_ = Case(sharded=True, dtype=torch.float32).make()
    target = save_checkpoint(tmp_path, 1, state.tensors(), {}, keep=1, processes=group)
    (share,) = target.glob("*.safetensors")
    share.write_bytes(share.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"step-00000001', which is corrupted or truncated .*: delete the folder"):
        load_checkpoint(target, state.layout)


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
