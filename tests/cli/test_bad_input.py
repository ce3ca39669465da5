"""Every bad input of the command line: one line on stderr that names argument, value and fix; status 2; nothing written."""

import json
import re
import shutil

import numpy as np
import pytest
import torch

from drifting import runs
from drifting.checkpoint import checkpoints
from drifting.config import VERSION
from drifting.errors import InputError
from tests.support.bad_commands import bad_commands

pytestmark = pytest.mark.usefixtures("small_presets", "no_pictures")


def _files(folder) -> dict:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} | {
        path: None for path in folder.rglob("*") if path.is_dir()
    }


@pytest.fixture
def refused(command, tmp_path, monkeypatch):
    """Check that a command is refused with these words, and leaves the folder it runs in as it was."""
    monkeypatch.chdir(tmp_path)

    def check(arguments: list | str, *words: str) -> None:
        before = _files(tmp_path)
        result = command(*(arguments.split() if isinstance(arguments, str) else arguments))
        assert result.status == 2, result
        assert re.fullmatch(r"drifting: [^\n]+\n", result.err), result.err
        assert "Traceback" not in result.err
        assert len(result.err) <= len("drifting: \n") + 300
        assert [word for word in words if word not in result.err] == []
        assert result.out == ""
        assert _files(tmp_path) == before

    return check


TRAINING = {
    "train toyy": ("preset is 'toyy'", "did you mean 'toy'?"),
    "train mnits": ("preset is 'mnits'", "There are toy, "),
    "train toy --dataset mons": ("dataset is 'mons'", "did you mean 'moons'?"),
    "train digits --dataset moons": ("dataset is 'moons'", "leave it out"),
    "train digits --data x.npy": ("data is 'x.npy'", "leave it out"),
    "train toy --temperatures 0": ("temperatures is (0.0,)", "above 0"),
    "train toy --temperatures 0.1 -2": ("temperatures is (0.1, -2.0)", "above 0"),
    "train toy --temperatures nan": ("temperatures is (nan,)", "above 0"),
    "train toy --temperatures inf": ("temperatures is (inf,)", "above 0"),
    "train toy --batch-size 1": ("batch_size", "1 generated sample", "pass at least 2"),
    "train toy --batch-size 0": ("batch_size is 0", "pass at least 1"),
    "train digits --batch-size 12": ("batch_size leaves 1", "pass at least 2 per label"),
    "train digits --batch-size 10": ("batch_size", "pass at least 2 per label"),
    "train toy --steps 0": ("steps is 0", "pass at least 1"),
    "train toy --drift-steps -5": ("steps is -5", "pass at least 1"),
    "train toy --keep 0": ("keep is 0", "pass at least 1"),
    "train toy --microbatch-size 0": ("microbatch_size is 0", "pass at least 1"),
    "train toy --learning-rate 0": ("learning_rate is 0.0", "above 0"),
    "train toy --optimizer sgd": ("optimizer is 'sgd', not adamw or muon", "did you mean"),
    "train toy --learning-rate nan": ("learning_rate is nan", "above 0"),
    "train toy --device tpu": ("device is 'tpu'", "pass cpu, cuda"),
    "train toy --device meta": ("device is 'meta'", "--device cpu"),
    "train toy --seed 99999999999999999999999": ("seed is 99999999999999999999999", "pass"),
    "train toy --data missing.npy": ("data is 'missing.npy'", "pass the path of a .npy or .csv file"),
    "train toy --data .": ("data is '.'", "pass the path of a .npy or .csv file"),
    "train toy --save-dir none --resume": ("save_dir is 'none'", "leave out --resume"),
}


@pytest.mark.parametrize("arguments", TRAINING)
def test_bad_training_argument(refused, arguments):
    refused(arguments, *TRAINING[arguments])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_device_that_is_not_there(refused):
    refused("train toy --device cuda", "device is 'cuda'", "pass --device cpu")


POINTS = {
    "empty": (np.zeros((0, 2)), "holds 0 points: pass at least 2"),
    "single": (np.zeros((1, 2)), "holds 1 points: pass at least 2"),
    "flat": (np.zeros(6), "shape (6,): pass real numbers of shape [n, 2]"),
    "three columns": (np.zeros((6, 3)), "shape (6, 3): pass real numbers of shape [n, 2]"),
    "nan": (np.array([[0, 1], [np.nan, 1]]), "NaN or infinite values: remove those points"),
    "infinite": (np.array([[0, 1], [np.inf, 1]]), "NaN or infinite values: remove those points"),
    "words": (np.array([["a", "b"], ["c", "d"]]), "pass real numbers of shape [n, 2]"),
    "one point": (np.ones((9, 2)), "pass points that differ"),
}


