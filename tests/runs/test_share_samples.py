"""Samples of the release's generators by the command line: from artifacts, converted folders and the Hub."""

import numpy as np
import pytest
import torch
from PIL import Image

import drifting
from drifting import runs
from drifting.errors import InputError
from drifting.hub import artifact_folder, load_generator
from drifting.runs import share
from drifting.runs.share import ReleasedGenerator, convert, load
from drifting.sampling import Sampler, sample
from tests.support.artifacts import make_artifact
from tests.support.tiny_vae import write_vae

huggingface_hub = pytest.importorskip("huggingface_hub")
PIXELS = {"in_channels": 3, "out_channels": 3}


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """The folder of a tiny auto-encoder of latents with 4 channels, half as high and wide as its images."""
    return write_vae(tmp_path_factory.mktemp("vae"))


@pytest.fixture
def pixels(tmp_path):
    return make_artifact(tmp_path / "pixels", "gen", **PIXELS)


@pytest.fixture
def latents(tmp_path):
    return make_artifact(tmp_path / "latents", "gen")


def test_grid_of_pixels_is_that_of_the_samples(pixels, tmp_path, command):
    options = ["--labels", 3, 1, "--guidance-scale", 1.5, "--num-samples", 4, "--seed", 5]
    assert command("sample", pixels, *options, "--out", tmp_path / "grid.png").out == f"{tmp_path / 'grid.png'}\n"
    samples = sample(load_generator(pixels), 4, seed=5, labels=[3, 1], guidance_scale=1.5)
    expected = (samples.clamp(-1, 1) * 127.5 + 127.5).round()
    grid = Image.open(tmp_path / "grid.png")
    # Two columns, one a label; small images are enlarged eightfold.
    assert grid.size == (8 * 19, 8 * 19)
    shown = torch.tensor(np.array(grid)[::8, ::8])
    for index, image in enumerate(expected):
        top, left = 1 + 9 * (index // 2), 1 + 9 * (index % 2)
        assert int((shown[top : top + 8, left : left + 8].movedim(-1, 0) - image).abs().max()) <= 1


@pytest.mark.parametrize("kind", ["pixels", "latents"])
def test_converted_generator_makes_the_same_samples(kind, request, vae, tmp_path, command):
    artifact, ours = request.getfixturevalue(kind), tmp_path / "ours"
    convert(str(artifact), ours)
    decoder = ["--vae", vae] if kind == "latents" else []
    for origin, out in ((artifact, "a.npy"), (ours, "b.npy")):
        assert command("sample", origin, "--num-samples", 7, "--out", tmp_path / out, *decoder).status == 0
    first, second = (np.load(tmp_path / out) for out in ("a.npy", "b.npy"))
    assert np.array_equal(first, second)
    assert (first.dtype, first.shape) == (np.uint8, (7, *((8, 8) if kind == "pixels" else (16, 16)), 3))
    assert first.std() > 1


def test_latents_are_decoded_by_the_library(latents, vae):
    import diffusers

    sampler = load(str(latents), vae=str(vae))
    images = sampler.sample(3, seed=2, labels=[0], guidance_scale=2.0)
    drawn = sample(load_generator(latents), 3, seed=2, labels=[0], guidance_scale=2.0)
    with torch.no_grad():
        decoded = diffusers.AutoencoderKL.from_pretrained(vae).decode(drawn / 0.5).sample
    expected = (decoded.clamp(-1, 1) * 127.5 + 127.5).round().movedim(1, -1)
    assert int((images.int() - expected.int()).abs().max()) <= 1
    assert isinstance(sampler, Sampler)


@pytest.mark.parametrize(("name", "progress"), [("a.png", ["sampling 9/9", "decoding 9/9"]), ("a.npy", ["sampling 9/9"])])
def test_progress_is_reported_beside_the_path(latents, vae, tmp_path, command, name, progress):
    # An array is decoded as it is made, part by part.
    result = command("sample", latents, "--num-samples", 9, "--vae", vae, "--out", tmp_path / name)
    assert result.out == f"{tmp_path / name}\n"
    assert [line.split("  ")[0] for line in result.err.splitlines()] == progress


def test_default_autoencoder_is_the_papers(latents, monkeypatch):
    asked = []

    def look(name):
        asked.append(name)
        raise InputError("no network")

    monkeypatch.setattr(share, "load_vae", look)
    with pytest.raises(InputError, match="no network"):
        load(str(latents))
    assert asked == ["stabilityai/sd-vae-ft-mse"]


def test_runs_are_sampled_as_before(toy_run, tmp_path, command):
    assert command("sample", toy_run, "--num-samples", 9, "--out", tmp_path / "points.npy").status == 0
    assert np.array_equal(np.load(tmp_path / "points.npy"), runs.load(toy_run).sample(9).numpy())
    refused = command("sample", toy_run, "--vae", "x", "--out", tmp_path / "other.npy")
    assert (refused.status, "knows what decodes its samples: leave it out" in refused.err) == (2, True)


def test_many_classes_are_shown_in_rows_of_ten(tmp_path, command):
    many = make_artifact(tmp_path / "many", "gen", **PIXELS, num_classes=1000)
    assert command("sample", many, "--num-samples", 12, "--out", tmp_path / "grid.png").status == 0
    assert Image.open(tmp_path / "grid.png").size == (8 * 91, 8 * 19)


def test_what_cannot_be_sampled_is_refused(pixels, vae, tmp_path):
    five = make_artifact(tmp_path / "five", "gen", in_channels=5, out_channels=5)
    latents = make_artifact(tmp_path / "latents", "gen")
    encoder = make_artifact(tmp_path / "encoder", "mae")
    convert(str(encoder), tmp_path / "ours")
    for origin, name, labels, message in [
        (pixels, vae, None, "but this generator makes pixels: leave it out"),
        (five, None, None, "vae is missing for latents of 5 channels"),
        (five, vae, None, "which decodes latents of 4 channels, not 5"),
        (latents, tmp_path, None, "which cannot be loaded"),
        # Before the auto-encoder is loaded.
        (latents, tmp_path, [5], r"labels is \[5\]: choose from 0 to 4"),
        (encoder, None, None, "an encoder, not a generator"),
        (tmp_path / "ours", None, None, "an encoder, not a generator"),
        (tmp_path / "none", None, None, "which is not a folder"),
    ]:
        with pytest.raises(InputError, match=message):
            load(str(origin), vae=None if name is None else str(name), labels=labels)


def test_output_is_checked_before_anything_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(share, "artifact_folder", lambda origin: pytest.fail("looked for the generator"))
    with pytest.raises(InputError, match=r"name a \.png picture, a \.npy or \.npz array, or a folder"):
        share.write_samples("hub:ablation", tmp_path / "x.gif", 3)


@pytest.fixture
def hub(monkeypatch, pixels):
    """Stand in for the Hub, where one generator lies; record what is asked for."""
    asked = []

    def known(name):
        return name.startswith("models/gen/jax/ablation/")

    def download(repository, name):
        asked.append((repository, name))
        if not known(name):
            raise OSError("nothing\nthere")
        return str(pixels / name.rsplit("/", 1)[1])

    def ask(url, timeout):
        assert timeout <= 10
        asked.append(url)
        if "ablation" not in url:
            raise OSError("nothing\nthere")

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, name: None)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", ask)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return asked


