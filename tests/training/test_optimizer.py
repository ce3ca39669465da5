import copy
import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from drifting.checkpoint import load_tensors, save_tensors
from drifting.errors import InputError
from drifting.training.schedule import Schedule, check_schedule
from drifting.training.state import Muon, build_optimizer, flatten_optimizer, orthogonalized, restore_optimizer

COEFFICIENTS = (
    (8.38367, -24.7659, 18.3571),
    (4.04342, -3.0114, 0.569512),
    (3.50557, -2.62665, 0.525719),
    (2.49012, -1.83428, 0.436835),
)
SCHEDULE = Schedule(steps=1, generated=2, positives=2, learning_rate=1e-2)


def _newton_schulz(matrix: Tensor) -> Tensor:
    """Return what the iteration makes of a matrix, written down as it is printed."""
    found = matrix / matrix.norm()
    for linear, cubic, quintic in COEFFICIENTS:
        gram = found @ found.T
        found = linear * found + (cubic * gram + quintic * gram @ gram) @ found
    return found


def _matrix(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6), (5, 6), (6, 5), (1, 7), (7, 1)])
def test_orthogonalized_is_the_newton_schulz_iteration(shape):
    matrix = _matrix(*shape)
    torch.testing.assert_close(orthogonalized(matrix), _newton_schulz(matrix), rtol=1e-9, atol=1e-9)


def test_each_step_is_the_best_polynomial_for_what_the_one_before_has_left():
    # The best approximation of 1 by three odd powers has four extremes with the same error and alternating signs.
    values = torch.logspace(math.log10(0.003), 0, 200_001, dtype=torch.float64)
    for linear, cubic, quintic in COEFFICIENTS:
        errors = linear * values + cubic * values**3 + quintic * values**5 - 1
        inner = errors[1:-1][(errors.diff()[:-1] * errors.diff()[1:]) < 0]
        extremes, error = torch.cat([errors[:1], inner, errors[-1:]]), float(inner[0])
        expected = error * torch.tensor([-1.0, 1.0, -1.0, 1.0], dtype=torch.float64)
        torch.testing.assert_close(extremes, expected, rtol=0, atol=1e-3)
        values = torch.linspace(1 - error, 1 + error, 200_001, dtype=torch.float64)
    assert error == pytest.approx(0.198, abs=1e-3)


def test_orthogonalized_levels_lengths_from_three_thousandths_on():
    lengths = torch.logspace(math.log10(0.003), 0, 16, dtype=torch.float64)
    lengths = torch.cat([lengths[:-1], (1 - lengths[:-1].square().sum()).clamp(min=0.1).sqrt()[None]])
    lengths = lengths / lengths.norm()
    left, right = (torch.linalg.qr(_matrix(16, 16, seed=seed)).Q for seed in (1, 2))
    leveled = (left.T @ orthogonalized(left @ lengths.diag() @ right) @ right.T).diagonal()
    assert 0.78 < float(leveled[lengths >= 0.003].min()) <= float(leveled.max()) < 1.21


def test_orthogonalized_keeps_directions_and_levels_their_lengths():
    matrix = _matrix(8, 20)
    left, lengths, right = torch.linalg.svd(matrix, full_matrices=False)
    inside = left.T @ orthogonalized(matrix) @ right.T
    leveled = inside.diagonal()
    torch.testing.assert_close(inside, leveled.diag())
    assert float(lengths.max() / lengths.min()) > 2
    assert 0.6 < float(leveled.min()) <= float(leveled.max()) < 1.25


def test_orthogonalized_in_float32_is_that_in_float64():
    matrix = _matrix(32, 64) * torch.logspace(0, -3, 32, dtype=torch.float64)[:, None]
    torch.testing.assert_close(orthogonalized(matrix.float()).double(), _newton_schulz(matrix), rtol=0, atol=1e-3)


def test_orthogonalized_of_low_rank_is_computed_in_float32():
    matrix = _matrix(64, 1) @ _matrix(1, 256, seed=1)
    expected = _newton_schulz(matrix)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = orthogonalized(matrix.float())
    # At the largest singular value, 1, the polynomials are so steep that rounding grows 10,000-fold.
    torch.testing.assert_close(found.double(), expected, rtol=2e-3, atol=1e-6)
    half = matrix.bfloat16()
    torch.testing.assert_close(orthogonalized(half).double(), _newton_schulz(half.double()), rtol=0, atol=1e-3)


def test_orthogonalized_does_not_see_the_scale():
    matrix = _matrix(4, 6)
    torch.testing.assert_close(orthogonalized(1e-3 * matrix), orthogonalized(matrix))
    assert not orthogonalized(torch.zeros(4, 6)).any()


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3, 8)
        self.linear = nn.Linear(8, 16)
        self.convolution = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
        self.norm = nn.LayerNorm(5)


def _models(**options) -> tuple[_Model, _Model]:
    """Return a model after a step of Muon and the same after one of AdamW, with the same gradients."""
    models = []
    for choose in ("muon", "adamw"):
        torch.manual_seed(0)
        model = _Model()
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        schedule = dataclasses.replace(SCHEDULE, optimizer=choose, **options)
        build_optimizer(model, schedule, schedule.learning_rate).step()
        models.append(model)
    return models[0], models[1]


def test_all_but_the_weights_of_layers_take_the_steps_of_adamw():
    muon, adamw = _models(weight_decay=0.1)
    for name in ("embedding.weight", "linear.bias", "convolution.bias", "norm.weight", "norm.bias"):
        assert torch.equal(muon.get_parameter(name), adamw.get_parameter(name)), name
    for name in ("linear.weight", "convolution.weight"):
        assert not torch.allclose(muon.get_parameter(name), adamw.get_parameter(name), atol=1e-3), name


@pytest.mark.parametrize("name", ["linear", "convolution"])
def test_step_of_a_matrix_is_orthogonal_and_a_fifth_of_the_learning_rate(name):
    torch.manual_seed(0)
    before = _Model().get_parameter(f"{name}.weight")
    moved = (_models()[0].get_parameter(f"{name}.weight") - before).detach().flatten(1).double()
    lengths = torch.linalg.svdvals(moved) / (0.2 * 1e-2 * math.sqrt(max(moved.shape)))
    assert 0.6 < float(lengths.min()) <= float(lengths.max()) < 1.25
    assert float(moved.square().mean().sqrt()) == pytest.approx(0.2 * 1e-2, rel=0.25)


@pytest.mark.parametrize("convolution", [False, True])
def test_steps_are_those_of_the_equation(convolution):
    layer = nn.Conv2d(2, 3, 2).double() if convolution else nn.Linear(4, 3).double()
    layer = layer.to(memory_format=torch.channels_last) if convolution else layer
    weight = layer.weight
    expected, momentum = weight.detach().flatten(1).clone(), torch.zeros_like(weight.detach().flatten(1))
    optimizer = Muon(layer, lr=0.1, betas=(0.9, 0.95), weight_decay=0.3)
    for seed in range(3):
        gradient = _matrix(*weight.shape, seed=seed)
        weight.grad = gradient.clone()
        optimizer.step()
        momentum = 0.95 * momentum + 0.05 * gradient.flatten(1)
        direction = _newton_schulz(0.05 * gradient.flatten(1) + 0.95 * momentum)
        expected = (1 - 0.1 * 0.3) * expected - 0.2 * 0.1 * math.sqrt(max(expected.shape)) * direction
        torch.testing.assert_close(weight.detach().flatten(1), expected, rtol=1e-9, atol=1e-9)


def test_weights_without_gradient_and_models_of_one_kind_are_taken():
    frozen = nn.Linear(2, 2)
    before = frozen.weight.detach().clone()
    Muon(frozen, lr=0.1, betas=(0.9, 0.95), weight_decay=0.5).step()
    assert torch.equal(frozen.weight, before)
    norm = nn.LayerNorm(3)
    norm.weight.grad = torch.ones(3)
    Muon(norm, lr=0.1, betas=(0.9, 0.95), weight_decay=0.0).step()
    torch.testing.assert_close(norm.weight.detach(), torch.full((3,), 0.9), rtol=1e-4, atol=1e-4)


