"""A checkpoint is compared with what the run would save before any of it is used; other files are checked as they are read."""

import dataclasses
import os
import stat

import pytest
import torch

from drifting import runs
from drifting._files import atomic_path
from drifting._json import load_json, parse_json, read_dataclass, save_json
from drifting.checkpoint import checkpoints, load_tensors, save_tensors
from drifting.data.latents import CacheIndex
from drifting.errors import MOST_CHARACTERS, InputError


@pytest.fixture(params=["adamw", "muon"])
def saved(request, tiny_toy, tmp_path, no_pictures):
    """Return a configuration, the folder of its run with one checkpoint at step 2, and the file of its state."""
    schedule = dataclasses.replace(tiny_toy.schedule, steps=2, optimizer=request.param)
    config = dataclasses.replace(tiny_toy, schedule=schedule, checkpoint_every=2, log_every=1)
    runs.train(config, tmp_path / "run")
    longer = dataclasses.replace(config, schedule=dataclasses.replace(schedule, steps=4))
    (checkpoint,) = checkpoints(tmp_path / "run" / "checkpoints")
    return longer, tmp_path / "run", checkpoint / "state.safetensors"


def _refused(config, folder) -> str:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(InputError) as caught:
        runs.train(config, folder, resume=True)
    message = str(caught.value)
    assert "checkpoint is" in message
    assert message.endswith("delete it and resume")
    assert len(message) <= MOST_CHARACTERS
    assert {path: path.read_bytes() for path in before if path.name != "config.json"} == {
        path: value for path, value in before.items() if path.name != "config.json"
    }
    return message


def test_every_entry_is_checked_for_its_name_shape_type_and_numbers(saved):
    config, folder, file = saved
    whole = load_tensors(file)
    assert any(name.endswith(("exp_avg", "momentum")) for name in whole)
    damages = {
        "missing": lambda tensors, name: tensors.pop(name),
        "unknown": lambda tensors, name: tensors.update({f"{name}x": tensors.pop(name)}),
        "shape": lambda tensors, name: tensors.update({name: tensors[name][None]}),
        "type": lambda tensors, name: tensors.update({name: tensors[name].to(torch.float16)}),
        "not finite": lambda tensors, name: tensors.update({name: tensors[name] * float("nan")}),
    }
    # Every kind of entry, not every layer.
    kinds = {"".join(part for part in name if not part.isdigit()): name for name in whole}
    for name in kinds.values():
        for damage, change in damages.items():
            if damage == "not finite" and not whole[name].is_floating_point():
                continue
            tensors = dict(whole)
            change(tensors, name)
            save_tensors(file, tensors)
            _refused(config, folder)
    save_tensors(file, whole)
    runs.train(config, folder, resume=True)


def test_counts_that_cannot_be_are_refused(saved):
    config, folder, file = saved
    whole = load_tensors(file)
    step = next(name for name in whole if name.startswith("optimizer.") and name.endswith(".step"))
    damages = {
        step: torch.tensor(3.0),
        "average.n_averaged": torch.tensor(-10),
        "means.count": torch.tensor(-1),
        "rng.state": torch.zeros(5056, dtype=torch.uint8),
    }
    for name, value in damages.items():
        save_tensors(file, {**whole, name: value})
        _refused(config, folder)
    # A stream whose next number lies beyond its block.
    state = whole["rng.state"].clone()
    state[8:12] = torch.tensor([112, 2, 0, 0], dtype=torch.uint8)
    state[16:24] = torch.tensor([112, 2, 0, 0, 0, 0, 0, 0], dtype=torch.uint8)
    save_tensors(file, {**whole, "rng.state": state})
    assert "random stream" in _refused(config, folder)


def test_folders_of_other_names_are_no_checkpoints(tmp_path):
    for name in (
        "step-00000400",
        "step-123456789",
        "step-00000400.bak",
        "step-0000500",
        "step-0123456789",
        "step-",
        "step-x",
        "step-\u0665" * 8,
    ):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000500").write_text("")
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000400", "step-123456789"]


