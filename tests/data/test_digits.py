import numpy as np
import torch

from drifting.data.images import load_digits


def test_digits_are_8_by_8_images_between_minus_one_and_one():
    split = load_digits()
    for images, labels in ((split.train, split.train_labels), (split.held_out, split.held_out_labels)):
        assert images.shape == (len(labels), 1, 8, 8)
        assert images.dtype == torch.float32
        assert (float(images.min()), float(images.max())) == (-1, 1)


def test_split_is_always_the_same_and_ignores_the_global_streams():
    first = load_digits()
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 - the global stream is what must not matter
    assert all(torch.equal(before, after) for before, after in zip(first, load_digits(), strict=True))


def test_split_has_known_labels():
    split = load_digits()
    assert split.train_labels[:10].tolist() == [3, 9, 1, 3, 1, 9, 4, 4, 2, 8]


def test_one_fifth_of_each_class_is_held_out():
    split = load_digits()
    train, held_out = split.train_labels.bincount(), split.held_out_labels.bincount()
    assert int((train + held_out).sum()) == 1797
    share = held_out / (train + held_out)
    assert float((share - 0.2).abs().max()) < 0.01


def test_parts_are_disjoint_and_complete():
    from sklearn.datasets import load_digits as embedded

    split = load_digits()
    together = torch.cat([split.train, split.held_out]).flatten(1).add(1).mul(8).round()
    whole = torch.from_numpy(embedded().data).float()
    assert sorted(map(tuple, together.tolist())) == sorted(map(tuple, whole.tolist()))
