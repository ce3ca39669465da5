import pytest
import torch

from drifting.evaluation.statistics import digests, images_in_shares, labels_in_shares


@pytest.mark.parametrize("count", [1, 7, 30, 1000])
def test_equally_frequent_classes_come_in_turn(count):
    reference = torch.arange(60) % 3
    assert labels_in_shares(reference, count).tolist() == [index % 3 for index in range(count)]


@pytest.mark.parametrize("count", [10, 37, 100, 999, 5000])
@pytest.mark.parametrize("frequencies", [(90, 10), (1, 2, 3), (500, *[1] * 500), (0, 7, 0, 3)])
def test_every_class_has_its_share_to_less_than_one_image_in_all_and_about_it_in_the_first_ones(frequencies, count):
    frequencies = torch.tensor(frequencies)
    reference = torch.arange(len(frequencies)).repeat_interleave(frequencies)
    reference = reference[torch.randperm(len(reference), generator=torch.Generator().manual_seed(0))]
    labels, shares = labels_in_shares(reference, count), frequencies / frequencies.sum()
    assert len(labels) == count
    found = labels.bincount(minlength=len(shares))
    assert ((found - count * shares).abs() < 1 + 1e-3).all()
    for first in range(1, count, max(1, count // 7)):
        begun = labels[:first].bincount(minlength=len(shares))
        assert (begun[0] - first * shares[0]).abs() < 2.5


def test_images_are_different_and_in_the_shares_of_the_reference():
    labels, reference = torch.arange(600) % 3, torch.tensor([0] * 80 + [2] * 20)
    chosen = images_in_shares(labels, reference, 100)
    assert len(chosen.unique()) == 100
    assert labels[chosen].bincount().tolist() == [80, 0, 20]
    assert not torch.equal(chosen.sort().values, chosen)


def test_rarest_class_bounds_the_number_of_images():
    labels = torch.tensor([0] * 90 + [1] * 10)
    even = torch.tensor([0, 1])
    assert labels[images_in_shares(labels, even, 50)].bincount().tolist() == [10, 10]
    assert len(images_in_shares(labels, torch.tensor([0, 1, 2]), 50)) == 0
    assert images_in_shares(labels, labels, 1000).sort().values.tolist() == list(range(100))


def test_digests_tell_images_apart_by_every_pixel():
    images = torch.randint(256, (50, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[1] = images[0]
    images[2] = images[0]
    images[2, 2, 3, 3] += 1
    found = digests(images)
    assert found[0] == found[1]
    assert len(found.unique()) == 49
    assert torch.equal(digests(images[::2]), found[::2])
