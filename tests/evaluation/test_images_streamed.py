import dataclasses
import io
import warnings
import weakref

import pytest
import torch
from rich.console import Console

from drifting._progress import show_images
from drifting.errors import InputError
from drifting.evaluation import Extractor, collect_statistics, compare, evaluate_images
from drifting.evaluation.references import in_memory
from drifting.evaluation.statistics import check_feature_size, images_in_shares
from drifting.metrics.frechet import Gaussian, gaussian_of
from tests.support.image_folders import bar_set, bars

TRAIN, TEST = bar_set(600), bar_set(510, seed=1)
PAIRED = {"kernel_distance", "precision", "recall", "density", "coverage", "pairwise_distance"}


def _project(images: torch.Tensor) -> torch.Tensor:
    """Return 8 features: the mean of every column."""
    return images.float().mean((1, 2)) / 255


def _name(images: torch.Tensor) -> torch.Tensor:
    return _project(images)[:, 1::2].argmax(1)


def _probabilities(images: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.one_hot(_name(images), 4).float()


EXTRACTOR = Extractor("columns", _project, _name)


def _batches(images, labels=None, size=64):
    for start in range(0, len(images), size):
        part = slice(start, start + size)
        yield images[part].clone(), None if labels is None else labels[part]


def _generated(labels: torch.Tensor) -> torch.Tensor:
    return bars(labels, seed=5)


def test_figures_are_those_of_all_images_at_once():
    chosen = images_in_shares(TRAIN.labels, TEST.labels, 600)
    labels = TRAIN.labels[chosen]
    sides = in_memory("bars/test", TRAIN, TEST, EXTRACTOR)
    whole = evaluate_images(
        lambda count, asked: _batches(_generated(torch.tensor(asked or [0])), labels), sides, EXTRACTOR, batch_size=600
    )
    streamed = compare(
        collect_statistics(_batches(_generated(labels), labels), EXTRACTOR),
        collect_statistics(_batches(TEST.images, TEST.labels, 37), EXTRACTOR),
        collect_statistics(_batches(TRAIN.images[chosen], labels, 100), EXTRACTOR),
    )
    assert (streamed["num_samples"], streamed["num_real"], streamed["num_features"]) == (600, 510, 600)
    names = {"frechet_distance", "accuracy", "within_class_distance", *PAIRED}
    assert streamed.keys() == {"num_samples", "num_real", "num_features", *names, *(f"{name}_floor" for name in names)}
    for name in names:
        for kind in ("", "_floor"):
            assert streamed[name + kind] == pytest.approx(whole[name + kind], rel=1e-6), name


@pytest.mark.parametrize("size", [1, 7, 3000])
def test_statistics_do_not_depend_on_the_size_of_a_batch(size, monkeypatch):
    monkeypatch.setattr("drifting.evaluation.statistics._BLOCK", 200)
    images = bar_set(250, seed=3).images
    seen, whole = collect_statistics(_batches(images, size=size), EXTRACTOR), gaussian_of(_project(images))
    torch.testing.assert_close(seen.gaussian.mean, whole.mean, rtol=1e-9, atol=0)
    torch.testing.assert_close(seen.gaussian.covariance, whole.covariance, rtol=1e-9, atol=1e-15)
    assert seen.gaussian.count == 250


def test_one_batch_of_images_is_alive_at_a_time():
    alive, before, during = set(), [], []

    def counted():
        for start in range(0, 600, 10):
            before.append(len(alive))
            images = TRAIN.images[start : start + 10].clone()
            alive.add(start)
            weakref.finalize(images, alive.discard, start)
            yield images, TRAIN.labels[start : start + 10]
            del images

    def embed(images: torch.Tensor) -> torch.Tensor:
        during.append(len(alive))
        return _project(images)

    shown = show_images(counted(), 600, what="images", console=Console(file=io.StringIO()))
    seen = collect_statistics(shown, Extractor("columns", embed, _name, probabilities=_probabilities))
    assert seen.gaussian.count == 600
    # Nothing is left of a batch when the next one is made.
    assert (before, during) == ([0] * 60, [1] * 60)


def test_features_of_the_first_images_are_kept_and_no_more():
    seen = collect_statistics(_batches(TEST.images, size=64), EXTRACTOR, keep=100)
    assert torch.equal(seen.features, _project(TEST.images[:100]))
    assert seen.features.untyped_storage().nbytes() == 100 * 8 * 4
    assert seen.gaussian.count == 510
    figures = compare(seen, collect_statistics(_batches(TRAIN.images), EXTRACTOR, keep=200))
    assert figures["num_features"] == 100
    assert figures["num_samples"] == 510


def test_accuracy_is_that_of_all_images_with_a_label():
    wrong = TEST.labels.clone()
    wrong[:51] = (wrong[:51] + 1) % 3
    assert collect_statistics(_batches(TEST.images, wrong), EXTRACTOR).accuracy == 0.9
    assert collect_statistics(_batches(TEST.images), EXTRACTOR).accuracy is None
    assert collect_statistics(_batches(TEST.images, wrong), Extractor("columns", _project)).accuracy is None


def test_accuracy_has_a_floor_where_the_real_images_have_labels():
    named, nameless = (
        collect_statistics(_batches(TEST.images, TEST.labels), EXTRACTOR),
        collect_statistics(_batches(TEST.images), EXTRACTOR),
    )
    assert compare(named, named)["accuracy_floor"] == 1
    assert "accuracy_floor" not in compare(named, nameless)
    assert "accuracy_floor" not in compare(nameless, named)


def test_inception_score_of_equally_many_of_each_class_is_their_number():
    extractor = dataclasses.replace(EXTRACTOR, probabilities=_probabilities)
    seen = collect_statistics(_batches(TRAIN.images), extractor)
    assert seen.inception_score == pytest.approx(3)
    figures = compare(collect_statistics(_batches(bars(torch.zeros(60, dtype=torch.long))), extractor), seen)
    assert figures["inception_score"] == pytest.approx(1)
    assert figures["inception_score_floor"] == pytest.approx(3)
    assert collect_statistics(_batches(TRAIN.images), EXTRACTOR).inception_score is None


def test_statistics_alone_leave_out_what_compares_pairs():
    seen = collect_statistics(_batches(TRAIN.images, TRAIN.labels), EXTRACTOR)
    known = dataclasses.replace(collect_statistics(_batches(TEST.images), EXTRACTOR), features=None)
    figures = compare(seen, known, seen)
    counts, distances = {"num_samples", "num_real", "num_features"}, {"frechet_distance", "frechet_distance_floor"}
    assert figures.keys() == {*counts, *distances, "accuracy", "within_class_distance"}
    assert figures["frechet_distance"] == compare(seen, collect_statistics(_batches(TEST.images), EXTRACTOR))["frechet_distance"]


def test_no_floor_is_no_figure():
    seen = collect_statistics(_batches(TRAIN.images), EXTRACTOR)
    assert not [name for name in compare(seen, seen) if name.endswith("_floor")]


def test_published_statistics_tell_no_number_of_images():
    known = dataclasses.replace(collect_statistics(_batches(TEST.images), EXTRACTOR), features=None)
    known = dataclasses.replace(known, gaussian=Gaussian(known.gaussian.mean, known.gaussian.covariance))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "num_real" not in compare(collect_statistics(_batches(TRAIN.images), EXTRACTOR), known)


@pytest.mark.parametrize(("count", "warned"), [(8, True), (9, False)])
def test_fewer_samples_than_features_are_reported(count, warned):
    few, many = collect_statistics(_batches(TRAIN.images[:count]), EXTRACTOR), collect_statistics(_batches(TEST.images), EXTRACTOR)
    with warnings.catch_warnings(record=True) as doubts:
        warnings.simplefilter("always")
        compare(few, many)
    assert [str(doubt.message)[:50] for doubt in doubts] == ["8 samples of 8 features have a singular covariance"] * warned


def test_statistics_of_another_extractor_are_refused():
    fitting, other = (Gaussian(torch.zeros(size), torch.eye(size), 0) for size in (8, 9))
    seen = collect_statistics(_batches(TEST.images), EXTRACTOR)
    check_feature_size(EXTRACTOR, (1, 8, 8), dataclasses.replace(seen, gaussian=fitting), "x.npz")
    with pytest.raises(
        InputError, match=r"real is 'x.npz', whose statistics are of 9 features, but the extractor columns has 8: name"
    ):
        check_feature_size(EXTRACTOR, (1, 8, 8), dataclasses.replace(seen, gaussian=other), "x.npz")


def test_single_image_has_no_covariance():
    with pytest.raises(InputError, match="features are of 1 samples: a covariance needs at least 2"):
        collect_statistics(_batches(TEST.images[:1]), EXTRACTOR)