@pytest.mark.parametrize("kind", POINTS)
def test_bad_points(refused, tmp_path, kind):
    array, fix = POINTS[kind]
    np.save(tmp_path / "p.npy", array)
    refused("train toy --data p.npy", "data", "p.npy", fix)


def test_dataset_and_own_points_at_once(refused, tmp_path):
    np.save(tmp_path / "p.npy", np.random.default_rng(0).standard_normal((9, 2)))
    refused("train toy --dataset checker --data p.npy", "dataset is 'checker'")


def test_points_that_are_no_array(refused, tmp_path):
    (tmp_path / "p.npy").write_text("1, 2\n3, 4\n")
    refused("train toy --data p.npy", "data is 'p.npy'", "numpy.save")


@pytest.mark.parametrize("place", ["file", "file/below", "file/far/below"])
def test_folder_that_cannot_be_written(refused, tmp_path, toy_run, place):
    (tmp_path / "file").touch()
    refused(["train", "toy", "--save-dir", place], f"save_dir is '{place}'", "choose a folder you may write to")
    refused(["sample", toy_run, "--out", f"file/{place}.npy"], "out is 'file", "choose a folder you may write to")


def test_folder_that_holds_a_run(refused, toy_copy):
    refused(["train", "toy", "--save-dir", toy_copy], f"save_dir is '{toy_copy}'", "--resume", "--overwrite")


@pytest.mark.parametrize(
    "arguments",
    ["--temperatures 0.7", "--seed 4", "--learning-rate 1", "--optimizer muon", "--batch-size 16", "--dataset checker"],
)
def test_resuming_as_something_else(refused, toy_copy, arguments):
    name = arguments.split()[0].removeprefix("--").replace("-", "_").replace("batch_size", "generated")
    refused(["train", "toy", "--save-dir", toy_copy, "--resume", *arguments.split()], f"{name} is", "but the run to resume has")


def test_resuming_another_preset(refused, toy_copy):
    refused(["train", "digits", "--save-dir", toy_copy, "--resume"], "preset is 'digits'", "has toy", "another --save-dir")


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"\xff" * len(data), lambda data: b""])
@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
def test_resuming_a_damaged_checkpoint(refused, toy_copy, name, damage):
    path = checkpoints(toy_copy / "checkpoints")[-1] / name
    path.write_bytes(damage(path.read_bytes()))
    # The folder of a long path may be shortened in a sentence.
    refused(["train", "toy", "--save-dir", toy_copy, "--resume"], path.parent.name, name, "corrupted")


def test_resuming_without_checkpoints(refused, toy_copy):
    shutil.rmtree(toy_copy / "checkpoints")
    refused(["train", "toy", "--save-dir", toy_copy, "--resume"], "save_dir is", "no checkpoint to resume", "--overwrite")


def _change_config(folder, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("verb", ["sample {}", "evaluate {}", "train toy --resume --save-dir {}"])
def test_run_of_a_newer_version(refused, toy_copy, verb):
    _change_config(toy_copy, version=VERSION + 1)
    refused(verb.format(toy_copy), "config.json", f"has version {VERSION + 1}, newer than {VERSION}", "update drifting")


@pytest.mark.parametrize("verb", ["sample {}", "evaluate {}", "train toy --resume --save-dir {}"])
def test_run_with_a_damaged_configuration(refused, toy_copy, verb):
    _change_config(toy_copy, generator={"type": "Unknown"})
    refused(verb.format(toy_copy), "config.json", "damaged", "restore it or train again")
    (toy_copy / "config.json").write_text('{"version": 1, ')
    refused(verb.format(toy_copy), "config.json", "corrupted", "restore it or train again")


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"\x80\x04" + data])
def test_sampling_damaged_weights(refused, toy_copy, damage):
    path = toy_copy / "generator.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    for verb in ("sample", "evaluate"):
        refused([verb, toy_copy], "generator.safetensors", "corrupted or truncated", "delete it and resume")


