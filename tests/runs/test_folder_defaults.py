"""Folders of runs that are given none: two data of one name never share one without a word."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from drifting.presets import PRESETS, default_folder, folder_of_data

pytestmark = pytest.mark.usefixtures("small_presets", "no_pictures")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    return tmp_path


def _files() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}


def _refused(command, arguments: str, words: str) -> None:
    """Check that the command says whose the folder is, and leaves it alone, even where it may overwrite."""
    before = _files()
    for more in ("", " --overwrite"):
        result = command(*(arguments + more).split())
        assert result.status == 2, result
        assert re.fullmatch(rf"drifting: save_dir is '{words}: pass --save-dir with another folder\n", result.err)
    assert _files() == before


def test_points_of_one_name_do_not_share_a_folder(here, command, own_points):
    shutil.copy(own_points, "a/points.npy")
    np.save("b/points.npy", np.load(own_points) + 1)
    assert command("train", "toy", "--data", "a/points.npy").status == 0
    own = re.escape(str(here / "a" / "points.npy"))
    _refused(command, "train toy --data b/points.npy", rf"runs/points' by default, which holds the run 'toy' on {own}")
    assert command("train", "toy", "--data", "b/points.npy", "--resume").status == 2
    assert command("train", "toy", "--data", "b/points.npy", "--save-dir", "runs/other").status == 0
    # One's own run is in one's own hands, by whatever path.
    assert command("train", "toy", "--data", "a/points.npy").err.endswith(
        "pass --resume or --overwrite, or choose another folder\n"
    )
    assert command("train", "toy", "--data", str(here / "a" / "points.npy"), "--overwrite").status == 0


def test_images_of_one_name_do_not_share_a_folder(here, command, gray_folder):
    for name in ("a", "b"):
        shutil.copytree(gray_folder, f"{name}/train")
    assert command("train", "images", "--data", "a/train").status == 0
    own = re.escape(str(here / "a" / "train"))
    _refused(command, "train images --data b/train", rf"runs/train' by default, which holds the run 'images' on {own}")


def test_presets_and_their_data_do_not_share_a_folder(here, command, gray_folder):
    shutil.copytree(gray_folder, "a/digits")
    assert command("train", "images", "--data", "a/digits").status == 0
    assert command("train", "digits").status == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == ["digits", "images-digits"]
    (here / "runs" / "digits").rename("runs/toy")
    _refused(command, "train toy", "runs/toy' by default, which holds the run 'digits' on digits")


def test_no_name_of_data_is_that_of_a_preset_or_a_toy():
    for name in (*PRESETS, "moons"):
        assert default_folder("images", data=f"x/{name}") == Path("runs") / f"images-{name}"
        assert default_folder("toy", data=f"x/{name}.csv") == Path("runs") / f"toy-{name}"
    assert default_folder("toy", data="x/mine.csv") == Path("runs/mine")
    assert default_folder("images", data="/") == Path("runs/images-")
    assert folder_of_data("cifar10-simclr", "encoder", PRESETS) == Path("runs/encoder-cifar10-simclr")


def test_encoders_of_one_name_do_not_share_a_folder(here, command, gray_folder):
    for name in ("a", "b"):
        shutil.copytree(gray_folder, f"{name}/train")
    settings = "--steps 1 --width 4 --batch-size 8"
    assert command(*f"train-encoder supervised --data a/train {settings}".split()).status == 0
    own = re.escape(str(here / "a" / "train"))
    holds = rf"runs/train-supervised' by default, which holds the run 'train-encoder supervised' on {own}"
    _refused(command, f"train-encoder supervised --data b/train {settings}", holds)
