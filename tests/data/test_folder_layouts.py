"""The layouts in which people keep image files: which folders are classes, which are splits, and what is not an image."""

import csv
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from drifting.data.image_folder import ImageFiles
from drifting.data.images import load_images
from drifting.data.readers.folder import ImageFolder
from drifting.errors import InputError
from tests.support.covering import each_once


def write(root, counts, *, value=0, suffix=".png"):
    """Write images whose pixels are all of one value, which grows from one to the next."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            Image.fromarray(np.full((4, 4), value, np.uint8)).save(root / name / f"{index:03d}{suffix}", format="PNG")
            value += 1
    return root


def found(root, split="train"):
    """Return class names and how many images each has, alike in memory and streamed."""
    listed = ImageFiles(root, image_size=4, split=split)
    whole = load_images(str(root), split=split)
    assert listed.class_names == whole.class_names
    assert (listed.labels is None) == (whole.labels is None)
    counts = len(listed) if listed.labels is None else listed.labels.bincount(minlength=len(listed.class_names)).tolist()
    return listed.class_names, counts


def test_classes_are_in_the_order_of_the_numbers_in_their_names(tmp_path):
    for count, names in (
        (12, [str(number) for number in range(12)]),
        (12, [f"class {number}" for number in range(12)]),
        (4, ["-1", "0", "1", "10"]),
        (4, ["007", "8", "009", "10"]),
        (4, ["B", "a", "a1", "b"]),
    ):
        root = tmp_path / names[1]
        write(root, dict.fromkeys(sorted(names), 1))
        whole = load_images(str(root))
        assert whole.class_names == tuple(names)
        assert whole.labels.tolist() == list(range(count))
        assert ImageFiles(root, image_size=4).class_names == tuple(names)


def test_the_folder_of_a_number_has_the_label_of_the_number(tmp_path):
    for number in range(12):
        write(tmp_path, {f"{number}": 1}, value=20 * number)
    whole = load_images(str(tmp_path))
    assert torch.equal(whole.images[:, 0, 0, 0].long(), 20 * whole.labels)


@pytest.mark.parametrize("above", ["data", "data/data", "mine/images v2"])
def test_one_folder_around_the_classes_is_no_class(tmp_path, above):
    write(tmp_path / above, {"cats": 20, "dogs": 10})
    assert ImageFiles(tmp_path, image_size=4).labels.bincount().tolist() == [20, 10]
    assert load_images(str(tmp_path)).class_names == ("cats", "dogs")
    (tmp_path / "notes").mkdir()  # holds no images
    assert load_images(str(tmp_path)).class_names == ("cats", "dogs")


def test_one_folder_of_images_is_one_class(tmp_path):
    write(tmp_path, {"cats": 3})
    assert found(tmp_path) == (("cats",), [3])


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("Train", "Test"),
        ("TRAIN", "TEST"),
        ("Training", "Testing"),
        ("training_set", "test_set"),
        ("training_set/training_set", "test_set/test_set"),
        ("train", "val"),
        ("Train", "Valid"),
        ("train", "validation"),
        ("training", "dev"),
        ("data/train", "data/val"),
        ("train-images", "val-images"),
    ],
)
def test_splits_go_by_their_usual_names(tmp_path, train, test):
    write(tmp_path / train, {"cats": 20, "dogs": 10})
    write(tmp_path / test, {"dogs": 2, "cats": 1})
    assert found(tmp_path) == (("cats", "dogs"), [20, 10])
    assert len(load_images(str(tmp_path)).images) == 30  # no tenth is held out
    assert load_images(str(tmp_path), split="test").labels.tolist() == [0, 1, 1]
    held_out = ImageFolder().splits(tmp_path)[1]
    assert found(tmp_path, held_out) == (("cats", "dogs"), [1, 2])


def test_val_is_the_test_only_where_there_is_no_test(tmp_path):
    write(tmp_path, {"train/a": 3, "val/a": 1, "Test/a": 2})
    assert ImageFolder().splits(tmp_path) == ["train", "test", "val"]
    assert len(load_images(str(tmp_path), split="test").images) == 2
    assert len(load_images(str(tmp_path), split="validation").images) == len(ImageFiles(tmp_path, image_size=4, split="valid")) == 1


def test_folders_of_one_split_twice_are_refused(tmp_path):
    write(tmp_path, {"train/a": 1, "val/a": 1, "valid/a": 1})
    for read in (lambda: load_images(str(tmp_path)), lambda: ImageFiles(tmp_path, image_size=4)):
        with pytest.raises(InputError, match=r"where 'val(id)?' and 'val(id)?' may both be the split 'val': rename or remove one"):
            read()


@pytest.mark.parametrize("names", [("car", "train", "plane"), ("invalid", "valid"), ("production", "dev")])
def test_a_class_may_have_the_name_of_a_split(tmp_path, names):
    write(tmp_path, dict.fromkeys(names, 2))
    assert ImageFiles(tmp_path, image_size=4).class_names == tuple(sorted(names))


def test_folders_beside_splits_are_left_out_in_words(tmp_path):
    write(tmp_path, {"train/a": 2, "test/a": 1, "extra": 2})
    (tmp_path / "docs").mkdir()
    (tmp_path / "train" / "a" / "x.jfif_").write_bytes(b"")
    (tmp_path / "train" / "a" / "y.txt").write_bytes(b"")
    for left_out in (load_images(str(tmp_path)).left_out, ImageFiles(tmp_path, image_size=4).left_out):
        assert left_out == ("1 folder ('extra')", "2 files (.jfif_, .txt)")


@pytest.mark.parametrize("test", [{"test": 3}, {"test/unknown": 3}])
def test_a_test_of_unknown_classes_has_no_labels(tmp_path, test):
    write(tmp_path, {"train/a": 2, "train/b": 2, **test})
    assert found(tmp_path) == (("a", "b"), [2, 2])
    assert found(tmp_path, "test") == (None, 3)


def test_a_class_that_training_lacks_is_refused(tmp_path):
    write(tmp_path, {"train/a": 2, "test/a": 1, "test/c": 1})
    for read in (lambda: load_images(str(tmp_path)), lambda: ImageFiles(tmp_path, image_size=4)):
        with pytest.raises(InputError, match=r"class (1 \()?'c'\)? has no images"):
            read()
    assert load_images(str(tmp_path), split="test").class_names == ("a", "c")
    assert len(load_images(str(tmp_path), labeled=False).images) == 2


SYSTEM = ["@eaDir", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found", ".ipynb_checkpoints", ".git", "#recycle"]


@pytest.mark.parametrize(
    *each_once(name=[*SYSTEM, "__pycache__", ".Trash-1000", "LOST+FOUND"], place=(".", "cat", "cat/deep", "test", "test/cat"))
)
def test_what_systems_leave_is_skipped_at_every_depth(tmp_path, name, place):
    write(tmp_path, {"train/cat": 20, "train/cat/deep": 2, "train/dog": 20, "test/cat": 1, "test/dog": 2})
    root = tmp_path if place.startswith("test") or place == "." else tmp_path / "train"
    write(root / place, {name: 3, f"{name}/cat": 2})
    (root / place / "._0.png").write_bytes(b"\0\5\x16\7" * 9)
    (root / place / "Thumbs.db").write_bytes(b"")
    assert found(tmp_path) == (("cat", "dog"), [22, 20])
    assert found(tmp_path, "test") == (("cat", "dog"), [1, 2])
    assert load_images(str(tmp_path)).left_out == ()


def test_what_systems_leave_beside_classes_is_no_class(tmp_path):
    write(tmp_path, {"cat": 20, "dog": 20, **dict.fromkeys(SYSTEM, 2)})
    assert ImageFiles(tmp_path, image_size=4).class_names == load_images(str(tmp_path)).class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("link", "target"),
    [("a/again", ".."), ("a/self", "self"), ("a/here", "."), ("a/x.png", "x.png"), ("a/gone", "nowhere"), ("b/to_a", "../a")],
)
def test_links_that_lead_back_or_nowhere_are_skipped(tmp_path, link, target):
    write(tmp_path, {"a": 10, "b": 10})
    if link == "b/to_a":
        (tmp_path / "a" / "to_b").symlink_to("../b")
    (tmp_path / link).symlink_to(target)
    names = ImageFolder().listed(tmp_path, "train").names
    assert ImageFolder().listed(tmp_path, "train").class_names == ("a", "b")
    # From each of two folders that lead to each other, the other one is read once.
    assert len(names) == (40 if link == "b/to_a" else 20)


def test_a_link_to_another_disk_is_followed(tmp_path):
    write(tmp_path / "disk", {"x": 3})
    write(tmp_path / "mine", {"a": 2})
    (tmp_path / "mine" / "b").symlink_to(tmp_path / "disk" / "x")
    assert ImageFiles(tmp_path / "mine", image_size=4).labels.tolist() == [0, 0, 1, 1, 1]


def test_a_folder_that_cannot_be_read_is_reported(tmp_path, monkeypatch):
    write(tmp_path, {"a": 2, "b": 2})

    def scandir(path, scan=os.scandir):
        if str(path).rstrip("/").endswith("b"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match=r"/b/?', which cannot be read \(Permission denied\): make it readable, or remove it"):
        ImageFiles(tmp_path, image_size=4)


def test_an_empty_class_is_refused_in_both(tmp_path):
    write(tmp_path, {"a": 20, "b": 20, "c": 0})
    with pytest.raises(InputError, match=r"class 2 \('c'\) has no images: add some"):
        load_images(str(tmp_path))
    with pytest.raises(InputError, match="class 'c' has no images: add some, or remove its folder"):
        ImageFiles(tmp_path, image_size=4)


def test_classes_of_sub_folders_alone_are_doubted(tmp_path):
    write(tmp_path / "mine", {"north/cats": 2, "north/dogs": 2, "south/cats": 2, "south/dogs": 2})
    for doubts in (load_images(str(tmp_path / "mine")).doubts, ImageFiles(tmp_path / "mine", image_size=4).doubts):
        assert len(doubts) == 1
        assert "classes 'north', 'south' hold no images but sub-folders ('cats', 'dogs')" in doubts[0]
        assert "--data" in doubts[0]
    # One folder in each class, as in tiny-imagenet, is usual.
    write(tmp_path / "usual", {"a/images": 2, "b/images": 2})
    assert ImageFiles(tmp_path / "usual", image_size=4).doubts == ()
    assert ImageFiles(tmp_path / "usual", image_size=4).class_names == ("a", "b")


def edm(root, labels, shards=2):
    """Write images as the EDM tools do: in numbered folders that are not classes."""
    names = [f"{index % shards:05d}/img{index:08d}.png" for index in range(len(labels) if labels else 20)]
    for index, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), index, np.uint8)).save(root / name)
    pairs = None if labels is None else [[name, label] for name, label in zip(names, labels, strict=True)]
    (root / "dataset.json").write_text(json.dumps({"labels": pairs}))
    return root


def test_dataset_json_says_the_classes(tmp_path):
    labels = [3 - index % 4 for index in range(40)]
    for root in (edm(tmp_path / "edm", labels), edm(tmp_path / "above" / "edm", labels).parent):
        assert ImageFiles(root, image_size=4).labels.bincount().tolist() == [10] * 4
        whole = [load_images(str(root), split=split) for split in ("train", "test")]
        assert whole[0].class_names == ("0", "1", "2", "3")
        for part in whole:
            assert [labels[value] for value in part.images[:, 0, 0, 0].tolist()] == part.labels.tolist()


def test_dataset_json_without_labels_has_no_classes(tmp_path):
    files, whole = ImageFiles(edm(tmp_path, None), image_size=4), load_images(str(tmp_path))
    assert (files.labels, len(files), whole.labels, len(whole.images)) == (None, 20, None, 18)


def test_dataset_json_of_another_kind_is_no_file_of_labels(tmp_path):
    write(tmp_path, {"a": 2, "b": 2})
    for content in ("{}", "[1]", '{"labels": {"0": "background"}}', '"text"'):
        (tmp_path / "dataset.json").write_text(content)
        assert ImageFiles(tmp_path, image_size=4).class_names == ("a", "b")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"labels": [["a/000.png", 0], ["../../etc/x.png", 1]]}', r"names '\.\./\.\./etc/x\.png', but that is not an image"),
        ('{"labels": [["a/gone.png", 0]]}', r"names 'a/gone\.png', but that is not an image in .*: bring it back, or take it out"),
        ('{"labels": [["a/000.png", 1.5]]}', r"class of 'a/000\.png' is 1\.5: write a whole number from 0, or a text"),
        ('{"labels": [["a/000.png", [0, 1]]]}', r"class of 'a/000\.png' is \[0, 1\]"),
        ('{"labels": [["a/000.png", -1]]}', r"class of 'a/000\.png' is -1"),
        ('{"labels": [["a/000.png", true]]}', r"class of 'a/000\.png' is true"),
        ('{"labels": ["a/000.png"]}', r"are not pairs of a file and its class"),
        ('{"labels": [["a/000.png", 0]', r"dataset\.json', which is truncated or corrupted"),
        ("[" * 100_000, r"dataset\.json', which is truncated or corrupted"),
        (b"\xff\xfe\x00", r"dataset\.json', which is truncated or corrupted"),
    ],
)
def test_bad_dataset_json_is_reported(tmp_path, content, message):
    write(tmp_path, {"a": 1})
    (tmp_path / "dataset.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    for read in (lambda: load_images(str(tmp_path)), lambda: ImageFiles(tmp_path, image_size=4)):
        with pytest.raises(InputError, match=message):
            read()


def rows_of(root, kind, rows):
    if kind == "metadata.jsonl":
        (root / kind).write_text("\n".join(map(json.dumps, rows)))
        return
    with (root / kind).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("kind", ["metadata.jsonl", "metadata.csv"])
@pytest.mark.parametrize("column", ["label", "class", "category"])
@pytest.mark.parametrize("where", ["in each split", "above the splits"])
def test_metadata_of_hugging_face_says_the_classes(tmp_path, kind, column, where):
    write(tmp_path, {"train": 4, "test": 2})
    train = [("000.png", "dog"), ("001.png", "cat"), ("002.png", "dog"), ("003.png", "cow, brown")]
    test = [("000.png", "dog"), ("001.png", "cow, brown")]
    if where == "in each split":
        for split, pairs in (("train", train), ("test", test)):
            rows_of(tmp_path / split, kind, [{"file_name": name, column: label} for name, label in pairs])
    else:
        pairs = [(f"train/{name}", label) for name, label in train] + [(f"test/{name}", label) for name, label in test]
        rows_of(tmp_path, kind, [{"file_name": name, column: label} for name, label in pairs])
    assert found(tmp_path) == (("cat", "cow, brown", "dog"), [1, 1, 2])
    assert found(tmp_path, "test") == (("cat", "cow, brown", "dog"), [0, 1, 1])
    assert load_images(str(tmp_path)).images[:, 0, 0, 0].tolist() == [1, 3, 0, 2]


@pytest.mark.parametrize("kind", ["metadata.jsonl", "metadata.csv"])
def test_columns_of_metadata_are_chosen_as_in_other_tables(tmp_path, kind):
    write(tmp_path, {".": 2})
    rows_of(tmp_path, kind, [{"file_name": f"00{index}.png", "category": "x", "Label": "ab"[index]} for index in range(2)])
    listed = ImageFiles(tmp_path, image_size=4)
    assert (listed.class_names, listed.labels.tolist()) == (("a", "b"), [0, 1])
    assert listed.left_out == ("the column 'category' (classes are those of 'Label')",)


@pytest.mark.parametrize("kind", ["metadata.jsonl", "metadata.csv", "dataset.json"])
def test_an_image_has_one_class_in_a_table(tmp_path, kind):
    write(tmp_path, {"a": 2})

    def pairs(*labels):
        names = ["a/000.png", "a/001.png", "a/./000.png"]
        if kind == "dataset.json":
            (tmp_path / kind).write_text(json.dumps({"labels": list(zip(names, labels, strict=True))}))
        else:
            rows_of(tmp_path, kind, [{"file_name": name, "label": label} for name, label in zip(names, labels, strict=True)])

    pairs("cat", "dog", "cat")
    assert found(tmp_path) == (("cat", "dog"), [1, 1])
    pairs("cat", "dog", "cow")
    for read in (lambda: load_images(str(tmp_path)), lambda: ImageFiles(tmp_path, image_size=4)):
        with pytest.raises(InputError, match=rf"{kind}', where 'a/\./000\.png' is of the classes 'cat' and 'cow': keep one line"):
            read()


def test_numbers_in_metadata_may_have_gaps(tmp_path):
    write(tmp_path, {".": 20})
    rows_of(tmp_path, "metadata.csv", [{"file_name": f"{index:03d}.png", "label": (2, 10**12)[index % 2]} for index in range(19)])
    listed = ImageFiles(tmp_path, image_size=4)
    assert (listed.class_names, listed.labels.bincount().tolist()) == (("2", str(10**12)), [10, 9])
    assert listed.left_out == ("1 image not in metadata.csv",)


def test_metadata_without_classes_leaves_them_to_the_folders(tmp_path):
    write(tmp_path, {"a": 2, "b": 2})
    rows_of(tmp_path, "metadata.jsonl", [{"file_name": "a/000.png", "text": "a cat"}])
    listed = ImageFiles(tmp_path, image_size=4)
    assert listed.class_names == ("a", "b")
    assert "'metadata.jsonl' has no classes, because its columns are file_name, text" in listed.doubts[0]


def test_fingerprint_of_labels_from_a_file_tells_them_apart(tmp_path):
    before = ImageFiles(edm(tmp_path, [0, 1, 1, 0]), image_size=4).fingerprint()
    assert ImageFiles(edm(tmp_path, [0, 1, 0, 1]), image_size=4).fingerprint() != before
    assert ImageFiles(edm(tmp_path, [0, 1, 1, 0]), image_size=4).fingerprint() == before
