"""The evaluation of runs on image files and on latents: what they are compared with, what is kept, what is refused."""

import dataclasses
import json
import shutil
import weakref

import numpy as np
import pytest
import torch

from drifting._progress import show_images
from drifting.config import LossConfig, RunConfig
from drifting.data import BankConfig, ImageFilesData, LatentsData
from drifting.data.pixels import to_bytes
from drifting.errors import InputError
from drifting.evaluation import collect_statistics, compare, references
from drifting.generators import DecoderMLPConfig
from drifting.metrics.frechet import gaussian_of
from drifting.runs import Run, evaluate, load_run
from drifting.runs.evaluate import Evaluation, load_extractor, sampled_batches
from drifting.sampling import sample
from drifting.training.schedule import Schedule
from tests.support.image_folders import write_images
from tests.support.tiny_vae import write_vae

COUNTS = {"a": 20, "b": 20, "c": 20}
SCHEDULE = Schedule(steps=2, generated=4, positives=4, learning_rate=1e-3)


def untrained(folder, data) -> Run:
    network = DecoderMLPConfig(noise_dim=4, width=16, depth=2, code_dim=8, decoder_width=4)
    config = RunConfig(preset="x", data=data, bank=BankConfig(), generator=network, loss=LossConfig(), schedule=SCHEDULE)
    folder.mkdir(exist_ok=True)
    return Run(folder, config, config.build_generator().eval())


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of 60 images to train on and 30 others, in three classes."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "train", COUNTS, channels=3)
    write_images(folder / "val", dict.fromkeys(COUNTS, 10), channels=3, seed=1)
    return folder


@pytest.fixture
def files_run(images, tmp_path):
    return untrained(tmp_path / "run", ImageFilesData(path=str(images), image_size=8, image_shape=(3, 8, 8), num_classes=3))


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory):
    return write_vae(tmp_path_factory.mktemp("vae"))


@pytest.fixture
def latents_run(vae_folder, tmp_path):
    return untrained(tmp_path / "run", LatentsData(path="cache", vae=str(vae_folder), image_shape=(4, 4, 4), num_classes=3))


@pytest.fixture
def drawn(monkeypatch):
    """Make latents of chance those of the cache, and return which of them are looked at."""
    latents, taken = torch.randn(40, 4, 4, 4, generator=torch.Generator().manual_seed(0)), []

    class Rows:
        labels = torch.tensor([0] * 20 + [1] * 10 + [2] * 10)

        def __len__(self):
            return len(latents)

        def take(self, indices, positions):
            taken.extend(indices.tolist())
            return latents[indices]

    monkeypatch.setattr(LatentsData, "rows", lambda data, seed: Rows())
    return taken


def _kept(run: Run) -> list[str]:
    return sorted(path.name for path in (run.folder / "statistics").iterdir())


@pytest.mark.filterwarnings("ignore:.*singular covariance")
def test_image_files_are_compared_with_those_that_were_not_trained_on(files_run, images):
    metrics = files_run.evaluate(extractor="pixels", count=30, batch_size=7)
    assert (metrics["extractor"], metrics["reference"]) == ("pixels-32", f"images {images.name}/val")
    assert (metrics["num_samples"], metrics["num_real"], metrics["num_features"]) == (30, 30, 30)
    assert json.loads((files_run.folder / "metrics.json").read_text()) == metrics
    extractor = load_extractor("pixels", files_run.config)
    samples = to_bytes(sample(files_run.generator, 30, seed=0))
    val = references.ImageFiles(images, image_size=8, split="val").read(torch.arange(30))
    expected = compare(collect_statistics([(samples, None)], extractor), collect_statistics([(val, None)], extractor))
    assert metrics["frechet_distance"] == pytest.approx(expected["frechet_distance"], rel=1e-6)
    assert metrics["kernel_distance"] == pytest.approx(expected["kernel_distance"], rel=1e-6)
    assert metrics["frechet_distance_floor"] < metrics["frechet_distance"]


@pytest.mark.filterwarnings("ignore:.*singular covariance")
def test_real_images_are_looked_at_once(files_run, monkeypatch):
    first = files_run.evaluate(extractor="pixels", count=30)
    assert len(_kept(files_run)) == 2
    monkeypatch.setattr(references.ImageFiles, "read", lambda self, indices: pytest.fail("looked again"))
    assert files_run.evaluate(extractor="pixels", count=30) == first
    assert len(_kept(files_run)) == 2
    with pytest.raises(pytest.fail.Exception, match="looked again"):
        files_run.evaluate(extractor="pixels", count=20)  # another floor


