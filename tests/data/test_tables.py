"""Tables of encoded images: parquet of any name and place, folders and objects of the `datasets` library, and what they name."""

import json
import os

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from drifting.data.images import load_images
from drifting.errors import InputError
from tests.data.test_readers import png


def numbers(found):
    return found.images[:, 0, 0, 0].tolist()


def gray(value, size=4):
    return np.full((size, size), value, np.uint8)


def write_images(folder, values):
    folder.mkdir(parents=True, exist_ok=True)
    for value in values:
        Image.fromarray(gray(value)).save(folder / f"{value}.png")


def write_table(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    count = len(next(iter(columns.values())))
    rows = [{"bytes": png(gray(index)), "path": None} for index in range(count)]
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


def test_first_of_several_label_columns_is_taken_and_reported(tmp_path):
    for suffix in ("", ".gz"):
        columns = {"coarse_label": [0, 0, 0, 1], "category": ["x"] * 4, "fine_label": [3, 2, 1, 0]}
        write_table(tmp_path / f"train{suffix}.parquet", **columns)
        write_table(tmp_path / f"test{suffix}.parquet", **columns)
    found = load_images(str(tmp_path / "train.parquet"), labeled=False)
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


def test_pointers_of_git_lfs_are_recognized(tmp_path):
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
    images = [Image.fromarray(gray(value)) for value in values]
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
