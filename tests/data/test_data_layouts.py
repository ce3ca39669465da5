"""The layouts in which people have images, beside folders of classes: each is written small and read back."""

import gzip
import os
import pickle
import struct
import zipfile

import datasets
import numpy as np
import pytest
import torch

from drifting.data.image_folder import ImageFiles
from drifting.data.images import load_images
from drifting.data.readers import tables
from drifting.errors import InputError
from tests.data.test_readers import pixels, png, write_cifar_py, write_idx, write_mnist
from tests.data.test_tables import gray, library_set, numbers, write_images

# MNIST and CIFAR


def test_folders_of_torchvision(tmp_path):
    write_mnist(tmp_path / "MNIST" / "raw", suffix="")
    for folder in (tmp_path, tmp_path / "MNIST", tmp_path / "MNIST" / "raw"):
        assert len(load_images(str(folder)).images) == 6
        assert len(load_images(str(folder), split="test").images) == 3
    write_mnist(tmp_path / "FashionMNIST" / "raw")
    write_cifar_py(tmp_path / "cifar-10-batches-py")
    with pytest.raises(InputError, match="holds the data sets 'cifar-10-batches-py', 'FashionMNIST/raw', 'MNIST/raw': pass"):
        load_images(str(tmp_path))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_is_read_as_far_as_its_header_declares(tmp_path, suffix):
    path = write_mnist(tmp_path, suffix) / f"train-images-idx3-ubyte{suffix}"
    write_idx(path, np.zeros((1, 4, 4)), suffix == ".gz")
    for content, reason in (
        (np.zeros((1, 2000, 2000)), "4 or more|5 or more"),  # a bomb: far more behind a head of 4 values
        (np.zeros((1, 2, 1)), "2 values, but its header declares 4"),
    ):
        body = struct.pack(">HBB3I", 0, 8, 3, 1, 2, 2) + content.astype(np.uint8).tobytes()
        path.write_bytes(gzip.compress(body) if suffix else body)
        with pytest.raises(InputError, match=reason):
            load_images(str(tmp_path))
    head = struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1)
    path.write_bytes(gzip.compress(head) if suffix else head)
    with pytest.raises(InputError, match=r"its header declares .* values, more than a file of this length can hold"):
        load_images(str(tmp_path))


def test_cifar_100_has_its_fine_labels(tmp_path):
    images, names = {split: pixels(4, 3072, seed=seed) for seed, split in enumerate(("train", "test"))}, ["ant", "bee", "cat"]
    python, binary = tmp_path / "cifar-100-python", tmp_path / "cifar-100-binary"
    python.mkdir()
    binary.mkdir()
    for split, array in images.items():
        content = {b"data": array, b"fine_labels": [0, 1, 2, 1], b"coarse_labels": [0, 0, 1, 0], b"filenames": [b"x"] * 4}
        (python / split).write_bytes(pickle.dumps(content, 2))
        records = np.concatenate([np.array([[0, 0], [0, 1], [1, 2], [0, 1]], np.uint8), array], 1)
        (binary / f"{split}.bin").write_bytes(records.tobytes())
    (python / "meta").write_bytes(pickle.dumps({b"fine_label_names": [name.encode() for name in names]}, 2))
    (binary / "fine_label_names.txt").write_text("\n".join(names))
    for folder in (python, binary):
        for split, array in images.items():
            found = load_images(str(folder), split=split)
            assert torch.equal(found.images, torch.from_numpy(array.reshape(4, 3, 32, 32)))
            assert (found.labels.tolist(), found.class_names) == ([0, 1, 2, 1], tuple(names))
            assert found.left_out == ("the coarse labels (classes are the fine ones)",)
    with pytest.raises(InputError, match="'cifar-100-binary', 'cifar-100-python'"):
        load_images(str(tmp_path))


# Lists in text files


def tiny(root):
    for number, name in enumerate(("n01443537", "n01629819")):
        write_images(root / "train" / name / "images", range(10 * number, 10 * number + 10))
        (root / "train" / name / f"{name}_boxes.txt").write_text("")
    write_images(root / "val" / "images", [200, 201, 202])
    write_images(root / "test" / "images", [220])
    (root / "val" / "val_annotations.txt").write_text("200.png\tn01629819\t0\t0\t7\t7\n202.png\tn01443537\t0\t0\t7\t7\n")
    (root / "wnids.txt").write_text("n01443537\nn01629819\n")
    return root


