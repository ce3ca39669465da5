import hashlib
import io
import os

import numpy as np
import pytest
import torch
from PIL import Image

from drifting.data.image_folder import ImageFiles
from drifting.data.images import load_images
from drifting.errors import InputError
from tests.support.image_folders import write_images


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path / "train", {"n02": 3, "n01": 2, "n03": 1}, size=12, channels=3)
    write_images(tmp_path / "val", {"n03": 2}, size=12, channels=3, seed=1)
    return tmp_path


def test_images_are_those_that_are_read_into_memory_in_any_order(folder):
    write_images(folder / "test", {"n01": 1}, channels=3)  # so that "train" is all of train/
    files, whole = ImageFiles(folder, image_size=8), load_images(str(folder), image_size=8)
    assert len(files) == 6
    assert files.class_names == ("n01", "n02", "n03")
    assert files.labels.tolist() == whole.labels.tolist() == [0, 0, 1, 1, 1, 2]
    order = torch.tensor([5, 0, 3, 3])
    read = files.read(order)
    assert read.dtype == torch.uint8
    assert torch.equal(read, whole.images[order])


def test_classes_have_the_same_numbers_in_every_split(folder):
    files = ImageFiles(folder, image_size=8, split="val")
    assert (len(files), files.labels.tolist(), len(files.class_names)) == (2, [2, 2], 3)
    assert files.fingerprint() != ImageFiles(folder, image_size=8).fingerprint()


def test_folder_without_splits_or_classes(tmp_path):
    write_images(tmp_path, {".": 3})
    files = ImageFiles(tmp_path, image_size=8)
    assert (files.labels, files.class_names) == (None, None)
    gray = files.read(torch.arange(3))
    assert gray.shape == (3, 3, 8, 8)
    assert torch.equal(gray[:, 0], gray[:, 2])


def test_center_of_an_oblong_image_is_kept(tmp_path):
    (tmp_path / "a").mkdir()
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, 4:8] = 200
    Image.fromarray(wide).save(tmp_path / "a" / "0.png")
    assert ImageFiles(tmp_path, image_size=2).read(torch.tensor([0])).unique().tolist() == [200]


def test_fingerprint_is_of_names_and_sizes(folder):
    before = ImageFiles(folder, image_size=8).fingerprint()
    first = folder / "train" / "n01" / "000.png"
    os.utime(first, (0, 0))
    assert ImageFiles(folder, image_size=8).fingerprint() == before
    first.rename(folder / "train" / "n01" / "first.png")
    renamed = ImageFiles(folder, image_size=8).fingerprint()
    with (folder / "train" / "n01" / "first.png").open("ab") as file:
        file.write(b"more")
    assert len({before, renamed, ImageFiles(folder, image_size=8).fingerprint()}) == 3


def test_fingerprint_of_earlier_versions_is_of_the_names(folder):
    files = ImageFiles(folder, image_size=8)
    names = ["train", *(f"n0{label}/{name:03d}.png" for label, count in ((1, 2), (2, 3), (3, 1)) for name in range(count))]
    earlier = hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
    assert files.names_fingerprint() == earlier != files.fingerprint()


def test_no_image_is_opened_before_it_is_read_and_a_damaged_one_is_named(folder):
    (folder / "train" / "n01" / "001.png").write_bytes(b"no image")
    files = ImageFiles(folder, image_size=8)
    files.read(torch.tensor([0, 2]))
    with pytest.raises(
        InputError, match=r"train/n01/001\.png', which is truncated or corrupted .*: fetch or write that file again"
    ):
        files.read(torch.tensor([2, 1]))


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda folder: folder / "nowhere", {}, r"nowhere', which does not exist: pass a folder of images"),
        (lambda folder: folder / ("a" * 300), {}, r"a', which does not exist: pass a folder of images"),
        (lambda folder: folder / "train" / "n01" / "000.png", {}, r"000\.png', which is not a folder"),
        (lambda folder: folder, {"image_size": 0}, "image_size is 0: pass 1 or more"),
        (lambda folder: folder, {"split": "test"}, "split is 'test', but data '.*' has train, val: pass one of those"),
        (lambda folder: (folder / "train" / "n00").mkdir() or folder, {}, "where class 'n00' has no images: add some, or remove"),
        (lambda folder: (folder / "a").mkdir() or folder / "a", {}, "a', whose split 'train' holds no images: add some"),
    ],
)
def test_bad_folder_is_reported(folder, change, options, message):
    with pytest.raises(InputError, match=message):
        ImageFiles(change(folder), **{"image_size": 8, **options})


def test_listing_looks_at_no_file(folder, monkeypatch):
    looked = []
    monkeypatch.setattr(
        os, "stat", lambda path, *arguments, stat=os.stat, **named: looked.append(path) or stat(path, *arguments, **named)
    )
    ImageFiles(folder, image_size=8)
    assert [path for path in looked if str(path).endswith(".png")] == []


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_no_damaged_byte_of_a_tiff_ends_in_another_error(tmp_path):
    content, read = io.BytesIO(), []
    Image.fromarray(np.arange(1800, dtype=np.uint32).astype(np.uint8).reshape(20, 30, 3)).save(content, format="TIFF")
    path, whole, refused = tmp_path / "x.tif", content.getvalue(), []
    # The header and the types of its tags, whose values the reader trusts.
    for place in range(8, 140):
        path.write_bytes(whole[:place] + b"\2" + whole[place + 1 :])
        try:
            read.append(ImageFiles(tmp_path, image_size=8).read(torch.tensor([0])).shape)
        except InputError as error:
            refused.append(str(error))
    assert set(read) == {(1, 3, 8, 8)}
    assert refused
    assert all("x.tif" in message for message in refused)


def test_sizes_that_no_memory_holds_are_refused_before_anything_is_listed(tmp_path):
    with pytest.raises(
        InputError, match=r"image_size is 10000000, at which one image need .* GiB of memory, .* smaller --image-size"
    ):
        ImageFiles(tmp_path / "never listed", image_size=10**7)
