"""Artifacts of the release against the outputs that came with them."""

from pathlib import Path

import pytest
import torch

from drifting.hub import load_encoder, load_generator, read_artifact, write_artifact
from drifting.hub.release_format import build_network, metadata_of
from drifting.sampling import sample
from tests.support.artifacts import REFERENCE, expected, needs_reference

pytestmark = needs_reference
GENERATORS, ENCODERS = ["generator_latent", "generator_pixel"], ["mae_latent", "mae_pixel"]


@pytest.mark.parametrize("case", GENERATORS)
def test_generator_is_that_of_the_release(case):
    generator, given = load_generator(Path(REFERENCE) / case), expected(case)
    inputs = given["labels"], given["cfg_scale"], given["style_indices"]
    with torch.no_grad():
        condition, samples = generator.condition(given["noise"], *inputs), generator(given["noise"], *inputs)
    assert float((condition - given["condition"]).abs().max()) < 1e-6
    assert float((samples - given["output"]).abs().max()) < 3e-6
    assert not generator.training


@pytest.mark.parametrize("case", GENERATORS)
def test_guidance_scale_may_be_one_for_all_and_styles_are_drawn(case):
    generator, given = load_generator(Path(REFERENCE) / case), expected(case)
    noise, labels, styles = given["noise"], given["labels"], given["style_indices"]
    with torch.no_grad():
        same = generator(noise, labels, torch.full((len(noise),), 1.5), style_indices=styles)
        assert torch.equal(generator(noise, labels, 1.5, style_indices=styles), same)
        assert not torch.equal(generator(noise, labels, 2.5, style_indices=styles), same)
        torch.manual_seed(0)
        first, second = (generator(noise, labels, 1.5) for _ in range(2))
        torch.manual_seed(0)
        again = generator(noise, labels, 1.5)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("case", ENCODERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-5), (torch.float64, 1.5e-5)])
def test_encoder_is_that_of_the_release(case, dtype, tolerance):
    encoder, given = load_encoder(Path(REFERENCE) / case).to(dtype), expected(case)
    images = given.pop("image").to(dtype)
    with torch.no_grad():
        features, (reconstruction, logits) = encoder(images), encoder.autoencoder(images)
    ours = {"reconstruction": reconstruction, "logits": logits, **{f"act_{name}": value for name, value in features.items()}}
    assert ours.keys() == given.keys()
    assert {value.dtype for value in ours.values()} == {dtype}
    errors = {name: float((value - given[name]).abs().max()) for name, value in ours.items()}
    assert {name: error for name, error in errors.items() if not error < tolerance} == {}


@pytest.mark.parametrize("case", GENERATORS + ENCODERS)
def test_artifact_is_written_back_byte_for_byte(case, tmp_path):
    artifact = read_artifact(Path(REFERENCE) / case)
    weights = {name: artifact.read(name).clone() for name in artifact.places}
    write_artifact(tmp_path, artifact.metadata, build_network(artifact.metadata, case), weights.__getitem__)
    for file in ("ema_params.msgpack", "metadata.json"):
        assert (tmp_path / file).read_bytes() == (artifact.folder / file).read_bytes()


@pytest.mark.parametrize("case", GENERATORS + ENCODERS)
def test_metadata_of_our_network_is_that_of_the_release(case):
    artifact = read_artifact(Path(REFERENCE) / case)
    assert metadata_of(artifact.network()) == artifact.metadata


@pytest.mark.parametrize("case", GENERATORS)
def test_sample_does_not_depend_on_its_batch(case, monkeypatch):
    generator, seen = load_generator(Path(REFERENCE) / case), []
    forward = generator.forward
    monkeypatch.setattr(generator, "forward", lambda noise, *inputs: seen.append((noise, inputs[2])) or forward(noise, *inputs))
    samples, given = {}, {}
    for size in (1, 7, 64):
        samples[size] = sample(generator, 64, seed=3, guidance_scale=1.5, batch_size=size)
        given[size] = [torch.cat(parts) for parts in zip(*seen, strict=True)]
        seen.clear()
    for size in (1, 7):
        assert all(torch.equal(one, other) for one, other in zip(given[size], given[64], strict=True))
        assert float((samples[size] - samples[64]).abs().max()) < 1e-5
        as_bytes = [(samples[each].clamp(-1, 1) * 127.5 + 127.5).round().int() for each in (size, 64)]
        assert int((as_bytes[0] - as_bytes[1]).abs().max()) <= 1
