import dataclasses
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from drifting.encoders.base import identity
from drifting.errors import InputError
from drifting.generators.base import Generator
from drifting.generators.mlp import MLP
from drifting.loss import DriftingLoss
from drifting.presets import adjust
from drifting.runs.train import build_encoder, resolve
from drifting.training.step import Batch, computed_in, drifting_step


class Shifting(Generator):
    """Adds a learned vector of the label to the noise."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.noise_shape, self.sample_shape, self.num_classes = (2,), (2,), num_classes
        self.shift = nn.Parameter(torch.arange(2.0 * num_classes).reshape(num_classes, 2))

    def forward(self, noise, labels=None, guidance_scale=None):
        return noise + self.shift[labels]


def _random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def batch() -> Batch:
    return Batch(noise=_random(3, 6, 2, seed=0), positives={"sample": _random(3, 5, 1, 2, seed=1)}, labels=torch.tensor([2, 0, 1]))


LOSS = DriftingLoss(temperatures=(0.5, 2.0))


def test_step_is_the_loss_of_the_encoded_samples(batch):
    generator = Shifting(4)
    generated = batch.noise + generator.shift[batch.labels][:, None]
    expected = LOSS({"sample": generated[:, :, None]}, batch.positives)
    report = drifting_step(generator, identity, LOSS, batch)
    torch.testing.assert_close(report.loss, expected.loss)
    assert report.features.keys() == {"sample"}
    gradients = [torch.autograd.grad(result.loss, generator.shift)[0] for result in (report, expected)]
    torch.testing.assert_close(*gradients)


def test_gradient_reaches_every_weight_and_no_data():
    generator = MLP(noise_dim=2, sample_shape=(2,), width=8, depth=2)
    batch = Batch(noise=_random(1, 6, 2, seed=0), positives={"sample": _random(1, 5, 1, 2, seed=1).requires_grad_()})
    drifting_step(generator, identity, LOSS, batch).loss.backward()
    assert all(float(weight.grad.abs().sum()) > 0 for weight in generator.parameters())
    assert batch.positives["sample"].grad is None


def test_only_labels_of_the_step_get_a_gradient(batch):
    generator = Shifting(4)
    drifting_step(generator, identity, LOSS, batch).loss.backward()
    assert (generator.shift.grad.abs().sum(1) > 0).tolist() == [True, True, True, False]


def test_labels_are_populations_of_their_own(batch):
    """Without shared scales, the loss of several labels is the mean of the losses of each."""
    loss = DriftingLoss(temperatures=(0.5,), normalize_features=False, normalize_drift=False)

    def of(labels: slice) -> torch.Tensor:
        part = Batch(
            noise=batch.noise[labels], positives={"sample": batch.positives["sample"][labels]}, labels=batch.labels[labels]
        )
        return drifting_step(Shifting(4), identity, loss, part).loss

    torch.testing.assert_close(of(slice(0, 3)), torch.stack([of(slice(i, i + 1)) for i in range(3)]).mean())


def test_independent_batch_repels_as_a_constant(batch):
    generator = Shifting(4)
    other = dataclasses.replace(batch, independent_noise=_random(3, 4, 2, seed=2))
    report = drifting_step(generator, identity, LOSS, other)
    shift = generator.shift[batch.labels][:, None]
    negatives = {"sample": (other.independent_noise + shift).detach()[:, :, None]}
    generated = {"sample": (batch.noise + shift)[:, :, None]}
    expected = LOSS(generated, batch.positives, generated_negatives=negatives)
    torch.testing.assert_close(report.loss, expected.loss)
    gradients = [torch.autograd.grad(result.loss, generator.shift)[0] for result in (report, expected)]
    torch.testing.assert_close(*gradients)
    paper = torch.autograd.grad(drifting_step(generator, identity, LOSS, batch).loss, generator.shift)[0]
    assert not torch.allclose(gradients[0], paper)


def test_order_of_samples_within_a_label_does_not_matter(batch):
    order = torch.tensor([3, 1, 0, 5, 4, 2])
    shuffled = dataclasses.replace(batch, noise=batch.noise[:, order], positives={"sample": batch.positives["sample"].flip(1)})
    first, second = (drifting_step(Shifting(4), identity, LOSS, one).loss for one in (batch, shuffled))
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("wanted", [False, True])
def test_statistics_are_reported_when_asked_for(batch, wanted):
    report = drifting_step(Shifting(4), identity, LOSS, batch, statistics=wanted).features["sample"]
    assert (report.statistics is not None) is wanted
    assert list(report.drift_norms) == [0.5, 2.0]


def test_step_leaves_weights_and_batch_as_they_were(batch):
    generator = Shifting(4)
    copies = generator.shift.detach().clone(), batch.noise.clone(), batch.positives["sample"].clone()
    drifting_step(generator, identity, LOSS, batch).loss.backward()
    for after, before in zip((generator.shift, batch.noise, batch.positives["sample"]), copies, strict=True):
        assert torch.equal(after, before)


def test_unconditional_samples_repel_with_their_weight(batch):
    generator, unconditional = Shifting(4), {"sample": _random(3, 4, 1, 2, seed=5)}
    generated = {"sample": (batch.noise + generator.shift[batch.labels][:, None])[:, :, None]}
    weight = torch.tensor([0.7, 0.0, 1.9])
    guided = dataclasses.replace(batch, unconditional=unconditional, unconditional_weight=weight)
    weights = {"unconditional": weight[:, None].repeat(1, 4)}
    expected = LOSS(generated, batch.positives, unconditional, weights=weights)
    report = drifting_step(generator, identity, LOSS, guided)
    gradients = [torch.autograd.grad(result.loss, generator.shift)[0] for result in (report, expected)]
    torch.testing.assert_close(*gradients)
    unguided = torch.autograd.grad(drifting_step(generator, identity, LOSS, batch).loss, generator.shift)[0]
    assert not torch.allclose(gradients[0], unguided)


class Telling(Shifting):
    """Adds the guidance scale, and the style codes where there are any."""

    def forward(self, noise, labels=None, guidance_scale=None, style_indices=None):
        samples = noise + self.shift[labels] + guidance_scale[:, None]
        return samples if style_indices is None else samples + style_indices


@pytest.mark.parametrize("with_codes", [False, True])
def test_generator_is_told_guidance_scale_and_codes_of_every_sample(batch, with_codes):
    generator, scale = Telling(4), torch.tensor([1.0, 2.5, 4.0])
    codes = torch.arange(36).reshape(3, 6, 2) if with_codes else None
    guided = dataclasses.replace(batch, guidance_scale=scale, style_indices=codes)
    generated = batch.noise + generator.shift[batch.labels][:, None] + scale[:, None, None] + (codes if with_codes else 0)
    expected = LOSS({"sample": generated[:, :, None]}, batch.positives)
    report = drifting_step(generator, identity, LOSS, guided)
    gradients = [torch.autograd.grad(result.loss, generator.shift)[0] for result in (report, expected)]
    torch.testing.assert_close(*gradients)


def test_independent_batch_has_codes_of_its_own(batch):
    generator, codes = Telling(4), torch.arange(24).reshape(3, 4, 2)
    other = {"independent_noise": _random(3, 4, 2, seed=2), "independent_style_indices": codes}
    own = {"guidance_scale": torch.ones(3), "style_indices": torch.zeros(3, 6, 2, dtype=torch.long)}
    shift = 1 + generator.shift.detach()[batch.labels][:, None]
    negatives = {"sample": (other["independent_noise"] + shift + codes)[:, :, None]}
    expected = LOSS({"sample": (batch.noise + shift)[:, :, None]}, batch.positives, generated_negatives=negatives)
    report = drifting_step(generator, identity, LOSS, dataclasses.replace(batch, **own, **other))
    for temperature, norm in expected.features["sample"].drift_norms.items():
        torch.testing.assert_close(report.features["sample"].drift_norms[temperature], norm)


@pytest.mark.parametrize("size", [1, 4, 18, 50, None])
def test_inputs_of_all_parts_together_are_those_of_the_whole(batch, size):
    guided = dataclasses.replace(batch, guidance_scale=torch.tensor([1.0, 2.5, 4.0]))
    codes = torch.arange(36).reshape(3, 6, 2)
    parts = list(guided.inputs(batch.noise, codes, size))
    assert max(len(noise) for noise, *_ in parts) == min(size or 18, 18)
    noise, labels, scale, style_indices = (torch.cat(column) for column in zip(*parts, strict=True))
    assert torch.equal(noise, batch.noise.flatten(0, 1))
    assert labels.tolist() == [2] * 6 + [0] * 6 + [1] * 6
    assert scale.tolist() == [1.0] * 6 + [2.5] * 6 + [4.0] * 6
    assert torch.equal(style_indices, codes.flatten(0, 1))


def test_inputs_without_codes_are_three(batch):
    ((_, labels, scale),) = dataclasses.replace(batch, labels=None).inputs(batch.noise, None)
    assert labels is scale is None


VALUES = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))


def _linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(8, 8)


def test_networks_compute_in_bfloat16_and_return_float32():
    linear = _linear()
    rounded = computed_in("bfloat16", linear, "cpu")(VALUES)
    expected = nn.functional.linear(VALUES.bfloat16(), linear.weight.bfloat16(), linear.bias.bfloat16())
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, expected.float())
    assert not torch.equal(rounded, linear(VALUES))
    named = computed_in("bfloat16", lambda values: {"a": linear(values)}, torch.device("cpu"))(VALUES)
    assert torch.equal(named["a"], rounded)


def test_float32_is_the_function_itself():
    linear = _linear()
    assert computed_in("float32", linear, "cpu") is linear


def test_device_without_bfloat16_is_refused_before_the_first_step(monkeypatch):
    old = torch.device("cuda", 7)  # of no machine that runs this
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    with pytest.raises(InputError, match="precision is 'bfloat16', which the device cuda:7 does not compute: pass float32"):
        computed_in("bfloat16", _linear(), old)
    assert computed_in("float32", _linear, old) is _linear


def test_loss_of_a_step_sees_float32_and_weights_get_gradients_in_float32():
    seen = []

    class Watching(DriftingLoss):
        def forward(self, generated, *args, **kwargs):
            seen.extend((value.dtype, torch.is_autocast_enabled("cpu")) for value in generated.values())
            return super().forward(generated, *args, **kwargs)

    gradients = []
    for precision in ("float32", "bfloat16"):
        linear, trained = nn.Linear(8, 8), _linear()
        linear.load_state_dict(_linear().state_dict())
        encoder = computed_in(precision, lambda samples, linear=linear: {"a": linear(samples)[:, None]}, "cpu")
        generator = computed_in(precision, lambda noise, labels, scale, trained=trained: trained(noise), "cpu")
        batch = Batch(noise=VALUES[None, :32], positives={"a": VALUES[None, 32:, None]})
        drifting_step(generator, encoder, Watching(temperatures=(0.5,)), batch).loss.backward()
        gradients.append(trained.weight.grad)
    assert set(seen) == {(torch.float32, False)}
    assert gradients[1].dtype == torch.float32
    difference = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
    assert 0 < difference < 0.05


def test_preset_takes_it_for_generator_and_encoder(tiny_images):
    config = adjust(tiny_images, precision="bfloat16")
    assert config == dataclasses.replace(tiny_images, schedule=dataclasses.replace(tiny_images.schedule, precision="bfloat16"))
    keys = [build_encoder(one, one.build_network())(torch.ones(1, 1, 8, 8)).keys() for one in map(resolve, (config, tiny_images))]
    assert keys[0] == keys[1]
    with pytest.raises(InputError, match="precision is 'float16', not float32 or bfloat16: did you mean bfloat16"):
        adjust(tiny_images, precision="float16")