@pytest.mark.filterwarnings("ignore:.*singular covariance")
def test_batches_change_nothing(files_run):
    first, second = (files_run.evaluate(extractor="pixels", count=30, batch_size=size) for size in (4, 30))
    assert first.keys() == second.keys()
    for name in first.keys() - {"extractor", "reference"}:
        assert first[name] == pytest.approx(second[name], rel=1e-4), name


@pytest.mark.filterwarnings("ignore:.*singular covariance")
def test_folder_without_another_split_is_its_own_reference_without_a_floor(images, tmp_path):
    place = shutil.copytree(images / "train", tmp_path / "own")
    run = untrained(tmp_path / "run", ImageFilesData(path=str(place), image_size=8, image_shape=(3, 8, 8), num_classes=3))
    with pytest.warns(UserWarning, match="floor.* is left out: .* has no further images: add a folder val/ beside train/"):
        metrics = run.evaluate(extractor="pixels", count=30)
    assert metrics["num_real"] == 60
    assert not [name for name in metrics if name.endswith("_floor")]


@pytest.mark.filterwarnings("ignore:.*singular covariance")
@pytest.mark.parametrize(("named", "floor"), [("val", True), ("train", False), ("elsewhere", True)])
def test_another_folder_is_the_reference_and_training_images_the_floor_if_they_are_others(
    files_run, images, tmp_path, named, floor
):
    write_images(tmp_path / "elsewhere", COUNTS, channels=3, seed=7)
    place = tmp_path / "elsewhere" if named == "elsewhere" else images / named
    metrics = files_run.evaluate(extractor="pixels", count=30, real=str(place))
    assert metrics["reference"] == f"images {named}/train"
    assert ("frechet_distance_floor" in metrics) is floor


@pytest.mark.filterwarnings("ignore:.*singular covariance")
def test_statistics_of_a_file_are_a_reference(files_run, images, tmp_path):
    extractor = load_extractor("pixels", files_run.config)
    known = gaussian_of(extractor.embed(references.ImageFiles(images, image_size=8, split="val").read(torch.arange(30))))
    np.savez(tmp_path / "val.npz", mu=known.mean.numpy(), sigma=known.covariance.numpy())
    with pytest.warns(UserWarning, match="floor.* is left out: the statistics do not tell of which images they are"):
        metrics = files_run.evaluate(extractor="pixels", count=30, real=str(tmp_path / "val.npz"))
    whole = files_run.evaluate(extractor="pixels", count=30)
    assert metrics["reference"] == "statistics val.npz"
    assert not metrics.keys() & {"kernel_distance", "precision", "num_real", "frechet_distance_floor"}
    assert metrics["frechet_distance"] == pytest.approx(whole["frechet_distance"], rel=1e-6)
    np.savez(tmp_path / "small.npz", mu=np.zeros(5), sigma=np.eye(5))
    with pytest.raises(InputError, match=r"whose statistics are of 5 features, but the extractor pixels-32 has 192"):
        files_run.evaluate(extractor="pixels", real=str(tmp_path / "small.npz"))


@pytest.mark.filterwarnings("ignore:.*singular covariance")
def test_latents_are_decoded_and_compared_with_decoded_ones_and_told_so(latents_run, drawn):
    metrics = latents_run.evaluate(extractor="pixels", count=30, batch_size=8)
    # Half of the 40 are the reference, the others the floor.
    figures = ("reference", "num_real", "num_samples", "num_samples_floor")
    assert [metrics[name] for name in figures] == ["decoded latents", 20, 30, 20]
    assert sorted(drawn) == list(range(40))
    assert 0 < metrics["frechet_distance_floor"] < metrics["frechet_distance"]
    assert not (latents_run.folder / "statistics").exists()


@pytest.mark.filterwarnings("ignore:.*singular covariance")
def test_enough_latents_are_one_reference_and_one_floor_in_their_shares(latents_run, drawn, monkeypatch):
    asked = []
    made = evaluate.sampled_batches
    monkeypatch.setattr(evaluate, "sampled_batches", lambda *args, **options: asked.append(options) or made(*args, **options))
    metrics = latents_run.evaluate(extractor="pixels", count=8)
    assert (metrics["num_real"], metrics["num_samples"]) == (8, 8)
    assert "num_samples_floor" not in metrics
    assert len(set(drawn)) == len(drawn) == 16
    for part in (drawn[:8], drawn[8:]):
        assert torch.tensor([0] * 20 + [1] * 10 + [2] * 10)[part].bincount().tolist() == [4, 2, 2]
    assert torch.tensor(asked[-1]["labels"]).bincount().tolist() == [4, 2, 2]


