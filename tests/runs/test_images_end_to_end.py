"""The command line on tiny folders of images: train, sample, extractor and evaluate."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from drifting import runs
from drifting.checkpoint import load_tensors
from tests.support.image_folders import write_images

pytestmark = pytest.mark.usefixtures("small_presets")
no_pictures = pytest.mark.usefixtures("no_pictures")


def _config(folder) -> dict:
    return json.loads((folder / "config.json").read_text())


def test_finished_run_of_images_holds_the_promised_files(images_run):
    files = {"config.json", "metrics.jsonl", "encoder.safetensors", "generator.safetensors", "snapshots.safetensors", "checkpoints"}
    pictures = {"samples.png", "progress.png", "losses.png", "training.gif", "comparison.png", "ae_reconstruction.png"}
    assert {path.name for path in images_run.iterdir()} == files | pictures | {"report.html", "environment.jsonl"}


@pytest.mark.painted
def test_pictures_are_named_and_can_be_opened(here, command, gray_folder):
    result = command("train", "images", "--data", gray_folder, "--save-dir", "x")
    assert (result.status, result.err) == (0, "")
    lines = result.out.splitlines()
    encoder = next(line for line in lines if line.startswith("step 20/20"))
    generator, *pictures, report = lines[next(index for index, line in enumerate(lines) if line.startswith("step 6/6")) :]
    assert re.match(r"step 20/20 .*samples/s.*loss of the encoder", encoder)
    assert re.match(r"step 6/6 .*steps/s.*raw drift norm", generator)
    names = ["samples", "progress", "losses", "training", "comparison", "ae_reconstruction"]
    assert [name.split("/")[1].split(".")[0] for name in pictures] == names
    assert Path(report) == Path("x/report.html")
    assert Path(report).read_text().startswith("<!doctype html>")
    for name in pictures:
        with Image.open(name) as picture:
            picture.verify()


@no_pictures
@pytest.mark.parametrize(("size", "channels"), [(8, 3), (12, 1), (12, 3)])
def test_images_of_any_size_and_color_are_made_by_class(here, command, size, channels):
    write_images(here / "photos", {"cat": 12, "dog": 12}, size=size, channels=channels)
    assert command("train", "images", "--data", "photos").status == 0
    assert _config(here / "runs" / "photos")["data"]["image_shape"] == [channels, size, size]
    arguments = ("--num-samples", 5, "--labels", 1, 0)
    assert command("sample", "runs/photos", *arguments, "--out", "s.npy").status == 0
    images = np.load("s.npy")
    assert (images.shape, images.dtype) == ((5, size, size, channels), np.uint8)
    assert np.array_equal(images, runs.load("runs/photos").sample(5, labels=[1, 0]).numpy())
    assert command("sample", "runs/photos", *arguments).status == 0
    with Image.open("samples.png") as picture:
        assert picture.mode == ("RGB" if channels == 3 else "L")


@no_pictures
def test_images_without_classes_are_one_population(here, command):
    write_images(here / "loose", {".": 24})
    assert command("train", "images", "--data", "loose", "--unconditional").status == 0
    config = _config(here / "runs" / "loose")
    assert (config["data"]["conditional"], config["data"]["num_classes"], config["schedule"]["labels_per_step"]) == (False, None, 1)
    assert command("sample", "runs/loose", "--num-samples", 3, "--out", "s.npy").status == 0
    assert np.load("s.npy").shape == (3, 8, 8, 1)
    result = command("evaluate", "runs/loose", "--extractor", "pixels", "--num-samples", 20)
    assert result.status == 0
    assert "20 images against 2 are too few for precision, recall, density and coverage, which are left out" in result.err


@no_pictures
def test_labels_can_be_left_out(here, command, gray_folder):
    assert command("train", "images", "--data", gray_folder, "--unconditional", "--save-dir", "x").status == 0
    assert runs.load("x").generator.num_classes is None
    assert command("evaluate", "x", "--extractor", "pixels").status == 0
    assert "accuracy" not in json.loads((here / "x" / "metrics.json").read_text())


@no_pictures
def test_mixed_images_are_cropped_resized_and_converted_when_asked(here, command):
    write_images(here / "mixed", {"a": 12, "b": 12}, size=12, channels=3)
    Image.new("RGB", (40, 20), (200, 10, 10)).save(here / "mixed" / "a" / "wide.png")
    arguments = ("train", "images", "--data", "mixed", "--image-size", 8, "--channels", 1, "--save-dir", "x")
    assert command(*arguments).status == 0
    assert runs.load("x").sample(2).shape == (2, 8, 8, 1)
    assert command("evaluate", "x", "--extractor", "pixels").status == 0
    assert "precision" not in json.loads((here / "x" / "metrics.json").read_text())  # two images are held out
    assert command(*arguments[:7], "--image-size", 12, "--save-dir", "x", "--resume").status == 2


@no_pictures
def test_resumed_images_go_on(here, command, gray_folder, assert_same_tensors):
    train = ("train", "images", "--data", gray_folder)
    assert command(*train, "--save-dir", "whole").status == 0
    assert command(*train, "--save-dir", "halves", "--steps", 4).status == 0
    assert command("train", "images", "--save-dir", "halves", "--resume", "--steps", 6).status == 0
    assert_same_tensors(*(load_tensors(here / name / "generator.safetensors") for name in ("whole", "halves")))


@no_pictures
def test_images_in_their_pixels_need_no_encoder(here, command, gray_folder):
    assert command("train", "mnist-pixel", "--data", gray_folder, "--save-dir", "x").status == 0
    assert not (here / "x" / "encoder.safetensors").exists()
    lines = [json.loads(line) for line in (here / "x" / "metrics.jsonl").read_text().splitlines()]
    assert any(name.startswith("drift_norm/sample/") for name in lines[0])


@no_pictures
def test_features_of_the_encoder_are_those_that_are_logged(here, command, gray_folder):
    assert command("train", "mnist-encoder", "--data", gray_folder, "--save-dir", "x").status == 0
    lines = [json.loads(line) for line in (here / "x" / "metrics.jsonl").read_text().splitlines()]
    logged = {name.split("/")[1] for name in lines[0] if name.startswith("drift_norm/")}
    assert logged == set(_config(here / "x")["encoder"]["features"])


def test_extractor_is_trained_and_extractors(here, command, images_run, gray_folder):
    run = shutil.copytree(images_run, here / "run")
    trained = command("train", "mnist-classifier", "--data", gray_folder, "--save-dir", "extractor")
    assert trained.status == 0
    *progress, accuracy, path = trained.out.splitlines()
    assert re.match(r"step 60/60 .*loss of the classifier", progress[-1])
    assert (accuracy, path) == ("test accuracy 1.0000", "extractor/classifier.safetensors")
    result = command("evaluate", run, "--extractor", "extractor", "--num-samples", 60)
    metrics = json.loads((run / "metrics.json").read_text())
    assert result.status == 0
    assert metrics["num_samples"] == 60
    assert metrics["accuracy_floor"] == 1
    assert all(name in result.out for name in metrics if not name.endswith("_floor"))
    singular, floor = result.err.splitlines()
    assert singular.startswith("drifting: 9 samples of 128 features have a singular covariance, ")
    assert floor.startswith(f"drifting: the floor is of {metrics['num_samples_floor']} real images and so too large for 60 samples")
    assert metrics["num_samples_floor"] == 15
    # Statistics of the test images and of those of the floor.
    assert len(list((here / "extractor").glob("classifier-*.safetensors"))) == 2
    again = command("evaluate", run, "--extractor", "extractor", "--num-samples", 60)
    figures, known = ([line for line in each.out.splitlines() if "images/s" not in line] for each in (result, again))
    assert figures == known
    # The real images are not looked at again.
    assert "training images 15/15" in result.out
    assert "training images" not in again.out


def test_pixels_extractor(here, command, images_run):
    run = shutil.copytree(images_run, here / "run")
    first = command("evaluate", run, "--extractor", "pixels")
    figures = json.loads((run / "metrics.json").read_text())
    assert first.status == 0
    assert {"frechet_distance", "recall", "copy_share"} <= figures.keys()
    assert "accuracy" not in figures
    assert command("evaluate", run, "--extractor", "pixels", "--seed", 3).status == 0
    assert json.loads((run / "metrics.json").read_text())["frechet_distance"] != figures["frechet_distance"]


@pytest.mark.parametrize("place", [".", "photos/."])
def test_run_folder_is_named_after_the_folder_and_never_after_dots(here, command, monkeypatch, place):
    write_images(here / "photos", {"a": 12, "b": 12})
    if place == ".":
        monkeypatch.chdir(here / "photos")
    monkeypatch.setattr(runs, "train", lambda config, folder, **_: pytest.fail(str(folder)))
    with pytest.raises(pytest.fail.Exception, match=r"^runs/photos$"):
        command("train", "images", "--data", place)


@pytest.mark.painted
@pytest.mark.parametrize("classes", [pytest.param(30, marks=pytest.mark.slow), 70])
def test_more_classes_than_a_picture_has_rows_or_a_snapshot_has_samples(here, command, classes):
    write_images(here / "many", {f"{index:02d}": 1 for index in range(3)})
    for index in range(classes):
        (here / "many" / f"{index:02d}").mkdir(exist_ok=True)
        for copy in ("000", "001"):
            Image.fromarray(np.full((8, 8), index, np.uint8)).save(here / "many" / f"{index:02d}" / f"{copy}.png")
    assert command("train", "images", "--data", "many", "--save-dir", "x").status == 0
    assert runs.load("x").generator.num_classes == classes
    assert (here / "x" / "comparison.png").exists()


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif("DRIFTING_DATA" not in os.environ, reason="needs the folder that $DRIFTING_DATA names")
@no_pictures
def test_mnist_is_found_and_a_few_steps_run(here, command):
    assert command("train", "mnist-pixel", "--steps", 2).status == 0
    assert _config(here / "runs" / "mnist-pixel")["data"]["num_classes"] == 10
    samples = runs.load("runs/mnist-pixel").sample(4)
    assert samples.shape == (4, 28, 28, 1)
    assert samples.dtype == torch.uint8