def test_published_generator_is_downloaded_and_sampled(hub, tmp_path, command):
    assert command("sample", "hub:ablation", "--num-samples", 2, "--out", tmp_path / "grid.png").status == 0
    assert (tmp_path / "grid.png").exists()
    asked, *files = hub
    folder = "models/gen/jax/ablation"
    assert asked == f"https://huggingface.co/Goodeat/drifting/resolve/main/{folder}/metadata.json"
    assert files == [("Goodeat/drifting", f"{folder}/metadata.json"), ("Goodeat/drifting", f"{folder}/ema_params.msgpack")]


def test_what_is_in_the_cache_is_not_asked_for(hub, pixels, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, name: str(pixels / name.rsplit("/", 1)[1]))
    assert artifact_folder("hub:mae_latent_640") == pixels
    assert hub == []


def test_no_network_is_reported_in_one_sentence(hub, tmp_path, command):
    refused = command("convert", "hub:mae_pixel_640", "--out", tmp_path / "out")
    assert (refused.status, refused.out) == (2, "")
    assert refused.err == (
        "drifting: 'hub:mae_pixel_640' cannot be downloaded (nothing there): check the network, or name a downloaded folder\n"
    )
    assert hub == ["https://huggingface.co/Goodeat/drifting/resolve/main/models/mae/jax/mae_pixel_640/metadata.json"]
    assert not (tmp_path / "out").exists()


def test_generator_and_decoder_may_be_made_by_hand(pixels):
    assert ReleasedGenerator(load_generator(pixels)).sample(2).dtype == torch.uint8


def test_one_loader_takes_runs_artifacts_and_converted_ones(toy_run, pixels, tmp_path):
    convert(str(pixels), tmp_path / "ours")
    assert isinstance(drifting.load(toy_run), drifting.Run)
    theirs, ours = drifting.load(pixels), drifting.load(tmp_path / "ours")
    assert torch.equal(theirs.sample(3, seed=1), ours.sample(3, seed=1))
