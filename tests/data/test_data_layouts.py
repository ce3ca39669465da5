"""The layouts in which people have images, beside folders of classes: each is written small and read back."""

import gzip
import json
import os
import pickle
import struct
import zipfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from drifting.data.image_files import ImageFiles
from drifting.data.images import load_images
from drifting.data.readers import hub
from drifting.errors import InputError
from tests.data.test_readers import pixels, png, write_cifar_py, write_idx, write_mnist


def numbers(found):
    return found.images[:, 0, 0, 0].tolist()


def grey(value, size=4):
    return np.full((size, size), value, np.uint8)


def write_images(folder, values):
    folder.mkdir(parents=True, exist_ok=True)
    for value in values:
        Image.fromarray(grey(value)).save(folder / f"{value}.png")


def write_table(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    count = len(next(iter(columns.values())))
    rows = [{"bytes": png(grey(index)), "path": None} for index in range(count)]
    pq.write_table(pa.table({"image": rows, **columns}), path)


# Parquet


@pytest.mark.parametrize(
    "name",
    [
        "data.parquet",
        "0000.parquet",
        "images-00000-of-00001.parquet",
        "mnist/train-00000-of-00001.parquet",
        "data/train-00000-of-00001.parquet",
        "default/train/0000.parquet",
        "train/part-0.parquet",
        "my_train.parquet",
        "a/b/train.parquet",
    ],
)
def test_parquet_is_found_by_whatever_name_and_place(tmp_path, name):
    write_table(tmp_path / name, label=[0, 1] * 10)
    found, held_out = load_images(str(tmp_path)), load_images(str(tmp_path), split="test")
    assert sorted(numbers(found) + numbers(held_out)) == list(range(20))
    assert (found.num_classes, len(held_out.images)) == (2, 2)
    whole = load_images(str(tmp_path / name))
    assert numbers(whole) == numbers(found)


def test_parquet_of_several_splits_one_folder_down(tmp_path):
    for name in ("default/train/0000", "default/train/0001", "default/test/0000"):
        write_table(tmp_path / f"{name}.parquet", label=[0, 1, 2])
    assert len(load_images(str(tmp_path)).images) == 6
    assert len(load_images(str(tmp_path), split="test").images) == 3


def test_several_data_sets_in_a_folder_are_named(tmp_path):
    for name in ("first", "second"):
        write_table(tmp_path / name / "train.parquet", label=[0, 1])
    with pytest.raises(InputError, match="holds the data sets 'first', 'second': pass --data with the folder of one"):
        load_images(str(tmp_path))
    write_table(tmp_path / "data" / "train.parquet", label=[0, 1] * 10)
    assert load_images(str(tmp_path)).num_classes == 2


def test_parquet_files_that_tell_no_split_are_refused(tmp_path):
    write_table(tmp_path / "cats.parquet", label=[0, 1])
    write_table(tmp_path / "dogs.parquet", label=[0, 1])
    with pytest.raises(InputError, match=r"where 'cats\.parquet' and 'dogs\.parquet' do not tell which split .*: name"):
        load_images(str(tmp_path))


@pytest.mark.parametrize("column", ["class", "category", "target", "Label", "class_name", "coarse_label"])
def test_classes_are_numbers_or_names_in_columns_of_usual_names(tmp_path, column):
    write_table(tmp_path / "train.parquet", **{column: ["cat", "ant"] * 3})
    write_table(tmp_path / "test.parquet", **{column: ["cat", "cat"]})
    for split, labels in (("train", [1, 0] * 3), ("test", [1, 1])):
        found = load_images(str(tmp_path), split=split)
        assert (found.labels.tolist(), found.class_names) == (labels, ("ant", "cat"))
    write_table(tmp_path / "train.parquet", **{column: pa.array([True, False] * 3)})
    assert load_images(str(tmp_path)).labels.tolist() == [1, 0] * 3


def test_first_of_several_label_columns_is_taken_and_said(tmp_path):
    for suffix in ("", ".gz"):
        columns = {"coarse_label": [0, 0, 0, 1], "category": ["x"] * 4, "fine_label": [3, 2, 1, 0]}
        write_table(tmp_path / f"train{suffix}.parquet", **columns)
        write_table(tmp_path / f"test{suffix}.parquet", **columns)
    found = load_images(str(tmp_path / "train.parquet"), labelled=False)
    assert found.labels is None
    found = load_images(str(tmp_path))
    assert found.labels.tolist() == [3, 2, 1, 0] * 2
    said = [f"the column '{name}' (classes are those of 'fine_label')" for name in ("category", "coarse_label")]
    assert list(found.left_out) == said


# Files that data name


def named(folder, names):
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    column = pa.array([{"bytes": None, "path": str(name)} for name in names], kind)
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": column}), folder / "train.parquet")
    pq.write_table(pa.table({"image": column}), folder / "test.parquet")
    return str(folder)


def test_rows_name_files_below_the_data_set(tmp_path):
    write_images(tmp_path / "set" / "files", [5, 6])
    found = load_images(named(tmp_path / "set", ["files/5.png", tmp_path / "set" / "files" / "6.png"]))
    assert numbers(found) == [5, 6]


@pytest.mark.parametrize("kind", ["absolute", "above", "link", "fifo", "device", "folder", "missing", "null"])
def test_rows_name_no_other_file_of_the_machine(tmp_path, kind):
    write_images(tmp_path / "private", [7])
    folder = tmp_path / "set"
    folder.mkdir()
    secret = tmp_path / "private" / "7.png"
    (folder / "link.png").symlink_to(secret)
    os.mkfifo(folder / "fifo.png")  # opening it would wait for ever
    names = {"absolute": secret, "above": "../private/7.png", "link": "link.png", "fifo": "fifo.png", "device": "/dev/zero"}
    name = names.get(kind, {"folder": ".", "missing": "none.png", "null": "a\0b"}.get(kind))
    with pytest.raises(InputError, match=r"train\.parquet, row 0', which names '.*', no regular file below"):
        load_images(named(folder, [name]))


def test_pointers_of_git_lfs_are_recognised(tmp_path):
    (tmp_path / "train.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(InputError, match="only points to a file of Git LFS: run git lfs pull"):
        load_images(str(tmp_path))


@pytest.mark.parametrize("label", [10**12, 2**63 - 1])
def test_labels_beyond_all_classes_are_refused_before_they_are_counted(tmp_path, label):
    write_table(tmp_path / "train.parquet", label=[0, 1, label])
    write_table(tmp_path / "test.parquet", label=[0, 1, label])
    for split in ("train", "test"):
        with pytest.raises(InputError, match=f"which has the label {label}: number the classes 0 to k-1"):
            load_images(str(tmp_path), split=split)


# Data sets of the library


def library_set(values, **columns):
    columns = columns or {"label": [value % 2 for value in values]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["even", "odd"])})
    images = [Image.fromarray(grey(value)) for value in values]
    return datasets.Dataset.from_dict({"image": images, **columns}, features=features)


