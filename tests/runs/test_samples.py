"""Samples as files: an .npz file in the form of ADM, and a folder of pictures, written while they are made."""

import errno
import json

import numpy as np
import pytest
import torch
from PIL import Image

from drifting import runs
from drifting.data.images import load_images
from drifting.errors import InputError
from drifting.runs.samples import is_folder


@pytest.fixture(autouse=True)
def small_batches(monkeypatch) -> None:
    monkeypatch.setattr("drifting.sampling.batch_of", lambda shape: 5)


def test_npz_is_in_the_form_of_adm(here, command, digits_run):
    assert command("sample", digits_run, "--num-samples", 13, "--labels", 7, 2, "--out", "s.npz").out == "s.npz\n"
    with np.load("s.npz") as file:
        assert file.files == ["arr_0", "arr_1"]
        images, labels = file["arr_0"], file["arr_1"]
    assert (images.dtype, images.shape, labels.dtype) == (np.uint8, (13, 8, 8, 1), np.int64)
    assert labels.tolist() == ([7, 2] * 7)[:13]
    assert np.array_equal(images, runs.load(digits_run).sample(13, labels=[7, 2]).numpy())


def test_points_are_an_array_without_labels(here, toy_run):
    run = runs.load(toy_run)
    runs.write_samples(run, "s.npz", 12)
    with np.load("s.npz") as file:
        assert file.files == ["arr_0"]
        assert np.array_equal(file["arr_0"], run.sample(12).numpy())


def test_folder_holds_a_picture_of_every_sample_and_their_labels(here, command, digits_run):
    assert command("sample", digits_run, "--num-samples", 12, "--out", "new/pictures/").out == "new/pictures/\n"
    folder, expected = here / "new" / "pictures", runs.load(digits_run).sample(12).numpy()
    names = sorted(path.name for path in folder.glob("*.png"))
    assert names == [f"{index:06d}.png" for index in range(12)]
    assert {path.name for path in folder.iterdir()} == {*names, "dataset.json"}
    for name, pixels in zip(names, expected, strict=True):
        with Image.open(folder / name) as picture:
            assert np.array_equal(np.asarray(picture), pixels[..., 0])
    assert json.loads((folder / "dataset.json").read_text())["labels"] == [[name, index % 10] for index, name in enumerate(names)]


@pytest.mark.parametrize("out", ["pictures", "s.npz"])
def test_samples_are_read_as_a_data_set(here, digits_run, out):
    run = runs.load(digits_run)
    runs.write_samples(run, out, 40)
    read = load_images(here / out, split="train")
    if read.labels is not None and len(read) < 40:  # a tenth of each class is held out
        held = load_images(here / out, split="test")
        read = type(read)(torch.cat([read.images, held.images]), torch.cat([read.labels, held.labels]), read.class_names)
    expected = run.sample(40).movedim(-1, 1)
    pairs = sorted((int(label), image.tolist()) for label, image in zip(read.labels, read.images, strict=True))
    assert pairs == sorted((index % 10, image.tolist()) for index, image in enumerate(expected))


def test_folder_is_replaced_only_on_request_and_holds_nothing_else(here, digits_run):
    run = runs.load(digits_run)
    (here / "pictures").mkdir()
    runs.write_samples(run, "pictures", 12)
    with pytest.raises(InputError, match="out is 'pictures', a folder that holds pictures: pass --overwrite"):
        runs.write_samples(run, "pictures", 3)
    runs.write_samples(run, "pictures", 3, overwrite=True)
    assert len(list((here / "pictures").glob("*.png"))) == 3
    (here / "pictures" / "holiday.png").touch()
    with pytest.raises(InputError, match=r"holds other files, such as 'holiday\.png'"):
        runs.write_samples(run, "pictures", 3, overwrite=True)
    (here / "file").touch()
    with pytest.raises(InputError, match="out is 'file', a file"):
        runs.write_samples(run, "file", 3, overwrite=True)


def test_points_are_no_pictures(here, toy_run):
    with pytest.raises(InputError, match=r"samples \(2,\) are none: name a \.npy or \.npz file"):
        runs.write_samples(runs.load(toy_run), "pictures", 3)
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("out", ["s.npz", "pictures"])
def test_what_is_written_in_part_leaves_nothing(here, command, digits_run, monkeypatch, out):
    def parts(*_, **__):
        yield torch.zeros(5, 8, 8, 1, dtype=torch.uint8)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runs.Run, "parts", parts)
    result = command("sample", digits_run, "--num-samples", 13, "--out", out)
    assert (result.status, result.err.count("\n")) == (1, 1)
    assert list(here.iterdir()) == []


def test_names_of_folders(tmp_path):
    (tmp_path / "a.b").mkdir()
    found = [is_folder(name) for name in ("x/", "x.y/", "x", tmp_path / "a.b", "x.png", "x.npz", "x.jpg")]
    assert found == [True, True, True, True, False, False, False]