def birds(root):
    for number, name in enumerate(("001.Albatross", "002.Crow")):
        write_images(root / "images" / name, range(10 * number, 10 * number + 10))
    rows = [(k + 1, f"{'001.Albatross' if k < 10 else '002.Crow'}/{k}.png", 1 + k // 10, int(k % 5 != 0)) for k in range(20)]
    (root / "images.txt").write_text("".join(f"{number} {path}\n" for number, path, _, _ in rows))
    (root / "image_class_labels.txt").write_text("".join(f"{number} {kind}\n" for number, _, kind, _ in rows))
    (root / "train_test_split.txt").write_text("".join(f"{number} {part}\n" for number, _, _, part in rows))
    (root / "classes.txt").write_text("1 001.Albatross\n2 002.Crow\n")
    (root / "attributes").mkdir()
    return root


@pytest.mark.parametrize("wrap", ["", "tiny-imagenet-200"])
def test_tiny_imagenet_takes_the_classes_of_its_validation_from_its_list(tmp_path, wrap):
    tiny(tmp_path / wrap)
    for split, labels, values in (("train", [0] * 10 + [1] * 10, list(range(20))), ("test", [0, 1], [202, 200])):
        found = load_images(str(tmp_path), split=split)
        assert found.labels.tolist() == labels
        assert found.class_names == ("n01443537", "n01629819")
        assert numbers(found) == values
        files = ImageFiles(tmp_path, image_size=4, split="val" if split == "test" else split)
        assert files.labels.tolist() == labels
        assert torch.equal(files.read(torch.arange(len(files)))[:, :1], found.images)


@pytest.mark.parametrize("wrap", ["", "CUB_200_2011"])
def test_birds_take_their_splits_and_classes_from_lists(tmp_path, wrap):
    root = birds(tmp_path / wrap)
    train, test = load_images(str(tmp_path)), load_images(str(tmp_path), split="test")
    assert numbers(test) == [0, 5, 10, 15]
    assert test.labels.tolist() == [0, 0, 1, 1]
    assert train.class_names == ("001.Albatross", "002.Crow")
    assert sorted(numbers(train) + numbers(test)) == list(range(20))
    assert ImageFiles(tmp_path, image_size=4, split="test").labels.tolist() == [0, 0, 1, 1]
    (root / "train_test_split.txt").unlink()
    assert len(load_images(str(tmp_path), split="test").images) == 2


def test_lists_that_are_wrong_are_reported(tmp_path):
    root = tiny(tmp_path / "tiny")
    for line, reason in (
        ("../../../etc/x.png\tn01443537\n", r"names '\.\./\.\./\.\./etc/x\.png', no regular file below"),
        ("gone.png\tn01443537\n", "names 'gone.png', no regular file"),
        ("200.png\tn09\n", "of the class 'n09', which is not in train/"),
        ("200.png\n", "line 1 is not a pair"),
    ):
        (root / "val" / "val_annotations.txt").write_text(line)
        with pytest.raises(InputError, match=reason):
            load_images(str(root), split="test")
    root = birds(tmp_path / "birds")
    (root / "image_class_labels.txt").write_text("1 1\n2 x\n")
    with pytest.raises(InputError, match=r"image_class_labels\.txt', which has no number for image 2"):
        load_images(str(root))


# Archives


def zipped(folder, path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for file in sorted(folder.rglob("*")):
            packed.write(file, file.relative_to(folder))
    return str(path)


@pytest.mark.parametrize("write", [tiny, birds, None])
def test_archives_are_read_as_the_folder_that_is_in_them(tmp_path, write):
    folder = tmp_path / "inside"
    if write is None:
        write_images(folder / "set" / "train" / "a", range(10))
        write_images(folder / "set" / "train" / "b", range(10, 20))
        write_images(folder / "set" / "test" / "b", [30])
        (folder / "__MACOSX").mkdir()
        (folder / "__MACOSX" / "._0.png").write_bytes(b"x")
    else:
        write(folder)
    path = zipped(folder, tmp_path / "images.zip")
    for split in ("train", "test"):
        packed, plain = load_images(path, split=split), load_images(str(folder), split=split)
        assert torch.equal(packed.images, plain.images)
        assert torch.equal(packed.labels, plain.labels)
        assert packed.class_names == plain.class_names


def test_archives_and_tables_with_backslashes_keep_their_classes(tmp_path):
    names = [f"{kind}\\{index}.png" for kind in ("cats", "dogs") for index in range(2)]
    for table, classes in (("", ("cats", "dogs")), ("file_name,label\n" + "".join(f"{name},x\n" for name in names), ("x",))):
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as packed:
            packed.writestr("cats\\", b"")
            for name in names:
                packed.writestr(name, png(gray(1)))
            if table:
                packed.writestr("metadata.csv", table)
        found = load_images(str(tmp_path / "x.zip"))
        assert (found.class_names, len(found.images)) == (classes, 4)


def test_archives_that_lead_elsewhere_or_are_damaged_are_refused(tmp_path):
    image, path = png(gray(1)), tmp_path / "x.zip"
    for name in ("../../out.png", "/etc/out.png", "a/../../out.png", "..\\..\\out.png"):
        with zipfile.ZipFile(path, "w") as packed:
            packed.writestr(name, image)
        with pytest.raises(InputError, match=r"x\.zip', which holds '.*out\.png', a place outside of it"):
            load_images(str(path))
    with zipfile.ZipFile(path, "w") as packed:
        link = zipfile.ZipInfo("a/link.png")
        link.external_attr = 0o120777 << 16
        packed.writestr(link, "/etc/passwd")
        packed.writestr("a/0.png", image)
    assert len(load_images(str(path), labeled=False).images) == 1
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a/0.png", image + b"\0" * 1000)
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[:60], whole[:40] + b"\xff" * 9 + whole[49:]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"x\.zip.*', which is truncated or corrupted"):
            load_images(str(path))
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("train.parquet", b"x")
    with pytest.raises(InputError, match=r"x\.zip', a .zip whose 1 files are not images: unpack it"):
        load_images(str(path))


def test_archives_of_more_than_fits_into_memory_are_refused_by_what_they_declare(tmp_path, monkeypatch):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a/0.png", b"\0" * 10**7)
    monkeypatch.setattr("drifting._checks.available_memory", lambda: 10**6)
    monkeypatch.setattr(zipfile.ZipFile, "read", None)
    with pytest.raises(InputError, match=r"bomb\.zip', whose 1 images need .*: unpack it"):
        load_images(str(path))


# What is no data set


def test_advice_leads_to_what_is_there(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "images.tar.gz").write_bytes(b"x")
    with pytest.raises(InputError, match=r"unknown, because it holds 1 files \(\.gz\): unpack archives, and pass the folder"):
        load_images(str(tmp_path / "set"))
    with pytest.raises(InputError, match="an archive that cannot be read directly: unpack it"):
        load_images(str(tmp_path / "set" / "images.tar.gz"))
    (tmp_path / "my points.csv").write_text("1,2\n3,4\n")
    with pytest.raises(InputError, match=r"a table, which holds no images: .* drifting train toy --data '[^']*my points\.csv'$"):
        load_images(str(tmp_path / "my points.csv"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="neither a folder nor a regular file"):
        load_images(str(tmp_path / "pipe"))

    def asked(name):
        raise AssertionError(f"the Hub was asked for {name}")

    monkeypatch.setattr(tables, "hub_failure", asked)
    monkeypatch.chdir(tmp_path)
    for name in ("sett", "set/cats", "./sets", "../x", "/nowhere/at/all", "~/none-of-mine", "set/cats/1", "a" * 300):
        with pytest.raises(InputError, match="which does not exist: pass a folder, or a Hub id"):
            load_images(name)
    with pytest.raises(InputError, match="did you mean 'set'"):
        load_images("sett")
    with pytest.raises(InputError, match=r"a Hub id like ylecun/mnist$"):  # no folder has a similar name
        load_images("cifar10")
    with pytest.raises(AssertionError, match="asked for someone/else"):
        load_images("someone/else")


def test_the_hub_is_asked_once_and_the_cache_is_used_where_it_does_not_answer(monkeypatch):
    from datasets import config
    from huggingface_hub import constants

    states = []

    def load_dataset(path):
        states.append((path, config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE))
        if path == "not/cached":
            raise FileNotFoundError("not in the cache")
        return datasets.DatasetDict(train=library_set(range(20)), test=library_set([1, 2]))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(tables, "hub_failure", lambda name: ConnectionError("no network"))
    assert len(load_images("is/cached").images) == 20
    with pytest.raises(InputError, match=r"could not be loaded from the Hugging Face Hub \(no network\): pass --data FOLDER"):
        load_images("not/cached")
    assert all(state[1:] == (True, True) for state in states)
    assert not config.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE
