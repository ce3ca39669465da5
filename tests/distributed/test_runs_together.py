"""Whole runs of two processes: who writes, how they fail, and how they are gone on with by one process and by two again."""

import dataclasses
import json

import pytest
import torch

from drifting import presets
from drifting.checkpoint import checkpoints, load_checkpoint, load_tensors
from tests.distributed.whole_runs import error_of, failing_first, said, small_run, state_after, train
from tests.support.small_runs import shrunk

pytestmark = [pytest.mark.distributed, pytest.mark.usefixtures("no_pictures")]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Six steps of one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("drifting.runs.pictures.draw_pictures", lambda config, folder, **_: [])
        return train(small_run(), folder), folder


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_run_goes_on_from_two_processes_to_one_and_to_two_again(pair, alone, tmp_path, parallel):
    expected, folder = alone
    pair(train, small_run(parallel, steps=2), tmp_path / "run")
    shards = list((tmp_path / "run" / "checkpoints" / "step-00000002").glob("shard-*.safetensors"))
    assert len(shards) == (2 if parallel == "fsdp" else 0)
    train(small_run(parallel, steps=4), tmp_path / "run", resume=True)
    *_, last = pair(train, small_run(parallel, steps=6), tmp_path / "run", True)
    for name, value in expected["weights"].items():
        torch.testing.assert_close(last["weights"][name], value, rtol=1e-4, atol=1e-5)
    found, last = lines(tmp_path / "run")[-1], lines(folder)[-1]
    assert found["step"] == last["step"] == 6
    for name in [name for name in last if name == "loss" or name.startswith(("drift_norm", "energy"))]:
        assert found[name] == pytest.approx(last[name], rel=1e-4)


def test_a_copied_run_goes_on_in_shares_and_back_with_nothing_lost(pair, alone, tmp_path, assert_same_tensors):
    _, folder = alone
    saved, _ = load_checkpoint(checkpoints(folder / "checkpoints")[-1])
    own = {name: value for name, value in saved.items() if not name.startswith(("means.", "positives."))}
    for state in pair(state_after, small_run("fsdp"), folder):
        assert_same_tensors(state, own)
    pair(train, small_run("fsdp"), tmp_path / "run")
    sharded = tmp_path / "run" / "checkpoints" / "step-00000006"
    state = state_after(small_run(), tmp_path / "run")
    loaded = load_checkpoint(sharded)[0]
    assert_same_tensors(state, {name: loaded[name] for name in state})
    for found in pair(state_after, small_run("fsdp"), tmp_path / "run"):
        assert_same_tensors(found, state)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_generator_is_built_once_and_left_whole(pair, tmp_path, parallel):
    results = pair(train, small_run(parallel, steps=1), tmp_path / "run")
    saved = load_tensors(tmp_path / "run" / "generator.safetensors")
    for result in results:
        assert (result["built"], result["device"]) == (1, "cpu")
        assert result["weights"].keys() == saved.keys()
        assert all(torch.equal(weight, saved[name]) for name, weight in result["weights"].items())


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_first_process_alone_writes(pair, tmp_path, parallel):
    first, second = pair(train, small_run(parallel, steps=2), tmp_path / "run")
    assert any("metrics.jsonl" in line for line in first["written"])
    shards = [line for line in second["written"] if line.startswith("open") and "/.shards-00000002/shard-00002-" in line]
    assert len(shards) == (parallel == "fsdp")
    # The folder of the shards is there already when the second process asks for it.
    assert set(second["written"]) - set(shards) <= {f"os.mkdir {tmp_path}/run/checkpoints/.shards-00000002"}
    assert shards or not second["written"]
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


def test_encoder_is_trained_by_the_first_process_for_all(pair, gray_folder, tmp_path):
    config = shrunk(presets.preset("mnist-encoder", data=str(gray_folder)))
    config = dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, labels_per_step=2))
    first, second = pair(train, config, tmp_path / "run")
    assert any("encoder.safetensors" in line for line in first["written"])
    assert second["written"] == []
    expected = train(config, tmp_path / "alone")
    for found in (first, second):
        for name, value in expected["weights"].items():
            torch.testing.assert_close(found["weights"][name], value, rtol=1e-3, atol=1e-4)


def test_what_a_killed_run_left_of_shards_is_cleared_away(pair, tmp_path):
    pair(train, small_run("fsdp", steps=2), tmp_path / "run")
    left = tmp_path / "run" / "checkpoints" / ".shards-00000003"
    left.mkdir()
    (left / "shard-00001-model-00001-of-00001.safetensors").write_text("half")
    pair(train, small_run("fsdp", steps=4), tmp_path / "run", True)
    assert {path.name for path in left.parent.iterdir()} == {"step-00000002", "step-00000004"}


def test_damaged_shards_are_refused(pair, tmp_path):
    pair(train, small_run("fsdp", steps=2), tmp_path / "run")
    shard = next((tmp_path / "run" / "checkpoints" / "step-00000002").glob("shard-00002-*"))
    shard.write_bytes(shard.read_bytes()[:-100])
    for kind, words in pair(error_of_resume, tmp_path / "run"):
        assert kind == "InputError"
        assert "which is corrupted or truncated" in words


def error_of_resume(folder):
    try:
        train(small_run("fsdp", steps=4), folder, resume=True)
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


def test_number_of_processes_divides_what_is_shared(pair, tmp_path):
    config = small_run()
    few = dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, labels_per_step=5))
    for kind, words in pair(error_of, few, tmp_path / "run"):
        assert kind == "InputError"
        assert words == ("world size is 2, which does not divide the 5 labels of a step: start as many processes as do, such as 1")
    assert not (tmp_path / "run").exists()


def test_bad_input_of_the_first_process_is_that_of_all(pair, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    errors = pair(error_of, small_run(), tmp_path / "run")
    assert errors[0] == errors[1]
    assert errors[0][0] == "InputError"
    assert "already holds a run" in errors[0][1]


def test_failure_of_the_first_process_is_known_to_all(pair, tmp_path):
    first, second = pair(failing_first, tmp_path)
    assert first == ("ValueError", "broken")
    assert second == ("LostProcessError", "process 0 of this run failed: see its message")


def test_one_process_alone_says_what_all_have_to_say(pair):
    (before, *first, after), (before_too, *second, after_too) = pair(said)
    assert [one + two for one, two in zip(first, second, strict=True)] == [1, 1]
    assert (before, before_too, after, after_too) == (False, False, True, True)
