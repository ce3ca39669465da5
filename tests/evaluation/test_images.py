import dataclasses
import shutil
import warnings

import pytest
import torch

from drifting.data.images import ImageSet
from drifting.data.sources import shuffled_indices
from drifting.errors import InputError
from drifting.evaluation import Extractor, evaluate_images, frechet_curve
from drifting.evaluation.extractors import in_batches
from drifting.evaluation.references import in_memory
from drifting.evaluation.statistics import digests
from drifting.metrics.frechet import Gaussian, frechet_distance, gaussian_of
from tests.support.image_folders import bar_set, bars

TRAIN, TEST = bar_set(600), bar_set(510, seed=1)


def _project(images: torch.Tensor) -> torch.Tensor:
    """Return 8 features: the mean of every column."""
    return images.float().mean((1, 2)) / 255


def _name(images: torch.Tensor) -> torch.Tensor:
    return _project(images)[:, 1::2].argmax(1)


EXTRACTOR = Extractor("columns", _project, _name)


def _unseen(count: int, labels) -> torch.Tensor:
    return bars(torch.as_tensor(labels), seed=5)


def _measured(
    sampler=_unseen,
    train: ImageSet = TRAIN,
    test: ImageSet = TEST,
    extractor: Extractor = EXTRACTOR,
    batch_size: int = 600,
    **options,
) -> dict:
    """Measure what a sampler makes of (count, labels), after it was asked for one image of any class."""

    def batches(count, labels):
        images = train.images[:1] if (count, labels) == (1, None) else sampler(count, labels)
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            yield images[part], None if labels is None else torch.tensor(labels[part])

    sides = in_memory("bars/test", train, test, extractor, **options)
    return evaluate_images(batches, sides, extractor, batch_size=batch_size)


def test_training_images_passed_off_as_generated_are_at_the_floor():
    chosen = shuffled_indices(600, 0, 600, 1)

    def again(count, labels):
        assert count == len(labels) == 600
        assert torch.tensor(labels).bincount().tolist() == [200, 200, 200]
        order = chosen[TRAIN.labels[chosen].argsort(stable=True)]
        return TRAIN.images[order][torch.tensor(labels).argsort(stable=True).argsort()]

    metrics = _measured(again)
    for name in (
        "frechet_distance",
        "precision",
        "recall",
        "density",
        "coverage",
        "pairwise_distance",
        "accuracy",
        "histogram_distance",
    ):
        assert metrics[name] == pytest.approx(metrics[f"{name}_floor"], rel=1e-6), name
    assert metrics["accuracy"] == 1
    assert metrics["num_samples"] == 600
    # They are copies, and told as such.
    assert (metrics["nearest_distance"], metrics["copy_share"]) == (0, 1)
    assert metrics["nearest_distance_floor"] > 0
    assert metrics["copy_share_floor"] < 0.05


def test_fresh_images_are_near_every_floor():
    metrics = _measured()
    assert metrics["frechet_distance"] == pytest.approx(metrics["frechet_distance_floor"], abs=2e-3)
    assert metrics["kernel_distance"] == pytest.approx(metrics["kernel_distance_floor"], abs=2e-3)
    for name in ("precision", "recall", "density", "coverage", "accuracy"):
        assert metrics[name] == pytest.approx(metrics[f"{name}_floor"], abs=0.1)
    assert metrics["nearest_distance"] == pytest.approx(metrics["nearest_distance_floor"], rel=0.1)
    assert metrics["copy_share"] < 0.05


