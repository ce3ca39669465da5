"""One process alone, and what is refused before others are looked for."""

import os
import sys

import pytest
import torch
from torch import nn

from drifting import cli, presets, runs
from drifting.cli import main
from drifting.data.bank import MemoryBank
from drifting.data.sources import BankSource, InMemorySource, StreamSource
from drifting.distributed import (
    ALONE,
    LostProcessError,
    Processes,
    check_devices,
    is_lost_process,
    is_sharded,
    join,
    laid_out,
    local,
    whole,
)
from drifting.errors import InputError
from drifting.training.loop import check_shares
from drifting.training.schedule import Schedule


class Two(Processes):
    """The second of two processes, that can reach no other."""

    rank, size = 1, 2


@pytest.fixture
def several(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)


def test_one_process_shares_with_nobody(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert join() is ALONE
    assert cli._join() is None
    for size in ("", None):
        monkeypatch.setenv("WORLD_SIZE", size) if size is not None else monkeypatch.delenv("WORLD_SIZE")
        assert join() is ALONE
        assert cli._join() is None
    value, network = torch.randn(2, 3), nn.Linear(2, 2)
    assert ALONE.is_main_process
    assert ALONE.all_reduce_sum(value) is value
    assert ALONE.all_reduce_min(value) is value
    assert ALONE.all_gather({"a": value}, 1) == {"a": value}
    assert [ALONE.any(flag) for flag in (True, False)] == [True, False]
    assert list(range(6))[ALONE.share(6)] == list(range(6))
    assert ALONE.wrap_ddp(network)[0] is network
    with ALONE.main_process_first(), ALONE.wrap_ddp(network)[1]():
        assert ALONE.is_first_to_say("anything")
        assert not ALONE.something_said()
    ALONE.shard(network)
    ALONE.barrier()
    assert not is_sharded(network)
    assert local(value) is whole(value) is laid_out(value, value) is value


def test_shares_are_in_the_order_of_the_ranks():
    assert list(range(6))[Two().share(6)] == [3, 4, 5]


@pytest.mark.parametrize("name", ["RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_processes_that_cannot_be_found_are_refused(several, monkeypatch, name):
    monkeypatch.delenv(name)
    with pytest.raises(InputError, match=f"^WORLD_SIZE is 2, but {name} is not set: start the processes with torchrun$"):
        join()


def test_each_process_needs_a_device_of_its_own(monkeypatch):
    for device in ("cpu", "cuda", "cuda:1", "mps"):
        check_devices(device, ALONE)
    check_devices("cpu", Two())
    for device in ("cuda:1", "mps"):
        with pytest.raises(InputError, match=f"^device is '{device}', but each of 2 processes needs its own: pass cuda or cpu$"):
            check_devices(device, Two())
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    check_devices("cuda", Two())
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"^device is 'cuda', .*: start one process per device$"):
        check_devices("cuda", Two())


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (LostProcessError("gone"), True),
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:5"), True),
        (torch.distributed.DistBackendError("NCCL error"), True),
        (RuntimeError("shapes [2] and [3] do not fit"), False),
        (torch.OutOfMemoryError("NCCL buffers"), False),
        (ValueError("Connection closed by peer"), False),
    ],
)
def test_loss_of_a_process_is_distinguished_from_other_errors(error, lost):
    assert is_lost_process(error) is lost


@pytest.mark.parametrize(
    ("num_classes", "changes", "words"),
    [
        (10, {"labels_per_step": 7}, "7 labels of a step: start as many processes as do, such as 1"),
        (5, {"labels_per_step": 64}, "5 labels"),
        (None, {"generated": 7}, "7 generated samples"),
        (None, {"positives": 7}, "7 positives"),
        (10, {"labels_per_step": 6, "generated": 7, "positives": 7}, None),
        (None, {}, None),
    ],
)
def test_what_is_shared_is_divided(num_classes, changes, words):
    schedule = Schedule(**{"steps": 1, "generated": 4, "positives": 4, "learning_rate": 1.0, **changes})
    check_shares(schedule, num_classes, ALONE)
    if words is None:
        check_shares(schedule, num_classes, Two())
    else:
        with pytest.raises(InputError, match=f"^world size is 2, which does not divide the {words}"):
            check_shares(schedule, num_classes, Two())


