"""Each layout is written small, read back, and damaged."""

import gzip
import io
import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from drifting.data.images import load_images
from drifting.data.readers import by_number
from drifting.errors import InputError

NAMES = ("ant", "bee", "cat")


def pixels(count, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return buffer.getvalue()


def write_parquet(path, images, labels, image="image", label="label", names=NAMES):
    path.parent.mkdir(parents=True, exist_ok=True)
    column = pa.array(
        [{"bytes": png(array), "path": None} for array in images], pa.struct({"bytes": pa.binary(), "path": pa.string()})
    )
    columns = {"id": pa.array(range(len(images))), image: column}
    columns |= {} if labels is None else {label: pa.array(labels)}
    features = {image: {"_type": "Image"}, label: {"names": list(names or ()), "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata if names else None), path)


def write_idx(path, array, compress=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if compress else content)


def write_mnist(folder, suffix=".gz", dot="-"):
    for stem, count in (("train", 6), ("t10k", 3)):
        write_idx(folder / f"{stem}-images{dot}idx3-ubyte{suffix}", pixels(count, 5, 5), suffix == ".gz")
        write_idx(folder / f"{stem}-labels{dot}idx1-ubyte{suffix}", np.arange(count) % 3, suffix == ".gz")
    return folder


def write_cifar_py(folder, protocol=2, as_bytes=True):
    folder.mkdir(parents=True)
    key = (lambda name: name.encode()) if as_bytes else str
    for index, name in enumerate(("data_batch_1", "data_batch_2", "test_batch")):
        content = {key("data"): pixels(4, 3072, seed=index), key("labels"): [0, 1, 2, 1]}
        (folder / name).write_bytes(pickle.dumps(content, protocol))
    (folder / "batches.meta").write_bytes(pickle.dumps({key("label_names"): [name.encode() for name in NAMES]}, protocol))
    return folder


def write_cifar_bin(folder):
    folder.mkdir(parents=True)
    for index, name in enumerate(("data_batch_1.bin", "data_batch_2.bin", "test_batch.bin")):
        records = np.concatenate([np.array([[0], [1], [2], [1]], np.uint8), pixels(4, 3072, seed=index)], 1)
        (folder / name).write_bytes(records.tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    return folder


def write_folder(folder, counts, **kind):
    for index, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number, array in enumerate(pixels(count, 4, 4, seed=index, **kind)):
            Image.fromarray(array).save(folder / name / f"{number}.png")
    return folder


@pytest.mark.parametrize("below", [".", "data"])
@pytest.mark.parametrize(("image", "label"), [("image", "label"), ("img", "fine_label"), ("picture", "labels")])
def test_parquet_keeps_every_pixel_label_and_name(tmp_path, below, image, label):
    train, test = pixels(5, 6, 6, 3), pixels(3, 6, 6, 3, seed=1)
    write_parquet(tmp_path / below / "train-00000-of-00002.parquet", train[:3], [0, 1, 2], image, label)
    write_parquet(tmp_path / below / "train-00001-of-00002.parquet", train[3:], [1, 0], image, label)
    write_parquet(tmp_path / below / "test-00000-of-00001.parquet", test, [0, 1, 2], image, label)
    found = load_images(str(tmp_path))
    assert torch.equal(found.images, torch.from_numpy(train).movedim(-1, 1))
    assert found.labels.tolist() == [0, 1, 2, 1, 0]
    assert found.class_names == NAMES
    assert torch.equal(load_images(str(tmp_path), split="test").images, torch.from_numpy(test).movedim(-1, 1))


def test_parquet_without_labels_or_metadata(tmp_path):
    write_parquet(tmp_path / "train.parquet", pixels(20, 4, 4), None)
    found = load_images(str(tmp_path))
    assert (found.labels, found.class_names, found.num_classes, found.image_shape) == (None, None, None, (1, 4, 4))
    write_parquet(tmp_path / "train.parquet", pixels(20, 4, 4), [0, 1] * 10, names=None)
    found = load_images(str(tmp_path))
    assert (found.class_names, found.num_classes) == (None, 2)


def test_damaged_parquet_is_named(tmp_path):
    path = tmp_path / "train-00000-of-00001.parquet"
    write_parquet(path, pixels(20, 4, 4), None)
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"hello", content[:40] + b"\0" * 200 + content[240:]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"train-00000-of-00001\.parquet(, row \d+)?', which is truncated or corrupted"):
            load_images(str(tmp_path))


def test_missing_shard_is_noticed(tmp_path):
    write_parquet(tmp_path / "train-00000-of-00002.parquet", pixels(20, 4, 4), None)
    with pytest.raises(InputError, match="1 of the 2 files"):
        load_images(str(tmp_path))


@pytest.mark.parametrize(
    ("labels", "message"), [(["a", None] * 10, "is string with 10 gaps"), ([None] + [0] * 19, "1 gaps"), ([0.5] * 20, "is double")]
)
def test_labels_that_are_no_classes_are_refused(tmp_path, labels, message):
    write_parquet(tmp_path / "train-0.parquet", pixels(20, 4, 4), labels)
    with pytest.raises(InputError, match=f"column 'label' .*{message}.*store integers"):
        load_images(str(tmp_path))


def test_parquet_without_images_is_refused(tmp_path):
    pq.write_table(pa.table({"text": ["a"], "label": [0]}), tmp_path / "train-0.parquet")
    with pytest.raises(InputError, match="columns are text, label: name the one"):
        load_images(str(tmp_path))
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({"image": pa.array([{"bytes": None, "path": None}], kind)}), tmp_path / "train-0.parquet")
    with pytest.raises(InputError, match="row 0', which has no image"):
        load_images(str(tmp_path))


@pytest.mark.parametrize("suffix", [".gz", ""])
@pytest.mark.parametrize("dot", ["-", "."])
def test_idx_keeps_every_pixel_and_label(tmp_path, suffix, dot):
    write_mnist(tmp_path, suffix, dot)
    for split, count in (("train", 6), ("test", 3)):
        found = load_images(str(tmp_path), split=split)
        assert torch.equal(found.images, torch.from_numpy(pixels(count, 5, 5))[:, None])
        assert found.labels.tolist() == [index % 3 for index in range(count)]


def test_idx_without_labels_is_unlabeled(tmp_path):
    (write_mnist(tmp_path) / "train-labels-idx1-ubyte.gz").unlink()
    assert load_images(str(tmp_path)).labels is None


@pytest.mark.parametrize(
    "content", [b"", b"hello", gzip.compress(b"\0\0", mtime=0), gzip.compress(b"\0\0\x08\x01" + b"\0" * 40, mtime=0)]
)
def test_damaged_idx_is_named(tmp_path, content):
    path = write_mnist(tmp_path) / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for damaged in (content, whole[:-9], whole[:30] + b"\xff" * 9 + whole[39:]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"train-images-idx3-ubyte\.gz', which is truncated or corrupted"):
            load_images(str(tmp_path))


def test_idx_files_that_do_not_belong_together_are_refused(tmp_path):
    write_idx(write_mnist(tmp_path) / "train-labels-idx1-ubyte.gz", np.arange(4) % 3)
    with pytest.raises(InputError, match="4 labels for 6 images"):
        load_images(str(tmp_path))
    write_idx(tmp_path / "train-images-idx3-ubyte", pixels(4, 5, 5), compress=False)
    (tmp_path / "train-images-idx3-ubyte").write_bytes((tmp_path / "train-images-idx3-ubyte").read_bytes()[:-1])
    with pytest.raises(InputError, match="99 values, but its header declares 100"):
        load_images(str(tmp_path))


@pytest.mark.parametrize("write", [write_cifar_py, write_cifar_bin])
@pytest.mark.parametrize("inside", [True, False])
def test_cifar_keeps_every_pixel_label_and_name(tmp_path, write, inside):
    form = {write_cifar_py: "cifar-10-batches-py", write_cifar_bin: "cifar-10-batches-bin"}[write]
    write(tmp_path / form)
    folder = str(tmp_path / form if inside else tmp_path)
    found = load_images(folder)
    expected = np.concatenate([pixels(4, 3072, seed=seed) for seed in (0, 1)]).reshape(8, 3, 32, 32)
    assert torch.equal(found.images, torch.from_numpy(expected))
    assert found.labels.tolist() == [0, 1, 2, 1] * 2
    assert found.class_names == NAMES
    assert load_images(folder, split="test").labels.tolist() == [0, 1, 2, 1]


@pytest.mark.parametrize(("protocol", "as_bytes"), [(0, True), (2, False), (4, True), (5, False)])
def test_cifar_pickles_of_any_protocol_are_read(tmp_path, protocol, as_bytes):
    found = load_images(str(write_cifar_py(tmp_path / "batches", protocol, as_bytes)))
    assert (len(found.images), found.class_names) == (8, NAMES)


class _Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


class _Evaluated(_Malicious):
    def __reduce__(self):
        return eval, (f"open({str(self.path)!r}, 'w')",)


@pytest.mark.parametrize("kind", [_Malicious, _Evaluated])
@pytest.mark.parametrize("name", ["data_batch_2", "batches.meta"])
def test_malicious_pickle_does_not_run(tmp_path, kind, name):
    batches, trap = write_cifar_py(tmp_path / "batches"), tmp_path / "trap"
    (batches / name).write_bytes(pickle.dumps({b"data": kind(trap), b"label_names": NAMES}))
    with pytest.raises(InputError, match=rf"{name}', which is not read because it asks for .*, which is code"):
        load_images(str(batches))
    assert not trap.exists()
    pickle.loads((batches / name).read_bytes())
    assert trap.exists()  # so the pickle was dangerous


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        pickle.dumps([1]),
        pickle.dumps({b"data": pixels(4, 3072)}),
        pickle.dumps({b"data": pixels(4, 3072), b"labels": [0]}),
        pickle.dumps({b"data": pixels(4, 3071), b"labels": [0] * 4}),
        pickle.dumps({b"data": pixels(4, 3072), b"labels": [0] * 4})[:-5000],
    ],
    ids=["empty", "text", "list", "no labels", "few labels", "short rows", "truncated"],
)
def test_damaged_cifar_pickle_is_named(tmp_path, content):
    batches = write_cifar_py(tmp_path / "batches")
    (batches / "data_batch_2").write_bytes(content)
    with pytest.raises(InputError, match="data_batch_2', which is truncated or corrupted"):
        load_images(str(batches))