def test_constants_have_no_recall_and_are_far_away():
    metrics = _measured(lambda count, labels: torch.zeros(count, 1, 8, 8, dtype=torch.uint8))
    assert metrics["recall"] == metrics["precision"] == metrics["coverage"] == 0
    assert metrics["recall_floor"] > 0.8
    assert metrics["frechet_distance"] > 50 * metrics["frechet_distance_floor"]
    assert metrics["kernel_distance"] > 50 * abs(metrics["kernel_distance_floor"])
    assert metrics["accuracy"] == pytest.approx(1 / 3, abs=0.01)
    assert (metrics["pairwise_distance"], metrics["color_mean"], metrics["color_std"]) == (0, [-1], [0])
    seen = TEST.images.double() / 127.5 - 1
    assert metrics["color_mean_floor"] == pytest.approx([float(seen.mean())])
    assert metrics["color_std_floor"] == pytest.approx([float(seen.std(correction=0))], rel=1e-6)
    assert metrics["histogram_distance"] > 0.3 > metrics["histogram_distance_floor"]


def test_mean_distance_between_images_leaves_out_each_one_itself():
    metrics = _measured(count=60)
    features = _project(_unseen(60, [index % 3 for index in range(60)])).double()
    between = torch.pdist(features).mean()
    assert metrics["pairwise_distance"] == pytest.approx(float(between), rel=1e-6)


def test_images_that_are_neither_gray_nor_color_have_no_colors():
    train, test = (ImageSet(part.images.repeat(1, 2, 1, 1), part.labels, None) for part in (TRAIN, TEST))
    metrics = _measured(lambda count, labels: train.images[:count], train, test, count=50)
    assert not [name for name in metrics if name.startswith(("color", "histogram"))]


def test_curve_of_distances_is_of_the_snapshots_in_the_order_of_their_steps():
    real, noise = TRAIN.images[:99], torch.randint(256, (99, 1, 8, 8), dtype=torch.uint8)
    curve = frechet_curve({20: real, 0: noise}, TRAIN, TEST, EXTRACTOR)
    assert curve["frechet_curve_steps"] == [0, 20]
    first, last = curve["frechet_curve"]
    assert first > 20 * curve["frechet_curve_floor"]
    assert last == pytest.approx(frechet_distance(gaussian_of(_project(real)), gaussian_of(_project(TEST.images))))


def test_one_class_alone_is_precise_and_misses_the_others():
    metrics = _measured(lambda count, labels: bars(torch.zeros(count, dtype=torch.long), seed=5))
    assert metrics["precision"] > 0.9 * metrics["precision_floor"]
    assert metrics["recall"] < 0.5 * metrics["recall_floor"]
    assert metrics["coverage"] < 0.5


def test_labels_asked_for_are_those_of_the_images_of_the_floor():
    asked, seen = [], []
    extractor = dataclasses.replace(EXTRACTOR, embed=lambda images: seen.append(images) or _project(images))
    _measured(lambda count, labels: asked.append(labels) or _unseen(count, labels), extractor=extractor, count=50)
    (labels,), (_, real, floor, _) = asked, seen
    assert len(labels) == len(floor) == 50
    assert torch.equal(_name(floor), torch.tensor(labels))
    assert torch.equal(real, TEST.images)


def test_unlabeled_images_have_no_accuracy():
    unlabeled = ImageSet(TRAIN.images, None, None)
    asked = []
    metrics = _measured(lambda count, labels: asked.append(labels) or TRAIN.images[:count], train=unlabeled, count=100)
    assert asked == [None]
    assert "accuracy" not in metrics
    assert "accuracy" not in _measured(extractor=Extractor("columns", _project))


def test_every_figure_has_its_floor():
    metrics = _measured()
    names = {name for name in metrics if not name.endswith("_floor")} - {"num_samples", "num_real", "num_features"}
    assert {f"{name}_floor" for name in names} == {name for name in metrics if name.endswith("_floor")}


@pytest.mark.parametrize(("count", "warned"), [(64, True), (65, False)])
def test_fewer_samples_than_features_are_reported_in_a_sentence_and_measured_all_the_same(count, warned):
    extractor = Extractor("pixels", lambda images: images.flatten(1).float() / 255)
    with warnings.catch_warnings(record=True) as doubts:
        warnings.simplefilter("always")
        metrics = _measured(extractor=extractor, count=count)
    assert [str(doubt.message) for doubt in doubts] == [
        "64 samples of 64 features have a singular covariance, so the Frechet distance is far too large: "
        "use more than 64 samples, or read the kernel distance"
    ] * warned
    assert metrics["num_samples"] == count
    assert torch.tensor([value for value in metrics.values() if not isinstance(value, list)]).isfinite().all()