@pytest.mark.filterwarnings("ignore:.*singular covariance")
def test_three_latents_are_too_few_for_a_floor(latents_run, monkeypatch):
    class Rows:
        labels = None

        def __len__(self):
            return 3

        def take(self, indices, positions):
            return torch.randn(len(indices), 4, 4, 4)

    monkeypatch.setattr(LatentsData, "rows", lambda data, seed: Rows())
    with pytest.warns(UserWarning, match="floor.* is left out: the latents are of 3 images, too few for two sets of them"):
        metrics = latents_run.evaluate(extractor="pixels", count=20)
    assert metrics["num_real"] == 3
    assert not [name for name in metrics if name.endswith("_floor")]


@pytest.mark.filterwarnings("ignore:.*singular covariance")
def test_latents_are_compared_with_a_folder_of_images(latents_run, images):
    with pytest.warns(UserWarning, match="samples are of all classes equally often, because the classes of the data are not known"):
        metrics = latents_run.evaluate(extractor="pixels", count=20, real=str(images))
    assert (metrics["reference"], metrics["num_real"]) == (f"images {images.name}/val", 30)
    assert "frechet_distance_floor" in metrics
    extractor = load_extractor("pixels", latents_run.config)
    exported = latents_run.sample(20).movedim(-1, 1)
    val = references.ImageFiles(images, image_size=8, split="val").read(torch.arange(30))
    expected = compare(collect_statistics([(exported, None)], extractor), collect_statistics([(val, None)], extractor))
    assert metrics["frechet_distance"] == pytest.approx(expected["frechet_distance"], rel=1e-5)


@pytest.mark.filterwarnings("ignore:.*singular covariance")
def test_classes_of_data_that_are_not_here_are_known_from_the_configuration(files_run, images, tmp_path, monkeypatch):
    data = dataclasses.replace(files_run.config.data, path=str(tmp_path / "gone"), class_names=("b", "c", "a"), counts=(30, 10, 20))
    run = dataclasses.replace(files_run, config=dataclasses.replace(files_run.config, data=data))
    asked, made = [], evaluate.sampled_batches
    monkeypatch.setattr(evaluate, "sampled_batches", lambda *args, **options: asked.append(options) or made(*args, **options))
    write_images(tmp_path / "named", {"b": 8, "a": 4}, channels=3)
    write_images(tmp_path / "others", {"x": 8, "a": 4}, channels=3)
    for real, shares in (("named", [20, 0, 10]), ("others", [15, 5, 10])):
        run.evaluate(extractor="pixels", count=30, real=str(tmp_path / real))
        assert torch.tensor(asked[-1]["labels"]).bincount().tolist() == shares


@pytest.mark.filterwarnings("ignore:.*singular covariance")
def test_labels_of_many_samples_are_listed_once_and_taken_over_again(latents_run, drawn, monkeypatch):
    monkeypatch.setattr("drifting.evaluation.figures._PERIOD", 8)
    asked, made = [], evaluate.sampled_batches

    def watched(*arguments, **options):
        for images, labels in made(*arguments, **options):
            asked.append(labels)
            yield images, labels

    monkeypatch.setattr(evaluate, "sampled_batches", watched)
    latents_run.evaluate(extractor="pixels", count=20, batch_size=5)
    labels = torch.cat(asked[1:])
    assert torch.equal(labels[:8], labels[8:16])
    assert labels[:16].bincount().tolist() == [8, 4, 4]


def test_latents_alone_hold_no_real_images(latents_run, monkeypatch, tmp_path):
    class Stand:
        probabilities = None

        def __call__(self, images):
            pytest.fail("looked at images")

    extractor = tmp_path / "inception.pt"
    extractor.touch()
    monkeypatch.setattr("drifting.evaluation.extractors.load_inception", lambda path, device: Stand())
    with pytest.raises(InputError, match=r"real is not given, and the latents of 'cache' hold no real images: pass --real FOLDER"):
        latents_run.evaluate(extractor=str(extractor))


