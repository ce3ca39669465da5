"""Images and labels in arrays of numpy: which array is what, which axis, which range of values; and no more than is declared."""

import re
import zipfile

import numpy as np
import pytest
import torch

from drifting.data.images import load_images
from drifting.errors import InputError

RNG = np.random.default_rng(0)
COLOR = RNG.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
GRAY = RNG.integers(0, 256, (20, 8, 8), dtype=np.uint8)
LABELS = np.arange(20) % 4
EXPECTED = torch.from_numpy(COLOR).movedim(-1, 1)


def saved(path, array):
    np.save(path, array)
    return str(path)


def everything(source, **options):
    """Return the images and labels of train and of the tenth that is held out, sorted by their first pixels."""
    parts = [load_images(source, split=split, **options) for split in ("train", "test")]
    images = torch.cat([part.images for part in parts])
    labels = None if parts[0].labels is None else torch.cat([part.labels for part in parts])
    order = sorted(range(len(images)), key=lambda index: images[index].flatten().tolist())
    return images[order], None if labels is None else labels[order].tolist(), parts[0]


def in_order(images, labels=LABELS):
    order = sorted(range(len(images)), key=lambda index: images[index].flatten().tolist())
    return images[order], labels[order].tolist()


@pytest.mark.parametrize(
    "names", [("arr_0", "arr_1"), ("images", "labels"), ("x", "y"), ("X_train", "y_train"), ("data", "target")]
)
@pytest.mark.parametrize("column", [False, True])
def test_images_and_labels_by_their_usual_names(tmp_path, names, column):
    labels = LABELS[:, None] if column else LABELS
    np.savez_compressed(tmp_path / "set.npz", **dict(zip(names, (COLOR, labels), strict=True)))
    for source in (tmp_path / "set.npz", tmp_path):
        images, found, _ = everything(str(source))
        expected, wanted = in_order(EXPECTED)
        assert torch.equal(images, expected)
        assert found == wanted


def test_files_of_medmnist_and_keras(tmp_path):
    medical = {f"{split}_images": COLOR[:count] for split, count in (("train", 8), ("val", 4), ("test", 6))}
    medical |= {name.replace("images", "labels"): LABELS[: len(array), None] for name, array in medical.items()}
    np.savez_compressed(tmp_path / "medmnist.npz", **medical)
    np.savez(tmp_path / "mnist.npz", x_train=GRAY[:8], y_train=LABELS[:8], x_test=GRAY[:6], y_test=LABELS[:6])
    for name in ("medmnist", "mnist"):
        train, test = (load_images(str(tmp_path / f"{name}.npz"), split=split) for split in ("train", "test"))
        assert (len(train.images), len(test.images)) == (8, 6)
        assert train.labels.tolist() == [0, 1, 2, 3] * 2
    assert len(load_images(str(tmp_path / "medmnist.npz"), split="val").images) == 4
    with pytest.raises(InputError, match=r"holds '.*medmnist\.npz' and '.*mnist\.npz': pass the file that is meant"):
        load_images(str(tmp_path))


def test_npy_files_of_a_folder_are_recognized_by_their_names(tmp_path):
    saved(tmp_path / "train_images.npy", COLOR)
    saved(tmp_path / "train_labels.npy", np.array(["dog", "cat"] * 10))
    saved(tmp_path / "test_images.npy", COLOR[:2])
    saved(tmp_path / "test_labels.npy", np.array(["dog", "cat"]))
    saved(tmp_path / "mean.npy", np.zeros(3))
    train, test = (load_images(str(tmp_path), split=split) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("cat", "dog")
    assert (train.labels.tolist(), test.labels.tolist()) == ([1, 0] * 10, [1, 0])
    assert torch.equal(train.images, EXPECTED)
    assert train.left_out == ("the array 'mean'",)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (COLOR, EXPECTED),
        (np.moveaxis(COLOR, -1, 1), EXPECTED),
        (GRAY, torch.from_numpy(GRAY)[:, None]),
        (GRAY[:, None], torch.from_numpy(GRAY)[:, None]),
        (GRAY[..., None], torch.from_numpy(GRAY)[:, None]),
        (np.asfortranarray(COLOR), EXPECTED),
        (COLOR.astype(np.int64), EXPECTED),
        (COLOR.astype(np.float32), EXPECTED),
        (COLOR / np.float32(255), EXPECTED),
        (COLOR / 255, EXPECTED),
        ((COLOR / np.float32(127.5) - 1), EXPECTED),
        (GRAY > 127, 255 * torch.from_numpy(GRAY > 127)[:, None].to(torch.uint8)),
    ],
)
def test_axes_and_ranges_of_images(tmp_path, array, expected):
    images, labels, _ = everything(saved(tmp_path / "any.npy", array))
    assert torch.equal(images, in_order(expected)[0])
    assert labels is None


