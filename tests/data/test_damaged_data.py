"""Damaged data of every layout end in one sentence: a small seeded fuzz, and what it once found."""

import datasets
import numpy as np
import pytest

from drifting.data.images import load_images
from drifting.errors import InputError
from tests.data.test_data_layouts import birds, tiny, zipped
from tests.data.test_readers import write_cifar_bin, write_cifar_py, write_mnist
from tests.data.test_tables import library_set, write_table

MUTANTS = 6


def write_saved(folder):
    datasets.disable_progress_bars()
    datasets.DatasetDict(train=library_set(range(8)), test=library_set(range(4))).save_to_disk(folder)


def write_arrays(folder):
    folder.mkdir()
    np.savez(folder / "a.npz", images=np.zeros((20, 8, 8), np.uint8), labels=np.arange(20) % 2)


def write_archive(folder):
    birds(folder / "inside")
    zipped(folder / "inside", folder / "a.zip")


def refusal(source, split):
    try:
        load_images(str(source), split=split)
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("write", "names", "source"),
    [
        (lambda folder: write_table(folder / "train.parquet", label=["a", "b"] * 10), ["train.parquet"], "."),
        (write_saved, ["dataset_dict.json", "train/state.json", "train/data-00000-of-00001.arrow"], "."),
        (write_mnist, ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"], "."),
        (write_cifar_py, ["data_batch_1", "batches.meta"], "."),
        (write_cifar_bin, ["data_batch_1.bin", "batches.meta.txt"], "."),
        (tiny, ["val/val_annotations.txt"], "."),
        (birds, ["images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt"], "."),
        (write_arrays, ["a.npz"], "."),
        (write_archive, ["a.zip"], "a.zip"),
    ],
    ids=["parquet", "saved", "idx", "cifar py", "cifar bin", "tiny", "birds", "arrays", "archive"],
)
def test_damaged_files_end_in_one_sentence(tmp_path, write, names, source):
    write(tmp_path / "set")
    chance = np.random.default_rng(0)
    for name in names:
        path = tmp_path / "set" / name
        whole = path.read_bytes()
        for _ in range(MUTANTS):
            bent = bytearray(whole)
            for _ in range(int(chance.integers(1, 5))):
                start = chance.choice([0, max(0, len(bent) - 200)])
                bent[int(chance.integers(start, min(len(bent), start + 200)))] = int(chance.integers(256))
            path.write_bytes(bent if chance.random() < 0.8 else bent[: int(chance.integers(len(bent)))])
            sentences = [said for split in ("train", "test") if (said := refusal(tmp_path / "set" / source, split))]
            assert all("\n" not in line and len(line) <= 300 + len(str(tmp_path)) for line in sentences)
        path.write_bytes(whole)
        load_images(str(tmp_path / "set" / source))


def test_damaged_offsets_of_arrow_are_not_followed(tmp_path):
    write_saved(tmp_path / "set")
    path = tmp_path / "set" / "train" / "data-00000-of-00001.arrow"
    whole = path.read_bytes()
    sizes = np.array([len(image["bytes"]) for image in library_set(range(8)).with_format("arrow")[:]["image"].to_pylist()])
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype("<i4").tobytes()
    assert whole.count(offsets) == 1
    path.write_bytes(whole.replace(offsets, offsets[:8] + b"\xff\xff\xff\x7f" + offsets[12:]))
    assert "data-00000-of-00001.arrow', which is truncated or corrupted" in refusal(tmp_path / "set", "train")