def _trained(steps: int) -> tuple[_Model, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = _Model()
    optimizer = build_optimizer(model, dataclasses.replace(SCHEDULE, optimizer="muon", weight_decay=0.1), SCHEDULE.learning_rate)
    for seed in range(steps):
        _step(model, optimizer, seed)
    return model, optimizer


def _step(model: _Model, optimizer: torch.optim.Optimizer, seed: int) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)).to(parameter)
    optimizer.step()


@pytest.mark.parametrize("through", ["file", "copy"])
def test_muon_goes_on_bit_for_bit(through, tmp_path):
    model, optimizer = _trained(2)
    if through == "file":
        save_tensors(tmp_path / "x.safetensors", flatten_optimizer(optimizer))
        other, restored = _trained(0)
        other.load_state_dict(model.state_dict())
        restore_optimizer(restored, load_tensors(tmp_path / "x.safetensors"))
    else:
        other, restored = copy.deepcopy((model, optimizer))
    for pair in ((model, optimizer), (other, restored)):
        _step(*pair, seed=2)
    reference, _ = _trained(3)
    for name, value in reference.named_parameters():
        assert torch.equal(model.get_parameter(name), value), name
        assert torch.equal(other.get_parameter(name), value), name


def test_weight_decay_shrinks_matrices_by_the_learning_rate():
    layer = nn.Linear(4, 4)
    before = layer.weight.detach().clone()
    layer.weight.grad = torch.zeros(4, 4)
    Muon(layer, lr=0.1, betas=(0.9, 0.95), weight_decay=0.5).step()
    torch.testing.assert_close(layer.weight.detach(), 0.95 * before)


def test_a_layer_without_other_weights_learns_a_linear_map():
    torch.manual_seed(0)
    layer = nn.Linear(16, 16, bias=False)
    target, inputs = torch.randn(16, 16), torch.randn(256, 16)
    optimizer = build_optimizer(layer, dataclasses.replace(SCHEDULE, optimizer="muon"), 0.3)
    losses = []
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.3 * (1 - step / 200)
        optimizer.zero_grad()
        loss = (layer(inputs) - inputs @ target.T).square().mean()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert losses[-1] < 1e-3 * losses[0]


def test_unknown_optimizer_is_refused():
    with pytest.raises(InputError, match="optimizer is 'sgd', not adamw or muon: did you mean adamw"):
        check_schedule(dataclasses.replace(SCHEDULE, optimizer="sgd"), labeled=False)


def _trained_linear(steps: int) -> tuple[nn.Linear, torch.optim.Optimizer]:
    torch.manual_seed(0)
    layer = nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(steps):
        _step_linear(layer, optimizer)
    return layer, optimizer


def _step_linear(layer: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    layer(torch.linspace(-1, 1, 4)).square().sum().backward()
    optimizer.step()


def test_optimizer_goes_on_bit_for_bit_after_a_round_trip(tmp_path):
    layer, optimizer = _trained_linear(3)
    save_tensors(tmp_path / "x.safetensors", flatten_optimizer(optimizer))
    other, restored = _trained_linear(0)
    other.load_state_dict(layer.state_dict())
    restore_optimizer(restored, load_tensors(tmp_path / "x.safetensors"))
    for pair in ((layer, optimizer), (other, restored)):
        _step_linear(*pair)
    assert torch.equal(layer.weight, other.weight)
    assert torch.equal(layer.bias, other.bias)


def test_fused_optimizer_of_weights_with_channels_last_goes_on_bit_for_bit(tmp_path):
    def made() -> tuple[nn.Conv2d, torch.optim.Optimizer]:
        torch.manual_seed(0)
        layer = nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
        return layer, torch.optim.AdamW(layer.parameters(), lr=1e-2, fused=True)

    def step(layer: nn.Conv2d, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        layer(torch.linspace(-1, 1, 48).reshape(1, 3, 4, 4)).square().sum().backward()
        optimizer.step()

    layer, optimizer = made()
    step(layer, optimizer)
    save_tensors(tmp_path / "x.safetensors", flatten_optimizer(optimizer))
    other, restored = made()
    other.load_state_dict(layer.state_dict())
    restore_optimizer(restored, load_tensors(tmp_path / "x.safetensors"))
    for pair in ((layer, optimizer), (other, restored)):
        step(*pair)
    assert torch.equal(layer.weight, other.weight)
