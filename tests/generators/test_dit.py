import dataclasses

import numpy as np
import pytest
import torch

from drifting.errors import InputError
from drifting.generators.dit import SIZES, DiT, DiTSize
from drifting.nn import guidance_embedding
from tests.support.networks import conditional_inputs, randomized

TINY = DiTSize(patch=2, width=16, depth=2, heads=2, cond_dim=12, num_context_tokens=3, num_styles=2, style_classes=4)


def _network(**settings) -> DiT:
    torch.manual_seed(0)
    return DiT(**{"sample_shape": (3, 4, 8), "size": TINY, "num_classes": 3, **settings})


def _inputs(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return conditional_inputs((3, 4, 8), dtype)


@pytest.mark.parametrize(
    ("name", "shape", "num_classes", "millions"),
    [
        ("B/2", (4, 32, 32), 1000, 133),
        ("L/2", (4, 32, 32), 1000, 463),
        ("B/16", (3, 256, 256), 1000, 134),
        ("L/16", (3, 256, 256), 1000, 464),
        ("gpu", (3, 32, 32), 10, 33.5),
        ("cpu", (3, 32, 32), 10, 1.34),
    ],
)
def test_sizes_have_as_many_weights_as_the_paper_says(name, shape, num_classes, millions):
    with torch.device("meta"):
        network = DiT(sample_shape=shape, size=SIZES[name], num_classes=num_classes)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == pytest.approx(millions * 1e6, rel=0.01)


def test_shapes_are_as_announced():
    network, inputs = _network(), _inputs()
    assert network.noise_shape == network.sample_shape == (3, 4, 8)
    assert (network.num_classes, network.num_styles, network.style_classes) == (3, 2, 4)
    assert network(**inputs).shape == inputs["noise"].shape


def test_generator_starts_as_in_the_release():
    network = _network()
    assert float(network(**_inputs()).detach().abs().max()) == 0
    for name, parameter in network.named_parameters():
        zero = name.endswith(("bias", "modulation.weight")) or name == "output.weight"
        assert (float(parameter.detach().abs().max()) == 0) == zero, name
    for layer in (network.embed, network.blocks[1].attention.qkv, network.blocks[0].mlp.output):
        limit = (6 / (layer.in_features + layer.out_features)) ** 0.5
        assert 0.9 * limit < float(layer.weight.detach().abs().max()) <= limit
    for table in (network.condition.classes, network.condition.styles, network.condition.guidance[0]):
        assert float(table.weight.detach().std()) == pytest.approx(0.02, rel=0.5)


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_first_samples_spread_as_asked_and_differ(name):
    torch.manual_seed(0)
    # At the start a block changes nothing, so one will do.
    size = dataclasses.replace(SIZES[name], depth=1)
    network = DiT(sample_shape=(3, 32, 32), size=size, bounded=True, output_std=0.75)
    with torch.no_grad():
        samples = network(torch.randn(16, 3, 32, 32))
    assert float(samples.std()) == pytest.approx(0.5, abs=0.05)
    assert float(samples.var(0).mean() / samples.var()) > 0.6


def test_network_is_the_sum_of_its_parts():
    network, inputs = randomized(_network()).double(), _inputs(torch.float64)
    rows = []
    for index in range(4):
        noise, label, alpha, codes = (value[index] for value in inputs.values())
        rows.append(_by_hand(network, noise.numpy(), int(label), alpha, codes))
    np.testing.assert_allclose(network(**inputs).detach().numpy(), np.stack(rows), rtol=1e-9, atol=1e-9)


def _by_hand(network: DiT, noise: np.ndarray, label: int, alpha: torch.Tensor, codes: torch.Tensor) -> np.ndarray:
    """Compute one sample with numpy, all but attention and perceptron, which have tests of their own."""
    weights = {name: value.detach().numpy() for name, value in network.state_dict().items()}

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def silu(x: np.ndarray) -> np.ndarray:
        return x / (1 + np.exp(-x))

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weights[f"{name}.weight"]

    def inner(layer: torch.nn.Module, x: np.ndarray) -> np.ndarray:
        return layer(torch.tensor(x)[None])[0].detach().numpy()

    embedded = guidance_embedding(alpha[None]).numpy()[0]
    condition = 0.02 * norm("condition.norm", linear("condition.guidance.2", silu(linear("condition.guidance.0", embedded))))
    condition = condition + weights["condition.classes.weight"][label]
    for place, code in enumerate(codes.tolist()):
        condition = condition + weights["condition.styles.weight"].reshape(2, 4, -1)[place, code]
    patches = [
        [noise[c, 2 * i + k, 2 * j + m] for k in range(2) for m in range(2) for c in range(3)] for i in range(2) for j in range(4)
    ]
    context = linear("context", condition) + weights["context_tokens"]
    tokens = np.concatenate([context, linear("embed", np.array(patches)) + weights["positions"]])
    for index, block in enumerate(network.blocks):
        name = f"blocks.{index}"
        chunks = np.split(linear(f"{name}.modulation", silu(condition)), 6)
        tokens = tokens + chunks[2] * inner(block.attention, norm(f"{name}.norm_attention", tokens) * (1 + chunks[1]) + chunks[0])
        tokens = tokens + chunks[5] * inner(block.mlp, norm(f"{name}.norm_mlp", tokens) * (1 + chunks[4]) + chunks[3])
    shift, scale = np.split(linear("modulation", silu(condition)), 2)
    ends = linear("output", norm("norm", tokens[3:]) * (1 + scale) + shift)
    image = np.zeros_like(noise)
    for place, entries in enumerate(ends):
        row, column = 2 * (place // 4), 2 * (place % 4)
        image[:, row : row + 2, column : column + 2] = entries.reshape(2, 2, 3).transpose(2, 0, 1)
    return image


def test_weights_go_through_a_state_dict():
    first, second = randomized(_network()), _network()
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(**_inputs()), second(**_inputs()))
    assert set(first.state_dict()) == {name for name, _ in first.named_parameters()}


def test_network_compiles_as_one_graph():
    network, inputs = randomized(_network(gradient_checkpointing=True)), _inputs()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(**inputs), network(**inputs))
    compiled(inputs["noise"], inputs["labels"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sample_shape": (3, 4, 7)}, r"sample_shape is \(3, 4, 7\).*divisible by 2"),
        ({"sample_shape": (4, 4)}, "channels, height and width"),
        ({"size": dataclasses.replace(TINY, heads=3)}, "heads is 3"),
        ({"size": dataclasses.replace(TINY, width=18, heads=1)}, "width is 18"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        _network(**settings)


def test_inputs_that_do_not_fit_are_refused():
    network, inputs = _network(), _inputs()
    with pytest.raises(InputError, match="labels is None"):
        network(inputs["noise"])
    with pytest.raises(InputError, match=r"style_indices has shape \(4, 3\)"):
        network(**{**inputs, "style_indices": torch.zeros(4, 3, dtype=torch.long)})


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("labels", lambda labels: labels[:1], r"labels has shape \(1,\): pass \(4,\)"),
        ("labels", lambda labels: labels[:, None], r"labels has shape \(4, 1\)"),
        ("labels", lambda labels: labels - 9, r"labels has -\d: choose from 0 to"),
        ("labels", lambda labels: labels + 99, r"labels has 1?\d\d: choose from 0 to"),
        ("labels", lambda labels: labels.float(), r"labels are torch\.float32: pass whole numbers"),
        # Codes that would be found in the table of the next coordinate.
        ("style_indices", lambda codes: torch.full_like(codes, TINY.style_classes), f"choose from 0 to {TINY.style_classes - 1}"),
        ("style_indices", lambda codes: codes - 99, "style_indices has -"),
        ("guidance_scale", lambda _: torch.ones(3), r"guidance_scale has shape \(3,\): pass one number, or one for each of 4"),
        ("guidance_scale", lambda _: torch.ones(4, 1), r"guidance_scale has shape \(4, 1\)"),
        # As many patches, in another arrangement.
        ("noise", lambda noise: noise.reshape(*noise.shape[:2], noise.shape[2] // 2, -1), r"noise has shape .* for each sample"),
        ("noise", lambda noise: noise[:, :2], r"noise has shape .* for each sample"),
    ],
)
def test_inputs_that_would_be_taken_for_others_are_refused(name, change, message):
    network, inputs = _network(), _inputs()
    with pytest.raises(InputError, match=message):
        network(**{**inputs, name: change(inputs[name])})


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_and_codes_may_be_any_whole_numbers(dtype):
    network, inputs = _network(), _inputs()
    others = {name: inputs[name].to(dtype) for name in ("labels", "style_indices")}
    assert torch.equal(network(**inputs), network(**{**inputs, **others}))
