"""The learned encoder: its loss against an oracle, its features, and that it learns, resumes and is a part of a run."""

import dataclasses
import math

import pytest
import torch

from drifting import presets, runs
from drifting.encoders import LearnedConfig, LearnedFeatures
from drifting.encoders.learned import density_loss
from drifting.errors import InputError
from drifting.training.encoder import LearnedEncoder

SHAPE = (1, 8, 8)


def _loss_by_definition(real: torch.Tensor, generated: torch.Tensor, temperature: float) -> float:
    """Compute the loss sample by sample."""
    bandwidth = temperature * math.sqrt(real.shape[2])

    def log_density(place, samples, left_out):
        kernels = [math.exp(-float((place - one).norm()) / bandwidth) for index, one in enumerate(samples) if index != left_out]
        return math.log(sum(kernels) / len(kernels))

    def softplus(value):
        return math.log1p(math.exp(value))

    total = 0.0
    for group, others in zip(real, generated, strict=True):
        scores = [log_density(x, group, index) - log_density(x, others, None) for index, x in enumerate(group)]
        total += sum(softplus(-score) for score in scores) / len(scores)
        scores = [log_density(x, group, None) - log_density(x, others, index) for index, x in enumerate(others)]
        total += sum(softplus(score) for score in scores) / len(scores)
    return total / len(real)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_loss_is_that_of_the_definition(temperature, offset):
    rng = torch.Generator().manual_seed(0)
    real, generated = (torch.randn(3, count, 5, generator=rng, dtype=torch.float64) + offset for count in (7, 6))
    assert float(density_loss(real, generated, temperature=temperature)) == pytest.approx(
        _loss_by_definition(real, generated, temperature), rel=1e-6
    )


def test_gradient_is_right_and_finite_where_samples_coincide(in_float64):
    rng = torch.Generator().manual_seed(1)
    real, generated = (torch.randn(2, 4, 3, generator=rng).requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(lambda *sets: density_loss(*sets, temperature=0.5), (real, generated))
    same = torch.zeros(1, 3, 2, requires_grad=True)
    density_loss(same, torch.zeros(1, 4, 2), temperature=0.5).backward()
    assert same.grad.isfinite().all()


def test_loss_is_near_two_log_two_where_both_distributions_agree_and_small_where_they_are_apart():
    rng = torch.Generator().manual_seed(2)
    real, other = (torch.randn(1, 500, 2, generator=rng) for _ in range(2))
    assert float(density_loss(real, other, temperature=0.5)) == pytest.approx(2 * math.log(2), abs=0.05)
    assert float(density_loss(real, other + 20, temperature=0.5)) < 1e-3


def test_network_starts_as_the_image_and_gives_the_features_by_name():
    names = ("output", "block2_mean_4", "stem_std", "pixels")
    network = LearnedFeatures(SHAPE, width=6, names=names)
    images = torch.randn(5, *SHAPE)
    features = network(images)
    assert {name: tuple(value.shape) for name, value in features.items()} == {
        "output": (5, 64, 1),
        "block2_mean_4": (5, 4, 6),
        "stem_std": (5, 1, 6),
        "pixels": (5, 1, 64),
    }
    torch.testing.assert_close(features["output"][..., 0], images.flatten(1))


def test_encoder_learns_to_tell_noise_from_smooth_images():
    rng = torch.Generator().manual_seed(3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = LearnedFeatures(SHAPE, width=8, names=("block4_mean", "output_std_4"))
    encoder = LearnedEncoder(network, LearnedConfig(width=8, learning_rate=3e-3))

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        smooth = torch.randn(2, 12, 1, 1, 1, generator=rng).expand(-1, -1, *SHAPE)
        return smooth, torch.randn(2, 12, *SHAPE, generator=rng)

    losses = [float(encoder.learn(*batch())) for _ in range(25)]
    assert losses[-1] < losses[0] / 2
    assert not any(weight.requires_grad for weight in network.parameters())


@pytest.fixture
def learned_digits(tiny_digits):
    encoder = LearnedConfig(width=4, features=("pixels", "block1_mean", "output_mean_4"), learning_rate=1e-2)
    return dataclasses.replace(tiny_digits, encoder=encoder)


def test_half_a_run_and_the_other_half_are_the_whole_run(tmp_path, learned_digits, no_pictures, assert_same_tensors):
    whole = runs.train(learned_digits, tmp_path / "whole")
    half = dataclasses.replace(learned_digits, schedule=dataclasses.replace(learned_digits.schedule, steps=3))
    runs.train(half, tmp_path / "half")
    resumed = runs.train(learned_digits, tmp_path / "half", resume=True)
    assert_same_tensors(resumed.generator.state_dict(), whole.generator.state_dict())
    state = "checkpoints/step-00000006/state.safetensors"
    assert (tmp_path / "half" / state).read_bytes() == (tmp_path / "whole" / state).read_bytes()


def test_encoder_changes_in_the_run_and_its_loss_is_logged(tmp_path, learned_digits, no_pictures):
    run = runs.train(learned_digits, tmp_path / "run")
    lines = [line for line in (run.folder / "metrics.jsonl").read_text().splitlines() if "encoder_loss" in line]
    assert len(lines) == 3
    assert not (run.folder / "encoder.safetensors").exists()
    assert runs.load_run(run.folder).sample(4).shape == (4, 8, 8, 1)


@pytest.mark.parametrize("name", ["mnist-learned", "cifar10-learned"])
def test_presets_build_their_encoder(name):
    config = presets.preset(name)
    shape = (3, 32, 32) if name.startswith("cifar10") else (1, 28, 28)
    network = config.encoder.build_network(shape, num_classes=10, read=None)
    assert tuple(network(torch.zeros(2, *shape))) == config.encoder.features
    assert not config.trains_encoder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "encoder.width is 0"),
        ({"temperature": 0.0}, "temperature is 0"),
        ({"learning_rate": -1.0}, "encoder.learning_rate is -1"),
        ({"max_grad_norm": 0.0}, "encoder.max_grad_norm is 0"),
    ],
)
def test_wrong_settings_are_refused(tiny_digits, changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(tiny_digits, encoder=LearnedConfig(**changes))


def test_points_and_unknown_features_are_refused():
    with pytest.raises(InputError, match="encoder is learned from images"):
        LearnedFeatures((2,))
    with pytest.raises(InputError, match="features has 'blok1': did you mean 'block1'"):
        LearnedFeatures(SHAPE, names=("blok1",))
    with pytest.raises(InputError, match="generated is 1 per label"):
        density_loss(torch.zeros(1, 3, 2), torch.zeros(1, 1, 2), temperature=1.0)
