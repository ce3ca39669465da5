"""What `drifting inspect` says of a folder is what `drifting train images` does with it."""

import dataclasses

import pytest
from PIL import Image

from drifting import presets
from drifting.cli import main
from drifting.errors import InputError
from drifting.runs import inspect as inspection
from drifting.runs.inspect import inspect_images
from tests.support.image_folders import write_images
from tests.support.small_runs import shrunk


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Return a folder of two classes with images of several sizes and modes, and two damaged files."""
    place = write_images(tmp_path_factory.mktemp("inspect") / "mixed", {"cats": 11, "dogs": 10}, size=40, channels=3)
    Image.new("L", (100, 50)).save(place / "cats" / "wide.png")
    Image.new("RGBA", (20, 20), (255, 0, 0, 0)).save(place / "dogs" / "clear.png")
    (place / "dogs" / "notes.txt").write_text("no image")
    for name in ("cats/torn.png", "dogs/empty.jpg"):
        (place / name).write_bytes(b"\x89PNG\r\n")
    return place


def test_settings_are_those_of_the_preset(tmp_path):
    place = write_images(tmp_path / "bars", {"a": 30, "b": 20}, channels=3)
    for unconditional in (False, True):
        found = inspect_images(str(place), unconditional=unconditional, time_steps=False).config
        trained = presets.preset("images", data=str(place), unconditional=unconditional)
        assert found is not None
        known = trained.data.find()
        assert (found.data.image_shape, found.data.num_classes) == (known.image_shape, known.num_classes)
        assert dataclasses.replace(found, data=trained.data) == trained


def test_sizes_modes_and_damaged_files_are_told(mixed):
    found = inspect_images(str(mixed), time_steps=False)
    text = "\n".join(found.report())
    assert "left out: 1 file (.txt)" in text
    assert "3 sizes, from 20 x 20 to 100 x 50 pixels; the most frequent is 40 x 40" in text
    assert "L (1)" in text
    assert "transparent: 1" in text
    assert "resize to 32 x 32 pixels, which enlarges 1" in text
    assert "crop 1 of" in text
    assert "1 gray image would get three equal channels" in text
    assert len(found.problems) == 2
    assert all(name in " ".join(found.problems) for name in ("torn.png", "empty.jpg"))
    assert "--image-size 32" in found.command


def test_command_stops_where_the_training_would(mixed, capsys):
    with pytest.raises(SystemExit) as left:
        main(["inspect", str(mixed), "--no-time-steps"])
    assert left.value.code == 1
    assert "A training would stop for 2 reasons:" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"torn\.png|empty\.jpg"):
        presets.preset("images", data=str(mixed), image_size=32).data.find()


def test_images_without_classes_get_the_flag(tmp_path):
    place = write_images(tmp_path / "my photos", {".": 12})
    found = inspect_images(str(place), time_steps=False)
    assert found.command == f"drifting train images --data '{place}' --unconditional --save-dir runs/my-photos"
    assert "keep the 8 x 8 pixels" in "\n".join(found.lines)


def test_large_squares_are_resized(tmp_path):
    place = write_images(tmp_path / "large", {"a": 4, "b": 4}, size=100)
    assert "--image-size 64" in inspect_images(str(place), time_steps=False).command
    assert "--image-size 16" in inspect_images(str(place), image_size=16, time_steps=False).command
    with pytest.raises(InputError, match="image_size is 0"):
        inspect_images(str(place), image_size=0)


def test_folder_of_damaged_files_alone_is_told(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.png").write_bytes(b"no image")
    found = inspect_images(str(tmp_path), time_steps=False)
    assert (found.config, len(found.problems)) == (None, 2)


@pytest.mark.parametrize(("count", "words"), [(1, "1 image is"), (9, "9 images are")])
def test_too_few_images_for_a_test_are_told(tmp_path, capsys, count, words):
    place = write_images(tmp_path / "few", {".": count})
    with pytest.raises(SystemExit) as left:
        main(["inspect", str(place), "--no-time-steps"])
    assert left.value.code == 1
    out = capsys.readouterr().out
    assert "A training would stop for 1 reason:" in out
    assert f"whose {words} too few to hold out a tenth: add a folder test/" in out


def test_minutes_come_from_timed_steps(tmp_path, monkeypatch):
    place = write_images(tmp_path / "bars", {"a": 12, "b": 12})
    seconds = iter([0.0, 3.0, 0.0, 9.0])  # three steps of the encoder, then of the generator
    monkeypatch.setattr(inspection.time, "perf_counter", lambda: next(seconds))
    whole = inspection.images_of_size
    monkeypatch.setattr(inspection, "images_of_size", lambda *size: shrunk(whole(*size)))
    found = inspect_images(str(place))
    assert found.config is not None
    assert found.minutes == pytest.approx((found.config.encoder.steps * 1 + found.config.schedule.steps * 3) / 60)
    assert "- take about 1 minute on this machine" in "\n".join(found.report())