@pytest.mark.parametrize(
    ("array", "said"),
    [(COLOR / 255.0, r"from 0 to 1 and are read as \[0, 1\]"), (COLOR / 127.5 - 1, r"from -1 to 1 and are read as \[-1, 1\]")],
)
def test_how_floats_were_read_is_reported(tmp_path, array, said):
    *_, part = everything(saved(tmp_path / "x.npy", array))
    assert len(part.doubts) == 1
    assert re.search(said, part.doubts[0])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (COLOR / 255.0 - 0.1, "from -0.1 to 0.9: save images as uint8 from 0 to 255, or as floats"),
        (COLOR / 255.0 * 0.3, "from 0 to 0.3: save"),
        (COLOR / 255.0 * 2, "from 0 to 2: save"),
        (COLOR.astype(np.int16) * 4, "from 0 to 1020: save"),
        (COLOR.astype(np.int16) - 9, "from -9 to 246: save"),
        ((COLOR > 127).astype(np.int32), "from 0 to 1: save"),
        ((COLOR > 127).astype(np.uint8), "from 0 to 1: save images as uint8 from 0 to 255"),
        (np.where(COLOR > 3, np.nan, 1.0), "from nan to nan: save"),
        (np.where(COLOR > 3, np.inf, 1.0), "to inf: save"),
        (COLOR[:, :3], r"\[20, 3, 8, 3\], which may be \[n, h, w, c\] or \[n, c, h, w\]"),
        (COLOR[0], r"shape \[8, 8, 3\]: save images as \[n, h, w, c\]"),
        (COLOR[..., :2], r"\[20, 8, 8, 2\], which has neither 1 nor 3 channels"),
        (COLOR.reshape(20, -1), r"shape \[20, 192\]: save"),
        (COLOR[:0], r"shape \[0, 8, 8, 3\]"),
        (GRAY[:0].astype(np.float32), r"shape \[0, 8, 8\]: save"),
        (GRAY[:, :0], r"shape \[20, 0, 8\]: save"),
        (np.array(["a", "b"]), "are not numbers: save"),
        (COLOR.astype(complex), "of complex128, which are not numbers"),
        (np.array([{}, {}], dtype=object), "of object, which are not numbers"),
    ],
)
def test_ambiguous_and_other_arrays_are_refused(tmp_path, array, message):
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    with pytest.raises(InputError, match=message):
        load_images(str(tmp_path / "x.npy"))