def test_image_i_of_a_seed_is_of_label_i_in_turn_in_batches_of_any_size(files_run):
    whole = sample(files_run.generator, 10, seed=3)
    parts = list(sampled_batches(files_run.generator, to_bytes, 10, seed=3, batch_size=4))
    assert [len(images) for images, _ in parts] == [4, 4, 2]
    labels = torch.cat([labels for _, labels in parts])
    assert labels.tolist() == [index % 3 for index in range(10)]
    made = torch.cat([images for images, _ in parts]).int()
    assert (made - to_bytes(whole).int()).abs().max() <= 1


def test_one_batch_of_samples_is_alive_at_a_time(files_run):
    alive, before = set(), []

    def decode(samples: torch.Tensor) -> torch.Tensor:
        before.append(len(alive))
        images = to_bytes(samples)
        alive.add(len(before))
        weakref.finalize(images, alive.discard, len(before))
        return images

    batches = sampled_batches(files_run.generator, decode, 400, batch_size=10)
    collect_statistics(show_images(batches, 400, what="samples"), load_extractor("pixels", files_run.config))
    assert before == [0] * 40
    assert not alive


def test_interrupted_evaluation_keeps_what_it_saw_of_real_images_and_writes_no_figures(files_run, monkeypatch):
    def stopped(generator, decode, count, **options):
        yield to_bytes(torch.zeros(2, 3, 8, 8)), None
        if count > 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "sampled_batches", stopped)
    with pytest.raises(KeyboardInterrupt):
        files_run.evaluate(extractor="pixels", count=30)
    assert len(_kept(files_run)) == 2
    assert not (files_run.folder / "metrics.json").exists()


def test_fifty_thousand_are_made_unless_told_otherwise(files_run, monkeypatch):
    asked = []
    monkeypatch.setattr(evaluate, "sampled_batches", lambda *args, **options: asked.append((args[2], options)) or iter(()))
    with pytest.raises(InputError, match="features are of 0 samples"):
        files_run.evaluate(extractor="pixels", seed=4)
    (_, options), (count, again) = asked
    assert count == 50_000
    assert options == {"seed": 4, "guidance_scale": None, "batch_size": 64, "labels": None}
    assert again == {**options, "labels": [index % 3 for index in range(50_000)]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "extractor is not given, and there is none of its own for these images: pass the Inception file, --extractor FILE.pt"),
        ({"extractor": "pixels", "count": 0}, "num_samples is 0: ask for at least 1"),
        ({"extractor": "pixels", "count": 1}, "num_samples is 1: ask for at least 2"),
        ({"extractor": "pixels", "batch_size": 0}, "batch_size is 0: pass at least 1"),
        ({"extractor": "pixels", "device": "tpu"}, "device is 'tpu': pass cpu, cuda, cuda:1 or mps"),
        ({"extractor": "pixels", "device": "cuda:99"}, "device is 'cuda:99', which this machine does not offer: pass --device cpu"),
        (
            {"extractor": "pixels", "real": "none"},
            r"real is 'none', which is not a folder: name one of images, or statistics of them \(.safetensors, .npz\)",
        ),
        ({"extractor": "pixels", "real": "none.npz"}, "real is 'none.npz', which is not a file"),
        (
            {"extractor": "pixels", "guidance_scale": 2.0},
            "guidance_scale is 2, but the run was trained at guidance scale 1 alone: leave it out",
        ),
    ],
)
def test_bad_input_is_reported_before_anything_is_looked_at(files_run, monkeypatch, options, message):
    monkeypatch.setattr(references.ImageFiles, "read", lambda self, indices: pytest.fail("looked at images"))
    with pytest.raises(InputError, match=message):
        files_run.evaluate(**options)
    assert list(files_run.folder.iterdir()) == []


def test_every_seed_of_an_evaluation_has_draws_of_its_own(toy_run):
    run = load_run(toy_run)
    draws = [Evaluation(run, seed=seed).sample(3, draw) for seed in (0, 1, 2, 2**31 - 1) for draw in (0, 24)]
    assert torch.equal(torch.cat(draws[:2]), torch.cat([sample(run.generator, 3, seed=seed) for seed in (0, 24)]))
    assert len(torch.unique(torch.cat(draws), dim=0)) == 3 * len(draws)


def test_points_have_no_real_images(toy_run, command):
    result = command("evaluate", toy_run, "--real", "x")
    assert result.status == 2
    assert "real is 'x', but this run makes no images to show it: leave it out" in result.err
