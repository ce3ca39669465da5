"""Bad input around images, encoders and extractors: one line that names argument, value and fix; status 2; nothing written."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from drifting.checkpoint import load_tensors, save_tensors
from drifting.data import ImagesData, forget_data
from tests.cli.test_bad_input import refused
from tests.support.image_folders import write_images

__all__ = ["refused"]
pytestmark = pytest.mark.usefixtures("small_presets", "no_pictures")

GRAY = "train images --data {gray} "
TRAINING = {
    "train images": ("data is missing", "pass --data FOLDER"),
    "train images --unconditional": ("data is missing", "pass --data FOLDER"),
    "train images --data nowhere": ("data is 'nowhere'", "which does not exist", "pass a folder"),
    "train images --data https://a.org/b.zip": ("data is 'https://a.org/b.zip', an address: download it, and pass its path",),
    "train toy --data https://a.org/b.zip": ("data is 'https://a.org/b.zip', an address: download it, and pass its path",),
    "latents --out x --data https://a.org/b.zip": ("data is 'https://a.org/b.zip', an address: download it, and pass its path",),
    "train mnist-pixel --data nowhere": ("data is 'nowhere'", "which does not exist"),
    "train mnist-classifier --data nowhere": ("data is 'nowhere'", "which does not exist"),
    "train mnist-pixel --image-size 8": ("image_size is 8,", "leave it out"),
    "train mnist-classifier --unconditional": ("unconditional is True,", "leave it out"),
    "train toy --unconditional": ("unconditional is True,", "leave it out"),
    "train digits --channels 1": ("channels is 1,", "leave it out"),
    "train images --data x --dataset moons": ("dataset is 'moons'", "leave it out"),
    "train mnist-classifier --temperatures 0.1": ("temperatures is 0.1,", "'mnist-classifier'", "leave it out"),
    "train mnist-classifier --keep 3": ("keep is 3", "'mnist-classifier'", "leave it out"),
    "train mnist-classifier --learning-rate 0": ("learning_rate is 0.0", "above 0"),
    "train mnist-classifier --learning-rate nan": ("learning_rate is nan", "above 0"),
    "train mnist-classifier --batch-size 1": ("batch_size is 1", "pass at least 2"),
    "train mnist-classifier --steps 0": ("steps is 0", "pass at least 1"),
    "train mnist-classifier --save-dir none --resume": ("save_dir is 'none'", "leave out --resume"),
    GRAY + "--image-size 0": ("image_size is 0", "pass 1 or more"),
    GRAY + "--image-size -8": ("image_size is -8", "pass 1 or more"),
    GRAY + "--channels 2": ("channels is 2", "pass 1 or 3"),
    GRAY + "--channels 0": ("channels is 0", "pass 1 or 3"),
    GRAY + "--image-size 10": ("image_shape is (1, 10, 10)", "side divisible by 4"),
    GRAY + "--device tpu": ("device is 'tpu'", "pass cpu, cuda"),
    GRAY + "--batch-size 2": ("batch_size is 2", "pass at least 3"),
}


@pytest.mark.parametrize("arguments", TRAINING)
def test_bad_training_argument(refused, gray_folder, arguments):
    refused(arguments.format(gray=gray_folder), *TRAINING[arguments])


def test_overwriting_is_refused_before_the_old_run_is_gone(refused, gray_folder, images_run, tmp_path):
    shutil.copytree(images_run, tmp_path / "x")
    refused(f"train images --data {gray_folder} --image-size 10 --save-dir x --overwrite", "side divisible by 4")
    small = write_images(tmp_path / "small", {"a": 20}, size=4)
    refused(f"train mnist-classifier --data {small} --save-dir x --overwrite", "image_shape is (1, 4, 4)", "at least 8 x 8")


@pytest.mark.parametrize("preset", ["images", "mnist-encoder", "mnist-pixel", "mnist-classifier"])
def test_unlabeled_images_where_classes_are_asked_for(refused, tmp_path, preset):
    write_images(tmp_path / "loose", {".": 20})
    refused(f"train {preset} --data loose", "loose', which has no labels", "without labels")


@pytest.mark.parametrize("arguments", ["images --unconditional", "mnist-encoder --unconditional"])
def test_too_few_images_to_hold_some_out_for_the_encoder(refused, tmp_path, arguments):
    write_images(tmp_path / "few", {".": 5})
    refused(f"train {arguments} --data few", "5 images are too few", "add a folder test/")


def test_too_few_images_to_hold_some_out_for_the_extractor(refused, tmp_path):
    write_images(tmp_path / "few", {"a": 2, "b": 2})
    refused("train mnist-classifier --data few", "4 images are too few", "add a folder test/")


def test_images_of_mixed_sizes(refused, tmp_path):
    write_images(tmp_path / "mixed", {"a": 12, "b": 12})
    Image.new("L", (12, 12)).save(tmp_path / "mixed" / "b" / "large.png")
    refused("train images --data mixed", "large.png' of 12 x 12 pixels among images of 8 x 8", "pass --image-size")
    refused("train mnist-classifier --data mixed", "large.png' of 12 x 12 pixels among images of 8 x 8")


def test_oblong_images(refused, tmp_path):
    (tmp_path / "wide" / "a").mkdir(parents=True)
    for index in range(12):
        Image.new("L", (12, 8)).save(tmp_path / "wide" / "a" / f"{index}.png")
    refused("train images --data wide", "of 12 x 8 pixels, which is not a square", "pass --image-size")


def test_class_without_images(refused, tmp_path):
    write_images(tmp_path / "gap", {"a": 12, "b": 12})
    (tmp_path / "gap" / "c").mkdir()
    refused("train images --data gap", "gap'", "class 2 ('c') has no images", "add some")


@pytest.mark.parametrize("preset", ["images", "mnist-classifier"])
def test_class_without_images_in_a_parquet_file(refused, tmp_path, preset):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder = write_images(tmp_path / "made", {"a": 6, "b": 6})
    images = [{"bytes": path.read_bytes(), "path": None} for path in sorted(folder.rglob("*.png"))]
    (tmp_path / "table").mkdir()
    for split in ("train", "test"):
        pq.write_table(pa.table({"image": images, "label": [0] * 6 + [2] * 6}), tmp_path / "table" / f"{split}-0.parquet")
    refused(f"train {preset} --data table", "table", "class 1 has no images", "number the other classes")


def test_empty_folder_damaged_image_and_no_images(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    refused("train images --data empty", "empty', which is an empty folder")
    write_images(tmp_path / "bad", {"a": 12})
    (tmp_path / "bad" / "a" / "003.png").write_bytes(b"no image")
    refused("train images --data bad", "003.png", "truncated or corrupted")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "notes.txt").write_text("hello")
    refused("train images --data text", "whose layout is unknown")


def test_encoder_of_another_size_on_resume(refused, images_run, tmp_path):
    copy = shutil.copytree(images_run, tmp_path / "x")
    weights = load_tensors(copy / "encoder.safetensors")
    save_tensors(copy / "encoder.safetensors", {**weights, "to_code.weight": weights["to_code.weight"][:3]})
    refused("train images --save-dir x --resume --steps 8", "encoder.safetensors' do not fit", "to_code.weight is (3, ")
    (copy / "encoder.safetensors").write_bytes(b"broken")
    refused("train images --save-dir x --resume --steps 8", "encoder.safetensors", "corrupted")


@pytest.mark.parametrize("change", ["--unconditional", "--channels 3", "--image-size 8", "--data elsewhere"])
def test_resuming_other_images(refused, images_run, tmp_path, change):
    shutil.copytree(images_run, tmp_path / "x")
    name = change.split()[0].removeprefix("--").replace("-", "_")
    refused(f"train images --save-dir x --resume {change}", f"{name} is", "but the run to resume has", "leave it out")


def test_resuming_a_classifier(refused, extractor_folder, gray_folder, tmp_path):
    shutil.copytree(extractor_folder, tmp_path / "x")
    refused("train mnist-classifier --save-dir x --resume --steps 61", "steps is 61", "the run to resume has 60")
    refused("train toy --save-dir x --resume", "preset is 'toy'", "has mnist-classifier", "another --save-dir")
    refused(f"train mnist-classifier --data {gray_folder} --save-dir x", "save_dir is 'x'", "already holds a run", "--overwrite")


@pytest.mark.parametrize("verb", ["sample", "evaluate"])
def test_classifier_in_place_of_a_generator(refused, extractor_folder, verb):
    refused(
        [verb, extractor_folder], f"run is '{extractor_folder}'", "a classifier, not a generator", "name the folder of a generator"
    )


def test_extractor_that_is_not_there(refused, images_run):
    refused(["evaluate", images_run], "extractor is 'runs/images-classifier'", "no trained classifier", "--extractor pixels")
    refused(["evaluate", images_run, "--extractor", "x"], "extractor is 'x'", "no trained classifier", "--extractor pixels")
    refused(
        ["evaluate", images_run, "--extractor", "x.pt"],
        "extractor is 'x.pt'",
        "which is not a file: download https",
        "--extractor pixels",
    )


def test_extractor_of_mnist_that_is_not_there_names_its_command(refused, images_run, tmp_path, monkeypatch):
    copy = shutil.copytree(images_run, tmp_path / "x")
    config = json.loads((copy / "config.json").read_text())
    config["data"] |= {"name": "mnist", "path": None}
    (copy / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(ImagesData, "load", lambda *arguments: None)
    refused("evaluate x", "run drifting train mnist-classifier --save-dir runs/mnist-classifier, or pass --extractor pixels")


def test_extractor_of_other_images(refused, extractor_folder, tmp_path, images_run):
    copy = shutil.copytree(extractor_folder, tmp_path / "extractor")
    config = json.loads((copy / "config.json").read_text())
    config["data"]["image_shape"] = [3, 8, 8]
    (copy / "config.json").write_text(json.dumps(config))
    refused(
        ["evaluate", images_run, "--extractor", "extractor"],
        "takes (3, 8, 8), but the run makes (1, 8, 8)",
        "name another extractor",
    )


def test_extractor_for_a_run_without_images(refused, toy_run, digits_run):
    for run in (toy_run, digits_run):
        refused(["evaluate", run, "--extractor", "pixels"], "extractor is 'pixels'", "makes no images", "leave it out")


@pytest.mark.parametrize("count", [0, -1])
def test_bad_number_of_images(refused, images_run, count):
    refused(["evaluate", images_run, "--extractor", "pixels", "--num-samples", count], f"num_samples is {count}", "at least 1")


@pytest.mark.parametrize("labels", ["3", "0 -1"])
def test_labels_that_are_not_there(refused, images_run, labels):
    refused(["sample", images_run, "--labels", *labels.split()], f"labels is {[int(label) for label in labels.split()]}", "0 to 2")


def test_labels_for_images_without_labels(refused, command, tmp_path):
    write_images(tmp_path / "loose", {".": 20})
    assert (
        command("train", "mnist-pixel", "--data", tmp_path / "loose", "--unconditional", "--save-dir", tmp_path / "x").status == 0
    )
    refused("sample x --labels 1", "labels is [1]", "leave them out")


def test_data_that_are_gone(refused, command, tmp_path):
    folder = write_images(tmp_path / "own", {"a": 12, "b": 12})
    assert command("train", "images", "--data", folder, "--save-dir", tmp_path / "x").status == 0
    shutil.move(folder, tmp_path / "moved")
    forget_data()
    refused("evaluate x --extractor pixels", f"data is '{folder}'", "which does not exist")
    refused("train images --save-dir x --resume --steps 8", f"data is '{folder}'", "which does not exist")
    assert command("sample", tmp_path / "x", "--out", tmp_path / "s.npy").status == 0
    assert np.load(tmp_path / "s.npy").shape == (64, 8, 8, 1)