def test_labels_of_other_forms(tmp_path):
    one_hot = np.eye(4)[LABELS]
    for labels in (one_hot, one_hot.astype(bool), LABELS.astype(float), LABELS.astype(np.uint8)):
        np.savez(tmp_path / "x.npz", images=COLOR, labels=labels)
        assert everything(str(tmp_path / "x.npz"))[1] == in_order(EXPECTED)[1]
    for labels, said in ((np.ones((20, 3)), r"shape \[20, 3\], not one class for each"), (LABELS + 0.5, "not whole numbers")):
        np.savez(tmp_path / "x.npz", images=COLOR, labels=labels)
        found = load_images(str(tmp_path / "x.npz"))
        assert found.labels is None
        with pytest.raises(InputError, match="has no labels"):
            load_images(str(tmp_path / "x.npz"), labeled=True)
        assert re.search(said, found.doubts[0])
    for labels, message in ((LABELS[:5], "5 labels for 20 images"), (np.float64(3), "1 labels for 20 images")):
        np.savez(tmp_path / "x.npz", images=COLOR, labels=labels)
        with pytest.raises(InputError, match=message):
            load_images(str(tmp_path / "x.npz"))
    np.savez(tmp_path / "x.npz", images=COLOR, labels=np.where(LABELS == 1, 10**12, LABELS))
    with pytest.raises(InputError, match="has the label 1000000000000"):
        load_images(str(tmp_path / "x.npz"))


def test_labels_of_bytes_are_texts_of_any_encoding(tmp_path):
    np.savez(tmp_path / "x.npz", images=COLOR, labels=np.array(["k\u00fch".encode(), b"k\xfch", b"k\xe9h", b"dog"] * 5))
    found = load_images(str(tmp_path / "x.npz"))
    assert found.class_names == ("dog", "k\\xe9h", "k\\xfch", "k\u00fch")
    assert everything(str(tmp_path / "x.npz"))[1] == in_order(EXPECTED, np.array([3, 2, 1, 0] * 5))[1]


def test_names_of_classes_or_files_are_neither_labels_nor_images(tmp_path):
    np.savez(tmp_path / "x.npz", images=COLOR, labels=LABELS, class_names=np.array(list("abcd")), imageNames=np.array(["x"] * 20))
    found = load_images(str(tmp_path / "x.npz"))
    assert everything(str(tmp_path / "x.npz"))[1] == in_order(EXPECTED)[1]
    assert found.left_out == ("the array 'class_names'", "the array 'imageNames'")


def test_names_that_tell_nothing_or_too_much_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", first=COLOR, second=LABELS)
    with pytest.raises(InputError, match="whose arrays are first, second: name them images and labels"):
        load_images(str(tmp_path / "x.npz"))
    np.savez(tmp_path / "x.npz", train_images=COLOR, images=COLOR)
    with pytest.raises(InputError, match="may both be the images of 'train': rename"):
        load_images(str(tmp_path / "x.npz"))


def header(shape, descr="|u1", order="False"):
    text = f"{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}"
    text = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", header((20, 8, 8))[:40], header((20, 8, 8)) + b"\0" * 9, header((10**6, 10**6, 99)), header((-1, 8, 8))],
    ids=["empty", "text", "half a head", "short", "giant", "negative"],
)
def test_damaged_arrays_are_named_before_memory_is_asked_for(tmp_path, content):
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.npy', which is truncated or corrupted"):
        load_images(str(tmp_path / "x.npy"))
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as packed:
        packed.writestr("images.npy", content)
    with pytest.raises(InputError, match=r"x\.npz, images\.npy', which is truncated or corrupted"):
        load_images(str(tmp_path / "x.npz"))
    (tmp_path / "y.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"y\.npz', which is truncated or corrupted"):
        load_images(str(tmp_path / "y.npz"))


def test_arrays_larger_than_memory_are_refused_by_what_they_declare(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "bomb.npz", images=np.zeros((500, 100, 100), np.uint8))
    assert (tmp_path / "bomb.npz").stat().st_size < 10_000
    monkeypatch.setattr("drifting._checks.available_memory", lambda: 10**6)
    with pytest.raises(InputError, match=r"images\.npy', whose 5,000,000 bytes need .*: save fewer images"):
        load_images(str(tmp_path / "bomb.npz"))


def test_pickles_in_arrays_do_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return open, (str(tmp_path / "trap"), "w")

    np.savez(tmp_path / "x.npz", images=np.array([Trap()], dtype=object))
    with pytest.raises(InputError, match="of object, which are not numbers"):
        load_images(str(tmp_path / "x.npz"))
    assert not (tmp_path / "trap").exists()