def test_truncated_cifar_records_are_named(tmp_path):
    path = write_cifar_bin(tmp_path / "batches") / "data_batch_1.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"data_batch_1\.bin', which is truncated or corrupted \(12291 bytes"):
        load_images(str(path.parent))


def test_folders_of_classes_are_numbered_by_name_in_every_split(tmp_path):
    write_folder(tmp_path / "train", {"bee": 2, "ant": 1, "cat": 2})
    write_folder(tmp_path / "test", {"cat": 1, "bee": 1})
    (tmp_path / "train" / "ant" / "._0.png").write_bytes(b"junk of macOS")
    (tmp_path / "train" / "ant" / "notes.txt").write_text("no image")
    train, test = load_images(str(tmp_path)), load_images(str(tmp_path), split="test")
    assert (train.class_names, test.class_names) == (NAMES, NAMES)
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1, 1, 2, 2], [1, 2])
    assert torch.equal(train.images[1:3, 0], torch.from_numpy(pixels(2, 4, 4)))


def test_numbers_of_any_length_sort_by_their_value():
    names = ["-1" + "0" * 5000, "-" + "9" * 5000, "-9", "0", "\u0663", "07", "10", "2" * 5000, "1" * 5001, "a9", "a" + "1" * 5000]
    assert sorted(reversed(names), key=by_number) == names


def test_class_without_images_is_named(tmp_path):
    write_folder(tmp_path, {"ant": 9, "bee": 0, "cat": 9})
    with pytest.raises(InputError, match=r"class 1 \('bee'\) has no images"):
        load_images(str(tmp_path))


def test_flat_folder_has_no_labels_and_classes_beside_images_are_refused(tmp_path):
    write_folder(tmp_path, {".": 20})
    assert load_images(str(tmp_path)).labels is None
    write_folder(tmp_path, {"ant": 1})
    with pytest.raises(InputError, match=r"0\.png' beside folders of classes"):
        load_images(str(tmp_path))


def test_damaged_image_files_are_named(tmp_path):
    write_folder(tmp_path / "train", {"ant": 3})
    write_folder(tmp_path / "test", {"ant": 3})
    path = tmp_path / "train" / "ant" / "1.png"
    whole = path.read_bytes()
    for damaged in (b"", b"hello", whole[:20], whole[:45], whole[:44] + b"\xff" * 6 + whole[50:]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"ant/1\.png', which is truncated or corrupted"):
            load_images(str(tmp_path))
