"""What samples are compared with: shares of classes, floors of other images, statistics of the files that are there now."""

import dataclasses
import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from drifting.checkpoint import save_tensors
from drifting.config import LossConfig, RunConfig
from drifting.data import BankConfig, ImageFilesData, ImagesData, forget_data
from drifting.data.image_folder import ImageFiles
from drifting.data.pixels import to_signed
from drifting.evaluation import Extractor
from drifting.evaluation.statistics import digests
from drifting.generators import DecoderMLPConfig
from drifting.generators.base import Generator
from drifting.metrics.frechet import frechet_distance, gaussian_of
from drifting.runs import Run
from drifting.training.recorder import SNAPSHOTS
from drifting.training.schedule import Schedule
from tests.support.image_folders import bars, write_images

SCHEDULE = Schedule(steps=2, generated=4, positives=4, learning_rate=1e-3)
UNEVEN = {"a": 360, "b": 40}

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*singular covariance"),
    pytest.mark.filterwarnings("ignore:the floor is of"),
]


class Perfect(Generator):
    """Makes real images: those of `bars`, of which there are many more than are compared."""

    def __init__(self) -> None:
        super().__init__()
        self.noise_shape, self.sample_shape, self.num_classes = (1,), (3, 8, 8), 2
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.pools = [bars(torch.full((4000,), label), channels=3, seed=500 + label) for label in range(2)]

    def forward(self, noise, labels, guidance_scale):
        places = (noise[:, 0].double().erf().add(1).div(2) * 4000).long().clamp(0, 3999)
        images = torch.stack([self.pools[label][place] for label, place in zip(labels.tolist(), places.tolist(), strict=True)])
        return images.float() / 127.5 - 1


def _run(folder: Path, data) -> Run:
    network = DecoderMLPConfig(noise_dim=1, width=16, depth=2, code_dim=8, decoder_width=4)
    bank = BankConfig() if isinstance(data, ImageFilesData) else None
    folder.mkdir(exist_ok=True)
    config = RunConfig(preset="x", data=data, bank=bank, generator=network, loss=LossConfig(), schedule=SCHEDULE)
    return Run(folder, config, Perfect().eval())


def _files_run(folder: Path, place: Path) -> Run:
    return _run(folder, ImageFilesData(path=str(place), image_size=8, image_shape=(3, 8, 8), num_classes=2))


def _memory_run(folder: Path, place: Path) -> Run:
    return _run(folder, ImagesData(name="bars", path=str(place), image_shape=(3, 8, 8), num_classes=2))


@pytest.fixture(autouse=True)
def listed_anew():
    """Forget what other tests have read."""
    forget_data()


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Images of two classes, nine to one."""
    folder = tmp_path_factory.mktemp("uneven")
    write_images(folder / "train", UNEVEN, channels=3)
    write_images(folder / "test", UNEVEN, channels=3, seed=1)
    return folder


def test_perfect_generator_of_uneven_classes_is_near_in_memory_streamed_and_in_the_curve(uneven, tmp_path):
    memory, files = _memory_run(tmp_path / "memory", uneven), _files_run(tmp_path / "files", uneven)
    # Snapshots have all classes in turn.
    save_tensors(memory.folder / SNAPSHOTS, {"0": memory.generator(torch.randn(400, 1), torch.arange(400) % 2, None)})
    at_once, streamed = (run.evaluate(extractor="pixels", count=300) for run in (memory, files))
    named = files.evaluate(extractor="pixels", count=300, real=str(uneven / "test"))
    floor = at_once["frechet_distance_floor"]
    images = (
        bars(torch.arange(300) % 2, channels=3, seed=9),
        ImageFiles(uneven, image_size=8, split="test").read(torch.arange(400)),
    )
    in_turn = frechet_distance(*(gaussian_of(to_signed(some).flatten(1)) for some in images))
    found = [at_once["frechet_distance"], *at_once["frechet_curve"], streamed["frechet_distance"], named["frechet_distance"]]
    assert in_turn > 5 * floor
    assert max(found) < 1.3 * floor
    assert streamed["frechet_distance_floor"] == pytest.approx(floor, rel=0.1)
    assert at_once["frechet_curve_floor"] < 1.3 * floor


def test_classes_of_another_folder_are_told_apart_by_their_names(uneven, tmp_path, monkeypatch):
    """A folder of "b" alone, and one of classes that the run does not know."""
    run, asked = _files_run(tmp_path / "run", uneven), []
    forward = run.generator.forward
    monkeypatch.setattr(
        run.generator, "forward", lambda noise, labels, scale: asked.append(labels) or forward(noise, labels, scale)
    )
    for names, shares in ((("b",), [0, 40]), (("b", "a"), [30, 10]), (("x", "y"), [36, 4])):
        asked.clear()
        place = write_images(tmp_path / "".join(names), dict(zip(names, (10, 30), strict=False)), channels=3, seed=4)
        run.evaluate(extractor="pixels", count=40, real=str(place))
        assert torch.cat(asked[1:]).bincount(minlength=2).tolist() == shares


def _distance(run: Run, **options) -> dict:
    return run.evaluate(extractor="pixels", count=100, **options)


@pytest.mark.parametrize("make", [_files_run, _memory_run])
@pytest.mark.parametrize("named", ["own", "link", "copy"])
def test_images_of_the_reference_make_no_floor(uneven, tmp_path, make, named):
    """The whole folder of the run, by whatever path, is the reference: nothing is left for a floor."""
    place = shutil.copytree(uneven / "train", tmp_path / "own")
    real = {"own": place, "link": tmp_path / "link", "copy": tmp_path / "copy"}[named]
    if named == "link":
        real.symlink_to(place)
    elif named == "copy":
        shutil.copytree(place, real)
    run = make(tmp_path / "run", place)
    with pytest.warns(UserWarning, match="the floor, the same figures of other real images, is left out: "):
        metrics = _distance(run, real=str(real))
    assert not [name for name in metrics if name.endswith("_floor")]


def test_floor_is_of_the_images_that_are_none_of_the_reference(uneven, tmp_path):
    """The reference has copies of half of the training images; the floor is that of the other half."""
    real, others = tmp_path / "real", tmp_path / "others"
    for name in UNEVEN:
        for index, path in enumerate(sorted((uneven / "train" / name).iterdir())):
            target = (real if index % 2 else others) / name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    shared = _distance(_files_run(tmp_path / "run", uneven / "train"), real=str(real))
    apart = _distance(_files_run(tmp_path / "other", others), real=str(real))
    assert shared["frechet_distance_floor"] == pytest.approx(apart["frechet_distance_floor"], rel=0.15)
    assert "num_samples_floor" not in shared


def test_images_that_a_streamed_extractor_was_trained_on_make_no_floor(uneven, tmp_path, monkeypatch):
    files = ImageFiles(uneven, image_size=8)
    known = torch.arange(len(files)) % 4 > 0
    looked = []

    def embed(images):
        looked.append(digests(images))
        return images.float().mean((1, 2))

    extractor = Extractor("columns", embed, trained_on=digests(files.read(known.nonzero()[:, 0])), cache=tmp_path)
    monkeypatch.setattr("drifting.runs.evaluate.load_extractor", lambda *args: extractor)
    metrics = _files_run(tmp_path / "run", uneven).evaluate(count=80)
    assert "num_samples_floor" not in metrics
    assert not torch.isin(torch.cat(looked), extractor.trained_on).any()


def _kept(run: Run) -> int:
    return len(list((run.folder / "statistics").iterdir()))


def test_statistics_are_those_of_the_size_and_of_the_files_that_are_there_now(uneven, tmp_path):
    place = shutil.copytree(uneven, tmp_path / "own")
    run = _files_run(tmp_path / "run", place)
    first = _distance(run)
    assert _distance(run) == first
    assert _kept(run) == 2
    for path in sorted((place / "test" / "a").iterdir())[:200]:
        before = path.stat()
        Image.new("RGB", (8, 8), (250, 0, 0)).save(path)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    second = _distance(run)
    assert second["frechet_distance"] > 2 * first["frechet_distance"]
    for path in sorted((place / "train" / "a").iterdir())[:200]:
        path.write_bytes((place / "train" / "b" / "000.png").read_bytes())
    third = _distance(run)
    assert third["frechet_distance"] == second["frechet_distance"]
    assert third["frechet_distance_floor"] != second["frechet_distance_floor"]


def test_another_size_is_another_entry(uneven):
    small, large = (ImageFiles(uneven, image_size=size) for size in (8, 16))
    some = torch.arange(5)
    assert small.state(some) != large.state(some)
    assert small.fingerprint() == large.fingerprint()
    assert small.state(some) != small.state(some.flip(0))
    assert small.state(some) == ImageFiles(uneven, image_size=8).state(some)


def test_statistics_of_two_sizes_are_kept_apart(uneven, tmp_path, monkeypatch):
    extractor = Extractor("columns", lambda images: images.float().mean((1, 2))[:, :8], cache=tmp_path)
    monkeypatch.setattr("drifting.runs.evaluate.load_extractor", lambda *args: extractor)
    small = _files_run(tmp_path / "run", uneven)
    data = dataclasses.replace(small.config.data, image_size=16, image_shape=(3, 16, 16))
    large = dataclasses.replace(small, config=dataclasses.replace(small.config, data=data))
    first, second = (run.evaluate(count=60)["frechet_distance_floor"] for run in (small, large))
    assert first != pytest.approx(second, rel=0.01)
    assert small.evaluate(count=60)["frechet_distance_floor"] == first


def test_configurations_of_runs_of_before_still_fit_their_files(uneven):
    """What a streamed run keeps of its files is of their names alone, as in earlier versions."""
    files = ImageFiles(uneven, image_size=8)
    data = ImageFilesData(path=str(uneven), image_size=8, files=files.fingerprint())
    os.utime(uneven / "train" / "a" / "000.png")
    assert data.open().fingerprint() == files.fingerprint()