def test_statistics_of_real_images_are_kept_and_found_by_their_fingerprint(tmp_path):
    extractor = dataclasses.replace(EXTRACTOR, cache=tmp_path)
    first = _measured(extractor=extractor)
    paths = sorted(tmp_path.iterdir())
    # Of the test set and of the floor.
    assert [path.name.partition("-")[0] for path in paths] == ["columns", "columns"]
    written = [path.stat().st_mtime_ns for path in paths]
    assert _measured(extractor=extractor) == first == _measured()
    assert [path.stat().st_mtime_ns for path in paths] == written
    _measured(test=bar_set(300, seed=2), extractor=extractor)
    _measured(extractor=dataclasses.replace(extractor, name="others"))
    # The floor of both references is the same.
    assert len(list(tmp_path.iterdir())) == 5


def test_kept_statistics_are_those_used(tmp_path):
    extractor = dataclasses.replace(EXTRACTOR, cache=tmp_path)
    _measured(extractor=extractor)
    paths = set(tmp_path.iterdir())
    _measured(test=bar_set(510, classes=2, seed=3), extractor=extractor)
    for path in paths:
        for other in set(tmp_path.iterdir()) - paths:
            shutil.copy(other, path)
    # Of another fingerprint inside: computed anew.
    assert _measured(extractor=extractor)["frechet_distance"] == _measured()["frechet_distance"]


def test_damaged_statistics_are_computed_again(tmp_path):
    extractor = dataclasses.replace(EXTRACTOR, cache=tmp_path)
    first = _measured(extractor=extractor)
    for path in tmp_path.iterdir():
        path.write_bytes(b"broken")
    assert _measured(extractor=extractor) == first
    assert all(path.read_bytes() != b"broken" for path in tmp_path.iterdir())


@pytest.mark.parametrize("size", [7, 100])
def test_batches_change_no_figure(size):
    several, whole = _measured(batch_size=size, count=200), _measured(count=200)
    assert several.keys() == whole.keys()
    for name, value in whole.items():
        assert several[name] == pytest.approx(value, rel=1e-9), name


@pytest.mark.parametrize("count", [1, 0, -4])
def test_no_images_are_refused(count):
    with pytest.raises(InputError, match=f"num_samples is {count}: ask for at least 2"):
        _measured(count=count)


def test_images_go_through_a_network_in_batches_as_floats():
    sizes = []

    def network(images):
        sizes.append(len(images))
        assert not torch.is_grad_enabled()
        return images.flatten(1)

    found = in_batches(network, TEST.images, size=200)
    assert sizes == [200, 200, 110]
    torch.testing.assert_close(found, TEST.images.flatten(1).float() / 127.5 - 1)


def _uneven(frequencies, seed: int) -> ImageSet:
    labels = torch.arange(len(frequencies)).repeat_interleave(torch.tensor(frequencies))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    return ImageSet(bars(labels, seed=seed), labels, None)


@pytest.mark.parametrize("train", [(540, 60), (300, 300), (60, 540)])
def test_perfect_samples_of_uneven_classes_are_near_however_even_the_training_set_is(train):
    train, test = _uneven(train, 7), _uneven((450, 50), 8)
    equal = frechet_distance(gaussian_of(_project(_unseen(400, torch.arange(400) % 2))), gaussian_of(_project(test.images)))
    metrics = _measured(train=train, test=test, count=400)
    snapshots = {step: bars(torch.arange(400) % 2, seed=20 + step) for step in (0, 10)}
    curve = frechet_curve(snapshots, train, test, EXTRACTOR)
    for distance in (metrics["frechet_distance"], *curve["frechet_curve"]):
        assert distance < 0.02 * equal
    for floor in (metrics["frechet_distance_floor"], curve["frechet_curve_floor"]):
        assert floor < 0.03 * equal
    assert metrics["accuracy"] == 1