@pytest.fixture(autouse=True)
def _no_bars():
    datasets.disable_progress_bars()


def test_saved_data_sets_are_read_alike_as_folders_and_as_objects(tmp_path):
    part = library_set(range(40)).select(range(20))  # a view of rows
    part.save_to_disk(tmp_path / "one")
    both = datasets.DatasetDict(train=part, validation=library_set([30, 31]))
    both.save_to_disk(tmp_path / "both")
    for source in (str(tmp_path / "one"), tmp_path / "one", part):
        found, held_out = load_images(source), load_images(source, split="test")
        assert sorted(numbers(found) + numbers(held_out)) == list(range(20))
        assert (found.class_names, found.labels[:2].tolist()) == (("even", "odd"), [0, 1])
    for source in (str(tmp_path / "both"), both):
        assert numbers(load_images(source)) == list(range(20))
        assert numbers(load_images(source, split="test")) == [30, 31]


def test_saved_data_sets_name_only_their_own_files(tmp_path):
    library_set(range(4)).save_to_disk(tmp_path / "one")
    state = json.loads((tmp_path / "one" / "state.json").read_text())
    state["_data_files"] = [{"filename": "../data.arrow"}]
    (tmp_path / "one" / "state.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match=r"names '\.\./data\.arrow', no regular file below"):
        load_images(str(tmp_path / "one"))
    (tmp_path / "one" / "state.json").write_text("[]")
    with pytest.raises(InputError, match=r"state\.json', which is truncated or corrupted"):
        load_images(str(tmp_path / "one"))
    datasets.DatasetDict(train=library_set(range(4))).save_to_disk(tmp_path / "both")
    (tmp_path / "both" / "dataset_dict.json").write_text('{"splits": ["../one"]}')
    with pytest.raises(InputError, match=r"names '\.\./one', no folder beside it"):
        load_images(str(tmp_path / "both"))


@pytest.mark.parametrize("source", [[1, 2], {"train": [1]}, {}, 3])
def test_other_objects_are_refused(source):
    with pytest.raises(InputError, match=rf"source is a {type(source).__name__}: pass a folder, a Hub id, a datasets\.Dataset"):
        load_images(source)


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
def test_idx_is_read_as_far_as_its_head_declares(tmp_path, suffix):
    path = write_mnist(tmp_path, suffix) / f"train-images-idx3-ubyte{suffix}"
    write_idx(path, np.zeros((1, 4, 4)), suffix == ".gz")
    for content, reason in (
        (np.zeros((1, 2000, 2000)), "4 or more|5 or more"),  # a bomb: far more behind a head of 4 values
        (np.zeros((1, 2, 1)), "2 values where its head says 4"),
    ):
        body = struct.pack(">HBB3I", 0, 8, 3, 1, 2, 2) + content.astype(np.uint8).tobytes()
        path.write_bytes(gzip.compress(body) if suffix else body)
        with pytest.raises(InputError, match=reason):
            load_images(str(tmp_path))
    head = struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1)
    path.write_bytes(gzip.compress(head) if suffix else head)
    with pytest.raises(InputError, match=r"its head declares .* values, more than a file of this length can hold"):
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


