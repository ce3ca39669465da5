"""A run that is resumed, or evaluated, on data that have changed since it began: refused in a sentence that says what changed."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from drifting import presets, runs
from drifting.errors import InputError
from tests.cli.test_bad_input import refused
from tests.support.image_folders import write_images
from tests.support.small_runs import shrunk, without_pictures

__all__ = ["refused"]
pytestmark = pytest.mark.usefixtures("small_presets", "no_pictures")
RESUME = "train images --save-dir run --resume --steps 8"


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A folder with images in "own", and a run on them in "run"."""
    folder = tmp_path_factory.mktemp("begun")
    write_images(folder / "own", {"ant": 12, "bee": 12})
    with without_pictures():
        runs.train(shrunk(presets.preset("images", data=str(folder / "own"))), folder / "run")
    return folder


@pytest.fixture
def own(tmp_path, begun):
    """The folder of the images, made anew, of the run that is copied to "run"."""
    shutil.rmtree(begun / "own")
    shutil.copytree(begun / "run", tmp_path / "run")
    return write_images(begun / "own", {"ant": 12, "bee": 12})


def rename(folder):
    (folder / "bee").rename(folder / "aaa")


def add_class(folder):
    write_images(folder, {"cat": 3})


def add_images(folder):
    write_images(folder, {"bee": 23})


def remove_class(folder):
    shutil.rmtree(folder / "bee")


def paint(folder):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "bee" / "003.png")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "bee" / "004.png")


def enlarge(folder):
    for path in folder.rglob("*.png"):
        Image.open(path).resize((16, 16)).save(path)


def flatten(folder):
    for path in list(folder.rglob("*.png")):
        path.rename(folder / f"{path.parent.name}{path.name}")
    for name in ("ant", "bee"):
        (folder / name).rmdir()


CHANGES = {
    rename: "whose classes are not those that the run began with ('bee' is gone, 'aaa' is new)",
    add_class: "whose classes are not those that the run began with ('cat' is new)",
    remove_class: "whose classes are not those that the run began with ('bee' is gone)",
    add_images: "whose class 'bee' has 21 training images where the run began with 11",
    paint: "whose images are not those that the run began with, though they are as many",
    enlarge: "whose images are 1 x 16 x 16 where the run began with 1 x 8 x 8",
    flatten: "which has no labels",
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_images_are_refused(refused, own, change):
    change(own)
    refused(RESUME, f"data is '{own}'", CHANGES[change])
    refused("evaluate run --extractor pixels", f"data is '{own}'", CHANGES[change])


def test_changed_images_are_refused_from_python_too(own, tmp_path):
    config = shrunk(presets.preset("images", data=str(own)))
    rename(own)
    with pytest.raises(InputError, match=r"whose classes are not those that the run began with \('bee' is gone, 'aaa' is new\)"):
        runs.train(config, tmp_path / "run", resume=True)


def test_the_same_images_are_resumed(command, own, tmp_path):
    (own / "ant" / "notes.txt").write_text("no image")
    (own / "@eaDir").mkdir()
    (own / "ant" / "000.png").touch()
    assert command("train", "images", "--save-dir", tmp_path / "run", "--resume", "--steps", 8).status == 0
    config = shrunk(presets.preset("images", data=str(own)))
    runs.train(presets.adjust(config, steps=12), tmp_path / "run", resume=True)


def of_earlier_version(run):
    """Take from config.json what earlier versions did not keep."""
    path = run / "config.json"
    config = json.loads(path.read_text())
    for name in ("class_names", "counts", "count", "fingerprint"):
        config["data"].pop(name, None)
    path.write_text(json.dumps(config))


def test_runs_of_earlier_versions_still_resume(command, own, tmp_path, refused):
    of_earlier_version(tmp_path / "run")
    assert command("train", "images", "--save-dir", tmp_path / "run", "--resume", "--steps", 8).status == 0
    assert command("sample", tmp_path / "run", "--labels", 1, "--out", tmp_path / "x.png").status == 0
    config = shrunk(presets.preset("images", data=str(own)))
    runs.train(presets.adjust(config, steps=12), tmp_path / "run", resume=True)
    of_earlier_version(tmp_path / "run")
    add_class(own)
    refused(RESUME.replace("8", "16"), "which has 3 classes where the run began with 2")


def test_classes_that_an_earlier_version_numbered_as_text_are_refused(tmp_path, command, refused):
    write_images(tmp_path / "own", dict.fromkeys(("0", "2"), 12))
    write_images(tmp_path / "own", {"10": 12})
    assert command("train", "images", "--data", tmp_path / "own", "--save-dir", tmp_path / "run").status == 0
    of_earlier_version(tmp_path / "run")
    refused(RESUME, "whose classes were numbered in the order of text when the run began, '0', '10', '2', and now by number")


def test_changed_points_are_refused(tmp_path, command, refused):
    points = np.random.default_rng(0).standard_normal((60, 2))
    np.save(tmp_path / "points.npy", points)
    assert command("train", "toy", "--data", tmp_path / "points.npy", "--save-dir", tmp_path / "run").status == 0
    assert command("train", "toy", "--save-dir", tmp_path / "run", "--resume", "--steps", 8).status == 0
    np.save(tmp_path / "points.npy", points + 1e-12)
    again = "train toy --save-dir run --resume --steps 12"
    refused(again, f"data is '{tmp_path / 'points.npy'}', whose points are not those that the run began with")
    np.save(tmp_path / "points.npy", points[:-1])
    refused(again, "which holds 59 points where the run began with 60: bring those back, or train anew")
    refused("evaluate run", "which holds 59 points")
    of_earlier_version(tmp_path / "run")
    assert command(*again.split()).status == 0


def test_a_extractor_of_other_classes_is_refused(tmp_path, command, refused, own):
    others = write_images(tmp_path / "others", {"ant": 12, "cow": 12})
    assert command("train", "mnist-classifier", "--data", others, "--save-dir", tmp_path / "extractor").status == 0
    refused(
        "evaluate run --extractor extractor",
        "extractor is 'extractor', which names other classes (ant, cow)",
        "name another extractor",
    )