@pytest.mark.parametrize("name", ["config.json", "generator.safetensors"])
def test_sampling_a_run_that_is_not_whole(refused, toy_copy, name):
    (toy_copy / name).unlink()
    refused(["sample", toy_copy], name, "does not exist")


SAMPLING = {
    "--num-samples 0": ("num_samples is 0", "at least 1"),
    "--num-samples -3": ("num_samples is -3", "at least 1"),
    "--num-samples 2147483648": ("num_samples is 2147483648", "ask for at most 2147483647"),
    "--num-samples 12946": ("num_samples is 12946, too many for a picture", "at most 12945", ".npy"),
    "--seed -1": ("seed is -1", "pass a whole number from 0 to 2147483647"),
    "--seed 2147483648": ("seed is 2147483648", "pass a whole number from 0 to 2147483647"),
    "--out s.jpg": ("out is 's.jpg'", "name a .png picture, a .npy or .npz array, or a folder for pictures"),
    "--labels 10": ("labels is [10]", "choose from 0 to 9"),
    "--labels 3 -1": ("labels is [3, -1]", "choose from 0 to 9"),
    "--guidance-scale 0.5": ("guidance_scale is 0.5", "pass a number from 1"),
    "--guidance-scale nan": ("guidance_scale is nan", "pass a number from 1"),
    "--guidance-scale 1.5": ("guidance_scale is 1.5", "trained at guidance scale 1 alone", "leave it out"),
}


@pytest.mark.parametrize("arguments", SAMPLING)
def test_bad_sampling_argument(refused, digits_run, arguments):
    refused(["sample", digits_run, *arguments.split()], *SAMPLING[arguments])


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_bad_seed_of_an_evaluation(refused, toy_run, digits_run, images_run, seed):
    sentence = f"seed is {seed}: pass a whole number from 0 to 2147483647"
    for folder in (toy_run, digits_run, images_run):
        refused(["evaluate", folder, "--seed", seed], sentence)
        with pytest.raises(InputError, match=sentence):
            runs.load(folder).evaluate(seed=seed)
        with pytest.raises(InputError, match=sentence):
            runs.load(folder).sample(4, seed=seed)


def test_too_many_points(refused, toy_run):
    refused(
        ["sample", toy_run, "--num-samples", 100_001],
        "num_samples is 100001",
        "at most 100000, or name a .npy file or a folder",
    )
    refused(["sample", toy_run, "--num-samples", 10**30, "--out", "s.npy"], f"num_samples is {10**30}", "ask for at most")
    refused(["evaluate", toy_run, "--num-samples", 100_001], "num_samples is 100001", "at most 100000")
    with pytest.raises(InputError, match=r"num_samples is 2000000000, which need.* GiB of memory.*ask for fewer"):
        runs.load(toy_run).sample(2_000_000_000)


def test_bad_seed_is_reported_before_a_download(refused):
    refused(["sample", "hub:latent_B_sota", "--seed", -1], "seed is -1")


def test_labels_for_a_run_without_labels(refused, toy_run):
    refused(["sample", toy_run, "--labels", 1], "labels is [1]", "leave them out")


def test_sampling_into_a_file_that_exists(refused, toy_run, tmp_path):
    (tmp_path / "s.npy").write_text("mine")
    refused(["sample", toy_run, "--out", "s.npy"], "out is 's.npy'", "--overwrite")


@pytest.mark.parametrize("verb", ["sample", "evaluate"])
def test_run_that_is_no_folder(refused, verb, tmp_path):
    (tmp_path / "file").touch()
    for name in ("nowhere", "file"):
        refused([verb, name], f"run is '{name}'", "--save-dir of a training")
    (tmp_path / "empty").mkdir()
    refused([verb, "empty"], "empty/config.json", "does not exist")


@pytest.mark.parametrize("arguments", ["", "fly", "train", "train toy --color red", "train toy --steps many", "sample"])
def test_misspelled_command_exits_2(command, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    assert command(*arguments.split()).status == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", bad_commands(60), ids=" ".join)
def test_command_lines_that_cannot_work(refused, digits_run, gray_folder, tmp_path, words):
    (tmp_path / "taken").write_text("mine")
    places = {"RUN": str(digits_run), "IMAGES": str(gray_folder)}
    before = _files(digits_run)
    refused([places.get(word, word.replace("FILE", "taken")) for word in words])
    assert _files(digits_run) == before