def test_lists_that_are_wrong_are_told(tmp_path):
    root = tiny(tmp_path / "tiny")
    for line, reason in (
        ("../../../etc/x.png\tn01443537\n", r"names '\.\./\.\./\.\./etc/x\.png', no regular file below"),
        ("gone.png\tn01443537\n", "names 'gone.png', no regular file"),
        ("200.png\tn09\n", "of the class 'n09', which is not in train/"),
        ("200.png\n", "line 1 is no pair"),
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


def test_archives_that_lead_elsewhere_or_are_damaged_are_refused(tmp_path):
    image, path = png(grey(1)), tmp_path / "x.zip"
    for name in ("../../out.png", "/etc/out.png", "a/../../out.png"):
        with zipfile.ZipFile(path, "w") as packed:
            packed.writestr(name, image)
        with pytest.raises(InputError, match=r"x\.zip', which holds '.*out\.png', a place outside of it"):
            load_images(str(path))
    with zipfile.ZipFile(path, "w") as packed:
        link = zipfile.ZipInfo("a/link.png")
        link.external_attr = 0o120777 << 16
        packed.writestr(link, "/etc/passwd")
        packed.writestr("a/0.png", image)
    assert len(load_images(str(path), labelled=False).images) == 1
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a/0.png", image + b"\0" * 1000)
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[:60], whole[:40] + b"\xff" * 9 + whole[49:]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"x\.zip.*', which is truncated or corrupted"):
            load_images(str(path))
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("train.parquet", b"x")
    with pytest.raises(InputError, match=r"x\.zip', a .zip whose 1 files are no images: unpack it"):
        load_images(str(path))


def test_archives_of_more_than_fits_into_memory_are_refused_by_what_they_declare(tmp_path, monkeypatch):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a/0.png", b"\0" * 10**7)
    monkeypatch.setattr("drifting.data.memory.available_memory", lambda: 10**6)
    monkeypatch.setattr(zipfile.ZipFile, "read", None)
    with pytest.raises(InputError, match=r"bomb\.zip', whose 1 images need .*: unpack it"):
        load_images(str(path))


# What is no data set


def test_advice_leads_to_what_is_there(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "images.tar.gz").write_bytes(b"x")
    with pytest.raises(InputError, match=r"unknown, for it holds 1 files \(\.gz\): unpack archives, and pass the folder"):
        load_images(str(tmp_path / "set"))
    with pytest.raises(InputError, match="an archive that is not read as it is: unpack it"):
        load_images(str(tmp_path / "set" / "images.tar.gz"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="neither a folder nor a regular file"):
        load_images(str(tmp_path / "pipe"))

    def asked(name):
        raise AssertionError(f"the Hub was asked for {name}")

    monkeypatch.setattr(hub, "_unanswered", asked)
    monkeypatch.chdir(tmp_path)
    for name in ("sett", "set/cats", "./sets", "../x", "/nowhere/at/all", "~/none-of-mine", "set/cats/1"):
        with pytest.raises(InputError, match="which does not exist: pass a folder, or a Hub id"):
            load_images(name)
    with pytest.raises(InputError, match="did you mean 'set'"):
        load_images("sett")
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
    monkeypatch.setattr(hub, "_unanswered", lambda name: ConnectionError("no network"))
    assert len(load_images("is/cached").images) == 20
    with pytest.raises(InputError, match=r"could not be loaded from the Hugging Face Hub \(no network\): pass --data FOLDER"):
        load_images("not/cached")
    assert all(state[1:] == (True, True) for state in states)
    assert not config.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE
