"""Runs on data that stay on disk: image files, and latents that were computed from them before."""

import dataclasses

import pytest
import torch

from drifting import presets, runs
from drifting.checkpoint import checkpoints, load_tensors
from drifting.config import LossConfig, RunConfig, from_json, to_json
from drifting.data import BankConfig, ImageFilesData, LatentsData
from drifting.data import bank as opening
from drifting.data.image_folder import ImageFiles
from drifting.data.latents_writer import CacheSettings, write_latents
from drifting.data.pixels import load_vae, to_bytes, to_signed
from drifting.encoders import AutoencoderConfig
from drifting.encoders.base import identity
from drifting.errors import InputError
from drifting.generators import MLPConfig
from drifting.runs.train import build_positives, resolve
from drifting.training.schedule import Schedule
from tests.support.image_folders import write_images
from tests.support.tiny_vae import write_vae

COUNTS = {"train/a": 5, "train/b": 6, "train/c": 4, "val/a": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with images/, vae/ and cache/."""
    folder = tmp_path_factory.mktemp("streamed")
    write_images(folder / "images", COUNTS, channels=3)
    write_vae(folder / "vae")
    write_latents(folder / "images", folder / "vae", folder / "cache", CacheSettings(image_size=8, shard_size=4))
    return folder


def _config(data) -> RunConfig:
    guided = {"guidance_scale": 2.0, "unconditional": 2}
    schedule = Schedule(steps=4, generated=4, positives=3, labels_per_step=2, learning_rate=1e-3, **guided)
    bank = BankConfig(capacity_per_class=4, unconditional_capacity=5, push_per_step=3)
    often = {"log_every": 2, "checkpoint_every": 2, "snapshots": 1, "snapshot_samples": 6}
    generator = MLPConfig(noise_dim=4, width=8, depth=1)
    return RunConfig(preset="own", data=data, generator=generator, loss=LossConfig(), schedule=schedule, bank=bank, **often)


@pytest.fixture
def on_latents(place):
    return _config(LatentsData(path=str(place / "cache")))


@pytest.fixture
def on_images(place):
    return _config(ImageFilesData(path=str(place / "images"), image_size=8))


@pytest.fixture(params=["on_latents", "on_images"])
def config(request):
    return request.getfixturevalue(request.param)


def _shape(config):
    return (4, 4, 4) if isinstance(config.data, LatentsData) else (3, 8, 8)


def test_resolving_finds_shape_classes_and_files_and_happens_once(config, place):
    with pytest.raises(InputError, match="whose shape is not known yet: resolve the configuration first"):
        config.build_generator()
    resolved = resolve(config)
    assert (resolved.data.image_shape, resolved.data.num_classes) == (_shape(config), 3)
    files = ImageFiles(place / "images", image_size=8)
    known = files.names_fingerprint() if isinstance(config.data, LatentsData) else files.fingerprint()
    assert resolved.data.files == known
    if isinstance(config.data, LatentsData):
        assert (resolved.data.vae, resolved.data.vae_fingerprint) == (str(place / "vae"), load_vae(place / "vae").fingerprint())
    assert resolve(resolved) == resolved
    assert from_json(to_json(resolved), "here") == resolved
    generator, source = resolved.build_generator(), resolved.data.source(resolved.seed)
    assert generator.sample_shape == source.sample_shape == _shape(config)
    assert generator.num_classes == source.num_classes == 3


def test_one_joint_population(config):
    schedule = dataclasses.replace(config.schedule, guidance_scale=1.0)
    config = dataclasses.replace(config, schedule=schedule, data=dataclasses.replace(config.data, conditional=False))
    resolved = resolve(config)
    assert (resolved.data.num_classes, resolved.data.source(resolved.seed).num_classes) == (None, None)
    assert build_positives(resolved, identity).draw(None, 3, torch.Generator())["sample"].shape[:2] == (1, 3)


def test_positives_are_the_latents_that_the_vae_gives(place, on_latents):
    on_latents = dataclasses.replace(on_latents, bank=dataclasses.replace(on_latents.bank, capacity_per_class=500))
    positives = build_positives(resolve(on_latents), identity)
    vae, files, rng = load_vae(place / "vae"), ImageFiles(place / "images", image_size=8), torch.Generator().manual_seed(0)
    drawn = torch.cat([positives.draw(torch.tensor([2]), 4, rng)["sample"][0, :, 0] for _ in range(300)])
    images = to_signed(files.read(torch.arange(11, 15)))
    moments = torch.cat([vae.moments(images), vae.moments(images.flip(-1))])
    means = vae.draw(moments, torch.zeros(8, 4, 4, 4)).flatten(1)
    spread = vae.draw(moments, torch.ones(8, 4, 4, 4)).flatten(1) - means
    # Each is nearest to one of the eight, which come about equally often; and spreads around it as the moments say.
    normal = (drawn[:, None] - means) / spread
    of = normal.square().mean(2).argmin(1)
    assert of.unique().tolist() == list(range(8))
    residuals = normal[torch.arange(len(of)), of]
    assert float(residuals.mean()) == pytest.approx(0, abs=0.05)
    assert float(residuals.std()) == pytest.approx(1, abs=0.05)


def test_positives_are_the_images_and_their_mirror_images(place, on_images):
    positives = build_positives(resolve(on_images), identity)
    drawn = positives.draw(torch.tensor([2, 2, 2]), 4, torch.Generator().manual_seed(0))["sample"].flatten(0, 2)
    images = to_signed(ImageFiles(place / "images", image_size=8).read(torch.arange(11, 15)))
    known = torch.cat([images, images.flip(-1)]).flatten(1)
    assert torch.cdist(drawn, known).min(1).values.max() < 1e-6


@pytest.mark.usefixtures("no_pictures")
def test_n_and_n_steps_equal_2n_bit_for_bit(config, tmp_path, assert_same_tensors):
    half = dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, steps=2))
    whole = runs.train(config, tmp_path / "whole").folder
    runs.train(half, tmp_path / "halves")
    halves = runs.train(config, tmp_path / "halves", resume=True).folder
    states = [load_tensors(checkpoints(folder / "checkpoints")[-1] / "state.safetensors") for folder in (whole, halves)]
    assert states[0]["positives.classes.samples"].shape == (3, 4, 2)
    assert_same_tensors(*states)
    assert_same_tensors(*(load_tensors(folder / "generator.safetensors") for folder in (whole, halves)))


def test_run_leaves_pictures_and_gives_images(config, tmp_path):
    run = runs.train(config, tmp_path / "run")
    assert {path.name for path in run.pictures} == {"samples.png", "progress.png", "losses.png", "training.gif"}
    images = runs.load(run.folder).sample(3, seed=1)
    assert (images.dtype, images.shape) == (torch.uint8, (3, 8, 8, 3))


def test_latents_are_decoded_for_the_user(place, on_latents):
    latents, vae = torch.randn(2, 4, 4, 4), load_vae(place / "vae")
    assert torch.equal(resolve(on_latents).data.exporter()(latents), to_bytes(vae.decode(latents)).movedim(1, -1))


def test_data_that_stay_on_disk_need_a_bank(config):
    with pytest.raises(
        InputError, match="bank is None, but the data set is on disk, too slow to draw from at every step: pass a BankConf"
    ):
        dataclasses.replace(config, bank=None)


def test_bank_is_on_the_device_of_the_run_or_on_the_cpu(config, monkeypatch):
    kept_on, make = [], opening.MemoryBank
    monkeypatch.setattr(opening, "MemoryBank", lambda *given, device, **more: kept_on.append(device) or make(*given, **more))
    for bank in (config.bank, dataclasses.replace(config.bank, on_cpu=True)):
        build_positives(dataclasses.replace(resolve(config), bank=bank, device="cuda"), identity)
    assert kept_on == ["cuda", "cpu"]


def test_encoders_that_learn_from_images_in_memory_are_refused(config):
    with pytest.raises(InputError, match="encoder is an auto-encoder, but the data set is on disk: use the space of the samples"):
        dataclasses.replace(resolve(config), encoder=AutoencoderConfig()).build_network()


def test_data_that_are_missing_or_have_no_classes_are_reported(config, place, tmp_path):
    latents = isinstance(config.data, LatentsData)
    what = "a cache that drifting latents wrote" if latents else "a folder of images"
    with pytest.raises(InputError, match=f"data is missing: pass --data with {what}"):
        resolve(dataclasses.replace(config, data=dataclasses.replace(config.data, path=None)))
    loose = write_images(tmp_path / "loose", {".": 3})
    if latents:
        write_latents(loose, place / "vae", tmp_path / "cache", CacheSettings(image_size=8))
    path = str(tmp_path / "cache" if latents else loose)
    with pytest.raises(InputError, match=r"data is '.*', which has no labels: use one sub-folder per class, or train without"):
        resolve(dataclasses.replace(config, data=dataclasses.replace(config.data, path=path)))


@pytest.mark.usefixtures("no_pictures")
def test_resuming_on_other_data_is_refused(place, tmp_path, config):
    latents, own = isinstance(config.data, LatentsData), tmp_path / "own"
    write_images(tmp_path / "images", COUNTS, channels=3)
    data = dataclasses.replace(config.data, path=str(own if latents else tmp_path / "images"))
    settings = CacheSettings(image_size=8)
    if latents:
        write_latents(tmp_path / "images", place / "vae", own, settings)
    config = dataclasses.replace(config, data=data)
    resolved = runs.train(config, tmp_path / "run").config
    longer = dataclasses.replace(resolved, schedule=dataclasses.replace(resolved.schedule, steps=6))
    write_images(tmp_path / "images" / "train" / "a", {"more": 1}, channels=3)
    if not latents:
        message = r"data is '.*images', whose class 'a' has \d+ training images where the run began with \d+: bring those back"
        with pytest.raises(InputError, match=message):
            runs.train(longer, tmp_path / "run", resume=True)
        (tmp_path / "images" / "train" / "a" / "more" / "000.png").unlink()
        (tmp_path / "images" / "train" / "a" / "000.png").rename(tmp_path / "images" / "train" / "a" / "renamed.png")
        message = r"data is '.*images', whose files are not those that the run began with \(\w+, not \w+\): bring them back"
        with pytest.raises(InputError, match=message):
            runs.train(longer, tmp_path / "run", resume=True)
        return
    other = write_vae(tmp_path / "vae", seed=1)
    for vae, size, words in ((other, 8, "VAE"), (place / "vae", 16, "size of latents"), (place / "vae", 8, "list of files")):
        write_latents(tmp_path / "images", vae, own, dataclasses.replace(settings, image_size=size), overwrite=True)
        with pytest.raises(
            InputError, match=rf"data is '.*own', a cache of latents made with another {words} \(.*\): name the cache"
        ):
            runs.train(longer, tmp_path / "run", resume=True)


def test_vae_that_is_another_now_is_refused(place, on_latents, tmp_path):
    data = dataclasses.replace(resolve(on_latents).data, vae=str(write_vae(tmp_path / "vae", seed=1)))
    with pytest.raises(
        InputError, match=r"vae is '.*vae', which is not the one that made the latents \(\w+, not \w+\): bring that"
    ):
        data.load_vae()
    with pytest.raises(InputError, match="whose VAE is not known yet: resolve the configuration first"):
        on_latents.data.load_vae()


@pytest.mark.usefixtures("no_pictures")
def test_command_line_takes_the_data_and_resumes_on_them(config, command, tmp_path, monkeypatch):
    path, run = config.data.path, tmp_path / "run"

    def make(data: str | None = None) -> RunConfig:
        return dataclasses.replace(config, data=dataclasses.replace(config.data, path=data))

    monkeypatch.setitem(presets.PRESETS, "own", presets.Preset(make, "", "", "", ""))
    result = command("train", "own", "--save-dir", run)
    assert (result.status, result.err[:31]) == (2, "drifting: data is missing: pass")
    assert command("train", "own", "--data", path, "--save-dir", run, "--steps", 2).status == 0
    assert command("train", "own", "--data", path, "--save-dir", run, "--resume", "--steps", 3).status == 0
    assert command("train", "own", "--save-dir", run, "--resume", "--steps", 4).status == 0
    result = command("train", "own", "--data", tmp_path, "--save-dir", run, "--resume", "--steps", 5)
    assert (result.status, "but the run to resume has" in result.err) == (2, True)
    assert command("sample", run, "--num-samples", 2, "--out", tmp_path / "s.png").status == 0