@pytest.mark.usefixtures("no_pictures")
def test_weights_that_are_not_finite_are_not_sampled_from(tiny_toy, tmp_path):
    run = runs.train(tiny_toy, tmp_path / "run")
    weights = load_tensors(run.folder / "generator.safetensors")
    for value in (float("nan"), float("inf")):
        name = next(iter(weights))
        save_tensors(run.folder / "generator.safetensors", {**weights, name: torch.full_like(weights[name], value)})
        with pytest.raises(InputError, match=f"are not finite in '{name}'"):
            runs.load(run.folder)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("changes", [{"width": 10**12}, {"depth": 10**12}, {"noise_dim": 10**12}, {"width": 2**62}, {"width": -1}])
def test_network_of_a_configuration_is_compared_before_it_is_built(tiny_toy, tmp_path, changes):
    run = runs.train(tiny_toy, tmp_path / "run")
    values = load_json(run.folder / "config.json")
    values["generator"].update(changes)
    save_json(run.folder / "config.json", values)
    with pytest.raises(InputError, match=r"describes no network|do not fit the configuration"):
        runs.load(run.folder)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("name", ["one", "-1", "1_0", "\u0661", "01", "1.0"])
def test_samples_of_a_step_with_an_odd_name_are_refused(tiny_toy, tmp_path, name):
    run = runs.train(tiny_toy, tmp_path / "run")
    snapshots = load_tensors(run.folder / "snapshots.safetensors")
    save_tensors(run.folder / "snapshots.safetensors", {**snapshots, name: snapshots["0"].clone()})
    with pytest.raises(InputError, match="which is not a number: delete the file"):
        run.snapshots()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("NaN", "NaN is not a finite number"),
        ("[-Infinity]", "-Infinity is not a finite number"),
        ("1e999", "1e999 is not a finite number"),
        ("9" * 5000, "is too large"),
        (str(2**63), "is too large"),
        ("[" * 10**5, "nested too deeply"),
        ('{"a": 1, "a": 2}', "'a' stands twice"),
    ],
)
def test_json_that_we_do_not_write_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        parse_json(text)


INDEX = {
    **{"vae": "a", "vae_fingerprint": "b", "scale": 1, "shift": 0.0, "latent_shape": [4, 2, 2], "image_size": 16},
    **{"split": "train", "count": 3, "class_names": None, "files": "c", "shard_size": 2},
}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"count": True}, "count is True, not a whole number"),
        ({"count": 3.0}, "count is 3.0, not a whole number"),
        ({"scale": "1"}, "scale is '1', not a number"),
        ({"vae": 3}, "vae is 3, not text"),
        ({"vae": "a\0"}, "can name nothing"),
        ({"latent_shape": [4, 2]}, "latent_shape has 2 entries, not 3"),
        ({"latent_shape": [4, 2, None]}, r"latent_shape\[2\] is None, not a whole number"),
        ({"class_names": ["a", 1]}, "class_names is .* not a list or null"),
        ({"more": 1}, "more is unknown"),
    ],
)
def test_fields_have_the_types_of_their_annotations(changes, words):
    assert read_dataclass(CacheIndex, INDEX).latent_shape == (4, 2, 2)
    with pytest.raises(InputError, match=words):
        read_dataclass(CacheIndex, {**INDEX, **changes})


def test_messages_are_one_short_line():
    message = str(InputError(f"data is '/{'long/' * 100}end', which\nholds\x1b[31m {'nothing ' * 100}: name another"))
    assert len(message) <= MOST_CHARACTERS
    assert message.isprintable()
    assert "long/end'" in message
    assert message.startswith("data is '")
    assert message.endswith(": name another")
    assert str(InputError("data is 'a  b': name another")) == "data is 'a  b': name another"


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_files_have_the_permissions_of_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        save_tensors(tmp_path / "x.safetensors", {"a": torch.ones(2)})
        with atomic_path(tmp_path / "folder") as scratch:
            scratch.mkdir()
            save_tensors(scratch / "y.safetensors", {"a": torch.ones(2)})
            (scratch / "z").touch(0o600)
    finally:
        os.umask(before)
    files = [tmp_path / "x.safetensors", tmp_path / "folder" / "y.safetensors", tmp_path / "folder" / "z"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o666 & ~umask}
    assert not list(tmp_path.glob(".writing-*"))
