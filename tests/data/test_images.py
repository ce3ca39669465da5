import os
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from drifting.data.images import ImageSet, load_images
from drifting.data.readers import tables
from drifting.errors import InputError

HELD_OUT = [0, 10, 13, 20, 28, 51, 74, 78, 96, 99]
needs_data = pytest.mark.skipif("DRIFTING_DATA" not in os.environ, reason="needs the folder that $DRIFTING_DATA names")


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path, **options)


def numbered(folder, counts, size=4):
    """Write images whose every pixel is the image's own number."""
    numbers = iter(range(256))
    for name, count in counts.items():
        for index in range(count):
            save(folder / name / f"{index:03d}.png", np.full((size, size), next(numbers)))
    return str(folder)


def numbers_of(found):
    return found.images[:, 0, 0, 0].tolist()


def hub_split(count, names=("no", "yes")):
    images = [Image.fromarray(np.full((4, 4), index, np.uint8)) for index in range(count)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
    return datasets.Dataset.from_dict({"image": images, "label": [index % 2 for index in range(count)]}, features=features)


def test_fingerprint_tells_pixels_shapes_and_labels_apart_and_nothing_else():
    images, labels = torch.arange(32, dtype=torch.uint8).reshape(2, 1, 4, 4), torch.tensor([0, 1])
    first = ImageSet(images, labels, ("a", "b")).fingerprint()
    changed = images.clone()
    changed[1, 0, 3, 3] = 0
    others = [
        ImageSet(changed, labels, None),
        ImageSet(images.reshape(2, 1, 2, 8), labels, None),
        ImageSet(images, labels.flip(0), None),
        ImageSet(images, None, None),
        ImageSet(images[:1], labels[:1], None),
    ]
    assert len({first, *(other.fingerprint() for other in others)}) == 6
    assert first == ImageSet(images.mT.contiguous().mT, labels.int(), None).fingerprint()
    assert len(first) == 16
    assert int(first, 16) >= 0


def test_without_a_test_split_a_fixed_tenth_of_each_class_is_held_out(tmp_path):
    folder = numbered(tmp_path, {"a": 60, "b": 40})
    train, test = load_images(folder), load_images(folder, split="test")
    assert sorted(numbers_of(train) + numbers_of(test)) == list(range(100))
    assert numbers_of(train) == sorted(numbers_of(train))
    assert test.labels.bincount().tolist() == [6, 4]
    assert numbers_of(test) == HELD_OUT
    assert (train.class_names, test.class_names) == (("a", "b"), ("a", "b"))
    assert numbers_of(load_images(folder, split="test", labeled=False)) == HELD_OUT


def test_tenth_of_unlabeled_images(tmp_path):
    folder = numbered(tmp_path, {".": 25})
    train, test = load_images(folder), load_images(folder, split="test")
    assert (len(train.images), len(test.images)) == (23, 2)
    assert sorted(numbers_of(train) + numbers_of(test)) == list(range(25))


def test_only_image_of_a_class_is_never_held_out(tmp_path):
    folder = numbered(tmp_path, {f"{index:02d}": 1 for index in range(30)})
    assert len(load_images(folder).images) == 30


def test_too_few_images_for_a_tenth_are_refused(tmp_path):
    folder = numbered(tmp_path, {".": 9})
    assert len(load_images(folder).images) == 9
    with pytest.raises(InputError, match="9 images are too few to hold out a tenth"):
        load_images(folder, split="test")


def test_unknown_split_is_refused(tmp_path):
    numbered(tmp_path, {"train/a": 2, "val/a": 1})
    assert len(load_images(str(tmp_path), split="val").images) == 1
    with pytest.raises(InputError, match=r"split is 'extra', but data '.*' has train, val: pass"):
        load_images(str(tmp_path), split="extra")


def test_mixed_sizes_and_oblongs_need_an_image_size(tmp_path):
    save(tmp_path / "test" / "0.png", np.zeros((4, 4)))
    save(tmp_path / "train" / "0.png", np.zeros((4, 4)))
    save(tmp_path / "train" / "1.png", np.zeros((6, 6)))
    with pytest.raises(InputError, match=r"1\.png' of 6 x 6 pixels among images of 4 x 4: pass --image-size"):
        load_images(str(tmp_path))
    save(tmp_path / "train" / "0.png", np.zeros((4, 5)))
    with pytest.raises(InputError, match=r"0\.png' of 5 x 4 pixels, which is not a square: pass --image-size"):
        load_images(str(tmp_path))
    assert load_images(str(tmp_path), image_size=3).images.shape == (2, 1, 3, 3)


def test_resizing_crops_the_center_and_is_bicubic(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    save(tmp_path / "test" / "0.png", array)
    save(tmp_path / "train" / "0.png", array)
    crop = Image.fromarray(array[:, 4:16])
    for size in (12, 7, 18):
        expected = torch.from_numpy(np.array(crop.resize((size, size), Image.Resampling.BICUBIC))).movedim(-1, 0)
        assert torch.equal(load_images(str(tmp_path), image_size=size).images[0], expected)


def test_channels_are_kept_or_converted(tmp_path):
    gray, color = np.full((4, 4), 90), np.broadcast_to([10, 20, 200], (4, 4, 3))
    save(tmp_path / "test" / "0.png", gray)
    save(tmp_path / "train" / "0.png", gray)
    assert load_images(str(tmp_path)).image_shape == (1, 4, 4)
    assert load_images(str(tmp_path), channels=3).images[0, :, 0, 0].tolist() == [90] * 3
    save(tmp_path / "train" / "1.png", color)
    assert load_images(str(tmp_path)).images[:, :, 0, 0].tolist() == [[90] * 3, [10, 20, 200]]
    luma = round(0.299 * 10 + 0.587 * 20 + 0.114 * 200)
    assert load_images(str(tmp_path), channels=1).images[:, 0, 0, 0].tolist() == [90, luma]


def test_modes_of_pictures(tmp_path):
    save(tmp_path / "test" / "0.png", np.zeros((4, 4)))
    path = tmp_path / "train" / "0.png"
    path.parent.mkdir()
    for mode, count in (("1", 1), ("L", 1), ("LA", 1), ("P", 3), ("RGB", 3), ("RGBA", 3)):
        Image.new(mode, (4, 4), 1).save(path)
        assert load_images(str(tmp_path)).image_shape == (count, 4, 4)
    Image.fromarray(np.full((4, 4), 3000, np.uint16)).save(path)
    with pytest.raises(InputError, match=r"0\.png' of more than 8 bits"):
        load_images(str(tmp_path))


def test_photographs_are_turned_as_their_camera_was(tmp_path):
    upright = np.tile(np.linspace(0, 255, 16)[:, None], (1, 16))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    save(tmp_path / "test" / "0.jpg", upright, quality=100)
    save(tmp_path / "train" / "0.jpg", upright[::-1], quality=100, exif=exif)
    difference = load_images(str(tmp_path)).images.int() - load_images(str(tmp_path), split="test").images.int()
    assert int(difference.abs().max()) <= 3


@pytest.mark.parametrize(("options", "message"), [({"image_size": 0}, "image_size is 0"), ({"channels": 2}, "channels is 2")])
def test_impossible_options_are_refused(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        load_images(numbered(tmp_path, {".": 2}), **options)


def test_labels_can_be_demanded_or_left_out(tmp_path):
    folder = numbered(tmp_path / "labeled", {"a": 2, "b": 2})
    assert load_images(folder, labeled=True).num_classes == 2
    plain = load_images(folder, labeled=False)
    assert (plain.labels, plain.num_classes) == (None, None)
    with pytest.raises(InputError, match="has no labels: use one sub-folder per class"):
        load_images(numbered(tmp_path / "flat", {".": 2}), labeled=True)


def test_missing_empty_and_unknown_sources_are_refused(tmp_path):
    with pytest.raises(InputError, match="none', which does not exist"):
        load_images(str(tmp_path / "none"))
    with pytest.raises(InputError, match="which is an empty folder"):
        load_images(str(tmp_path))
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match=r"unknown, because it holds 1 files \(\.txt\): make it CLASS/\*\.png, .* docs/data\.md"):
        load_images(str(tmp_path))
    with pytest.raises(InputError, match=r"notes\.txt', which is not a folder, .*: pass a folder, or a \.parquet, "):
        load_images(str(tmp_path / "notes.txt"))
    for source in (None, ""):
        with pytest.raises(InputError, match="data is not given: pass --data FOLDER"):
            load_images(source)


def test_names_are_looked_up_in_the_data_folder_then_on_the_hub(tmp_path, monkeypatch):
    asked = []

    def load_dataset(path):
        asked.append(path)
        return datasets.DatasetDict(train=hub_split(6), test=hub_split(2))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setenv("DRIFTING_DATA", str(tmp_path))
    numbered(tmp_path / "mnist", {"train/a": 3, "test/a": 1})
    assert numbers_of(load_images(None, name="mnist")) == [0, 1, 2]
    assert not asked
    assert numbers_of(load_images(None, name="cifar10")) == list(range(6))
    monkeypatch.delenv("DRIFTING_DATA")
    load_images(None, name="mnist")
    assert set(asked) == {"uoft-cs/cifar10", "ylecun/mnist"}
    with pytest.raises(InputError, match="dataset is 'mnits': did you mean 'mnist'"):
        load_images(None, name="mnits")


def test_hub_data_sets_are_read_like_files(monkeypatch):
    stored = datasets.DatasetDict(train=hub_split(40).select(range(1, 40)))
    monkeypatch.setattr(datasets, "load_dataset", lambda path: {"someone/some.set": stored}[path])
    train, test = load_images("someone/some.set"), load_images("someone/some.set", split="test")
    assert sorted(numbers_of(train) + numbers_of(test)) == list(range(1, 40))
    assert train.labels.tolist() == [number % 2 for number in numbers_of(train)]
    assert (train.class_names, train.image_shape) == (("no", "yes"), (1, 4, 4))


@pytest.mark.parametrize("label", [-1, 5])
def test_labels_outside_the_classes_are_refused(monkeypatch, label):
    wrong = hub_split(4).remove_columns("label").add_column("label", [0, 1, 0, label])
    monkeypatch.setattr(datasets, "load_dataset", lambda path: datasets.DatasetDict(train=wrong, test=wrong))
    with pytest.raises(InputError, match=r"the label -1|class 2 has no images"):
        load_images("someone/else")
    assert load_images("someone/else", labeled=False).labels is None


def test_unreachable_hub_and_missing_library_say_what_to_do(monkeypatch):
    def unreachable(path):
        raise ConnectionError("no network\nhere")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    monkeypatch.setattr(tables, "hub_failure", lambda name: None)
    with pytest.raises(InputError, match=r"\(no network here\): pass --data FOLDER or set DRIFTING_DATA$"):
        load_images("someone/else")
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'drifting-models\[images\]', or pass --data FOLDER or set DRIFTING_DATA$"):
        load_images(None, name="fashion_mnist" if not Path("zalando-datasets").exists() else "mnist")


@needs_data
@pytest.mark.data
def test_test_images_of_mnist_are_whole():
    test = load_images(None, name="mnist", split="test")
    assert (test.images.shape, test.labels[:3].tolist()) == ((10_000, 1, 28, 28), [7, 2, 1])


@pytest.mark.slow
@needs_data
@pytest.mark.data
def test_mnist_is_whole():
    train = load_images(None, name="mnist", labeled=True)
    assert (train.images.shape, train.labels[:3].tolist()) == ((60_000, 1, 28, 28), [5, 0, 4])
    assert (train.num_classes, train.class_names) == (10, tuple("0123456789"))
    assert abs(float(train.images.double().mean()) / 255 - 0.1307) < 1e-4


@needs_data
@pytest.mark.data
def test_cifar10_is_whole():
    test = load_images(None, name="cifar10", split="test")
    assert (test.images.shape, test.num_classes) == ((10_000, 3, 32, 32), 10)
    assert test.labels.bincount().tolist() == [1000] * 10
    assert test.class_names[:2] == ("airplane", "automobile")