def test_number_that_is_named_divides_all_that_is_shared(monkeypatch):
    monkeypatch.setattr(Two, "size", 8)
    schedule = Schedule(steps=1, generated=20, positives=12, learning_rate=1.0)
    with pytest.raises(InputError, match=r"such as 4$"):
        check_shares(schedule, None, Two())


def _sources():
    samples, labels = torch.randn(30, 2, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3
    yield "memory", InMemorySource(samples, labels), torch.tensor([2, 0])
    yield "population", InMemorySource(samples), None
    yield "stream", StreamSource(lambda count, rng: torch.randn(count, 2, generator=rng), (2,)), None
    for name, classes, asked in (("bank", 3, torch.tensor([2, 0])), ("bank population", None, None)):
        bank = MemoryBank(classes, sample_shape=(2,), capacity_per_class=8, unconditional_capacity=12)
        yield name, BankSource(samples, labels if classes else None, bank, push_per_step=2, seed=0), asked


@pytest.mark.parametrize("number", range(5))
def test_every_source_gives_each_process_its_share_of_the_same(number):
    def drawn(own):
        _, source, labels = list(_sources())[number]
        rng = torch.Generator().manual_seed(1)
        results = [source.draw(labels, 4, rng, own), source.draw_unconditional(6, 3, rng, own)]
        return *results, rng.get_state()

    _, _, labels = list(_sources())[number]
    real, unconditional, state = drawn(slice(None))
    # Of two labels each gets one; of one population each gets half the samples; of unconditional sets each gets its own.
    halves = [slice(0, 1), slice(1, 2)] if labels is not None else [slice(0, 2), slice(2, 4)]
    assert torch.equal(torch.cat([drawn(own)[0] for own in halves], 0 if labels is not None else 1), real)
    assert torch.equal(torch.cat([drawn(own)[1] for own in (slice(0, 3), slice(3, 6))]), unconditional)
    assert all(torch.equal(drawn(own)[2], state) for own in halves)


def test_way_of_holding_the_weights_is_checked(tiny_digits):
    with pytest.raises(InputError, match=r"^parallel is 'all': pass ddp or fsdp$"):
        presets.adjust(tiny_digits, parallel="all")
    with pytest.raises(
        InputError, match=r"^parallel is 'fsdp', but muon needs whole matrices of weights: pass ddp, or optimizer adamw$"
    ):
        presets.adjust(tiny_digits, parallel="fsdp", optimizer="muon")
    assert presets.adjust(tiny_digits, parallel="fsdp").parallel == "fsdp"


def test_shares_of_weights_mean_nothing_to_one_process(tiny_digits, tmp_path, no_pictures):
    folder = runs.train(presets.adjust(tiny_digits, parallel="fsdp", steps=1), tmp_path / "run").folder
    assert (folder / "checkpoints" / "step-00000001" / "state.safetensors").exists()


def test_extractor_is_trained_by_one_process(monkeypatch, tmp_path):
    monkeypatch.setattr(sys.modules["drifting.runs.train"], "join", Two)
    words = "^world size is 2, but 'mnist-classifier' is trained by one process: start it without torchrun$"
    with pytest.raises(InputError, match=words):
        runs.train(presets.preset("mnist-classifier"), tmp_path / "run")


class Left(Exception):
    """What stands in for the end of a process."""


@pytest.fixture
def second_of_two(several, monkeypatch):
    """Make this the second of two processes, which ends by raising `Left`."""
    import drifting.distributed

    def leave(status):
        raise Left(status)

    monkeypatch.setattr(drifting.distributed, "join", Two)
    monkeypatch.setattr(os, "_exit", leave)


def test_commands_of_one_process_refuse_several(second_of_two, capsys):
    with pytest.raises(Left, match=r"^2$"):
        main(["evaluate", "runs/toy"])
    assert capsys.readouterr().err == (
        "drifting: world size is 2, but 'evaluate' is done by one process: start it without torchrun\n"
    )


def test_first_process_alone_prints(second_of_two, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["drifting", "train"])
    monkeypatch.setattr("drifting.cli._SHARED", ("presets",))
    with pytest.raises(Left, match=r"^0$"):
        main(["presets"])
    assert capsys.readouterr().out == ""


def test_process_lost_before_training_ends_with_a_sentence(second_of_two, capsys, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("Connection reset by peer")

    monkeypatch.setattr(runs, "train", fail)
    with pytest.raises(Left, match=r"^1$"):
        main(["train", "toy"])
    assert capsys.readouterr().err == "drifting: a process was lost: start the same command again\n"