def test_curve_of_more_classes_than_samples_looks_at_the_classes_that_it_has():
    train, test = _uneven((50, 50, 50, 50), 7), _uneven((40, 20, 40, 40), 8)
    curve = frechet_curve({0: bars(torch.tensor([0, 1]), seed=3)}, train, test, EXTRACTOR)
    seen = test.images[test.labels < 2]
    features = _project(bars(torch.tensor([0, 1]), seed=3)).double()
    mean = (2 * features[0] + features[1]) / 3
    covariance = (2 / 3 * torch.outer(features[0] - mean, features[0] - mean)) + torch.outer(
        features[1] - mean, features[1] - mean
    ) / 3
    expected = frechet_distance(Gaussian(mean, covariance / (1 - 5 / 9)), gaussian_of(_project(seen)))
    assert curve["frechet_curve"] == pytest.approx([expected])


def test_images_that_the_extractor_was_trained_on_make_no_floor():
    known = torch.arange(600) % 5 > 0
    extractor = dataclasses.replace(EXTRACTOR, trained_on=digests(TRAIN.images[known]))
    looked = []
    counting = dataclasses.replace(extractor, embed=lambda images: looked.append(images) or _project(images))
    with pytest.warns(UserWarning, match="the floor is of 120 real images and so too large for 600 samples: .* --num-samples 120"):
        metrics = _measured(extractor=counting)
    assert (metrics["num_samples"], metrics["num_samples_floor"]) == (600, 120)
    assert [len(images) for images in looked] == [1, 510, 120, 600]
    assert not torch.isin(digests(looked[2]), extractor.trained_on).any()
    looked.clear()
    frechet_curve({0: TRAIN.images[:60]}, TRAIN, TEST, counting)
    assert not torch.isin(digests(looked[-1]), extractor.trained_on).any()


def test_floors_are_left_out_where_the_extractor_was_trained_on_all_images():
    extractor = dataclasses.replace(EXTRACTOR, trained_on=digests(TRAIN.images))
    with pytest.warns(UserWarning, match="the floor, the same figures of other real images, is left out: no further"):
        metrics = _measured(extractor=extractor)
    assert {"frechet_distance", "histogram_distance"} < metrics.keys()
    assert not {"frechet_distance_floor", "histogram_distance_floor", "num_samples_floor"} & metrics.keys()
    assert "frechet_curve_floor" not in frechet_curve({0: TRAIN.images[:60]}, TRAIN, TEST, extractor)


@pytest.mark.filterwarnings("ignore:.*singular covariance")
@pytest.mark.parametrize("sizes", [(2, 2), (2, 30), (5, 5), (30, 3)])
def test_few_images_have_all_figures_but_those_of_neighbors(sizes):
    train, test = (bar_set(size, seed=seed) for seed, size in enumerate(sizes))
    with pytest.warns(UserWarning, match="too few for precision, recall, density and coverage, which are left out: they need 6"):
        metrics = _measured(train=train, test=test)
    assert {"frechet_distance", "kernel_distance", "pairwise_distance", "nearest_distance"} < metrics.keys()
    assert "precision" not in metrics
    numbers = [value for value in metrics.values() if not isinstance(value, list)]
    assert torch.tensor(numbers).isfinite().all()


@pytest.mark.parametrize(("sizes", "split"), [((1, 30), "training"), ((30, 1), "test")])
def test_single_image_is_reported(sizes, split):
    train, test = (bar_set(size, classes=1, seed=seed) for seed, size in enumerate(sizes))
    with pytest.raises(InputError, match=f"data has 1 {split} image, too few to compare with: add some"):
        _measured(lambda *asked: pytest.fail("sampled"), train, test)
