"""A user's own module, data and encoder in the library's loop."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import drifting
from drifting import DriftingLoss, InputError, Schedule, Trainer
from drifting.data.points import toy
from drifting.fields import MeanShift
from drifting.generators import MLP
from drifting.metrics import energy_distance

LOSS = DriftingLoss(temperatures=(0.1, 0.5), field=MeanShift(0.0))


def network(inputs: int = 4, outputs: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 32), nn.SiLU(), nn.Linear(32, outputs))


class Labeled(nn.Module):
    """Noise and labels -> points."""

    noise_shape = (4,)
    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.classes = network(8), nn.Embedding(3, 4)

    def forward(self, noise, labels):
        return self.layers(torch.cat([noise, self.classes(labels)], 1))


class Compiled(nn.Module):
    """What `torch.compile` returns, as far as its weights go."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._orig_mod = module


class Items(Dataset):
    """Points of three classes, and their classes, one at a time."""

    def __init__(self, points: torch.Tensor, labels: torch.Tensor | None) -> None:
        self.points, self.labels = points, labels

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index):
        return self.points[index] if self.labels is None else (self.points[index], int(self.labels[index]))


class Listed(Dataset):
    """Items as they are in a list."""

    def __init__(self, items: list) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Jittered(Items):
    """The same with a transform that draws random numbers."""

    def __getitem__(self, index):
        return self.points[index] + 0.01 * torch.randn(2)


def points(count: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a clump of each class around 0, 4 and 8."""
    labels = torch.arange(count) % 3
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(1)) * 0.1 + 4.0 * labels[:, None], labels


def schedule(steps: int = 6, **changes) -> Schedule:
    return Schedule(**{"steps": steps, "generated": 16, "positives": 16, "learning_rate": 1e-2, "ema_decay": 0.9, **changes})


def test_training_brings_samples_to_the_data():
    data = toy("moons").draw(2000, torch.Generator().manual_seed(0))
    trainer = Trainer(
        network(), data, loss=LOSS, schedule=schedule(150, generated=256, positives=256, learning_rate=5e-3), noise_shape=4
    )
    before = energy_distance(trainer.sample(500), data)
    steps = list(trainer)
    assert [step.number for step in steps] == list(range(1, 151))
    assert trainer.step == 150
    assert energy_distance(trainer.sample(500), data) < 0.2 * before
    assert all(math.isfinite(float(step.loss)) for step in steps)
    norms = steps[-1].drift_norms["sample"]
    assert set(norms) == {0.1, 0.5}
    assert float(norms[0.5]) < float(steps[0].drift_norms["sample"][0.5])


def test_samples_of_labels_come_from_the_data_of_their_class():
    trainer = Trainer(Labeled(), points(), loss=LOSS, schedule=schedule(150, labels_per_step=3, generated=32, positives=32))
    for _ in trainer:
        pass
    means = [float(trainer.sample(60, labels=[label]).mean()) for label in range(3)]
    assert means == pytest.approx([0, 4, 8], abs=0.8)


def _data(kind: str):
    samples, labels = points()
    return {
        "tensor": samples,
        "tensor data set": TensorDataset(samples),
        "data set": Items(samples, None),
        "pair": (samples, labels),
        "labeled data set": Items(samples, labels),
        "labeled tensor data set": TensorDataset(samples, labels),
        "loader": DataLoader(TensorDataset(samples), batch_size=50, shuffle=True),
        "loader with a generator": DataLoader(TensorDataset(samples), 50, shuffle=True, generator=torch.Generator()),
        "loader of random transforms": DataLoader(Jittered(samples, None), batch_size=70, shuffle=True),
        "labeled loader": DataLoader(Items(samples, labels), batch_size=50, shuffle=True),
    }[kind]


KINDS = (
    "tensor",
    "data set",
    "pair",
    "labeled data set",
    "loader",
    "loader with a generator",
    "loader of random transforms",
    "labeled loader",
)


def _trainer(kind: str, steps: int) -> Trainer:
    labeled = "labeled" in kind or kind == "pair"
    module = Labeled() if labeled else network()
    labels = {"labels_per_step": 2} if labeled else {}
    return Trainer(module, _data(kind), loss=LOSS, schedule=schedule(steps, **labels), noise_shape=4, seed=5)


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_training_is_the_whole_one_bit_for_bit(kind, assert_same_tensors):
    whole, half, resumed = _trainer(kind, 12), _trainer(kind, 6), _trainer(kind, 12)
    losses = [float(step.loss) for step in whole]
    first = [float(step.loss) for step in half]
    torch.manual_seed(99)  # nothing depends on the process's own random numbers
    resumed.load_state_dict(half.state_dict())
    assert first + [float(step.loss) for step in resumed] == losses
    assert_same_tensors(resumed.state_dict(), whole.state_dict())
    labels = [0] if whole.sample(1).shape and ("labeled" in kind or kind == "pair") else None
    assert torch.equal(resumed.sample(9, seed=2, labels=labels), whole.sample(9, seed=2, labels=labels))


@pytest.mark.parametrize(
    ("one", "other"),
    [("tensor", "data set"), ("tensor", "tensor data set"), ("pair", "labeled data set"), ("pair", "labeled tensor data set")],
)
def test_same_data_train_alike_whatever_holds_them(one, other, assert_same_tensors):
    trainers = [_trainer(kind, 3) for kind in (one, other)]
    for trainer in trainers:
        assert len(list(trainer)) == 3
    assert_same_tensors(*(trainer.state_dict() for trainer in trainers))


def test_iteration_goes_on_where_it_was_left(assert_same_tensors):
    whole, left = _trainer("tensor", 6), _trainer("tensor", 6)
    assert len(list(whole)) == 6
    for step in left:
        if step.number == 2:
            break
    assert [step.number for step in left] == [3, 4, 5, 6]
    assert list(left) == []
    assert_same_tensors(left.state_dict(), whole.state_dict())


def test_step_that_is_stopped_is_taken_again(monkeypatch):
    def stopped(noise):
        raise KeyboardInterrupt

    module = network()
    trainer = Trainer(module, points()[0], loss=LOSS, schedule=schedule(4), noise_shape=4)
    assert next(iter(trainer)).number == 1
    with monkeypatch.context() as patch:
        patch.setattr(module[0], "forward", stopped)
        with pytest.raises(KeyboardInterrupt):
            next(iter(trainer))
    assert trainer.step == 1
    other = Trainer(network(), points()[0], loss=LOSS, schedule=schedule(4), noise_shape=4)
    other.load_state_dict(trainer.state_dict())
    assert [step.number for step in trainer] == [step.number for step in other] == [2, 3, 4]


def test_state_is_a_copy():
    trainer = _trainer("tensor", 4)
    before = trainer.state_dict()
    kept = {name: value.clone() for name, value in before.items()}
    assert len(list(trainer)) == 4
    assert all(torch.equal(before[name], kept[name]) for name in kept)


def test_samples_are_those_of_the_averaged_module():
    trainer = _trainer("tensor", 6)
    assert len(list(trainer)) == 6
    assert isinstance(trainer.averaged, nn.Sequential)
    assert not torch.equal(trainer.averaged[0].weight, trainer.module[0].weight)
    assert torch.equal(trainer.sample(7, seed=1), trainer.sample(20, seed=1)[:7])
    trainer.averaged[2].bias.data.add_(100)
    assert float(trainer.sample(5).mean()) > 50


def test_generator_of_the_library_is_trained_as_it_is():
    trainer = Trainer(MLP(noise_dim=4, width=16, depth=2, sample_shape=(2,)), points()[0], loss=LOSS, schedule=schedule())
    assert len(list(trainer)) == 6
    assert trainer.averaged(torch.zeros(1, 4), None, None).shape == (1, 2)


def test_own_encoder_may_return_a_tensor_or_several_by_name():
    torch.manual_seed(3)
    projection = nn.Linear(2, 5)
    encoders = {
        "module": projection,
        "function": lambda x: {"a": x, "b": torch.stack([x, 2 * x], 1)},
    }
    features = {}
    for name, encoder in encoders.items():
        trainer = Trainer(network(), points()[0], encoder=encoder, loss=LOSS, schedule=schedule(2), noise_shape=4)
        features[name] = [set(step.drift_norms) for step in trainer]
    assert features == {"module": [{"sample"}] * 2, "function": [{"a", "b"}] * 2}
    assert not projection.weight.requires_grad


def test_defaults_train():
    trainer = Trainer(network(), points()[0], noise_shape=[4])
    assert next(iter(trainer)).number == 1
    assert Trainer(Labeled(), points()).schedule.labels_per_step == 3


def _loader(*tensors: torch.Tensor, batch_size: int = 8) -> DataLoader:
    return DataLoader(TensorDataset(*tensors), batch_size=batch_size)


X, Y = points(30)
BAD = {
    "no shape of noise": ({}, "noise_shape is missing: .* noise_shape=32"),
    "noise of another shape": ({"noise_shape": 5}, r"module fails on noise \(2, 5\) .*: pass another noise_shape"),
    "no noise": ({"noise_shape": 0}, "noise_shape is 0: pass at least 1"),
    "other samples": ({"data": torch.randn(9, 3), "noise_shape": 4}, r"module makes samples \(2,\), but the data are \(3,\)"),
    "bytes": ({"data": torch.zeros(9, 2, dtype=torch.uint8)}, "data is torch.uint8: pass floats, such as images / 127.5 - 1"),
    "infinite": ({"data": torch.full((9, 2), math.inf)}, "data holds NaN or infinite values"),
    "numbers": ({"data": [1.0, 2.0]}, r"data has batches of \(float, float\): pass tensors x, or pairs"),
    "text": ({"data": "moons"}, "data is a str: pass a tensor, a pair of tensors, a Dataset or a DataLoader"),
    "no weights": ({"module": nn.Tanh()}, "module is a Tanh without parameters"),
    "compiled": ({"module": Compiled(network()), "noise_shape": 4}, "module is a Compiled of torch.compile: pass the module"),
    "wrapped": ({"module": nn.DataParallel(network()), "noise_shape": 4}, "module is a DataParallel: pass the module"),
    "unwanted labels": ({"data": (X, Y), "noise_shape": 4}, "module takes noise alone, but the data have labels"),
    "too few labels": ({"data": (X, Y[:3])}, r"labels are torch.int64 of shape \(3,\) for 30 samples"),
    "labels that are fractions": ({"data": (X, Y.float())}, "labels are torch.float32 .*: pass one whole number for each sample"),
    "missing labels": ({"module": Labeled()}, "module takes 2 arguments, but the data have no labels: pass a pair"),
    "more classes than the module": (
        {"module": Labeled(), "data": (X, torch.arange(30) % 5)},
        "module has 3 classes, but the data 5: build it with num_classes=5",
    ),
    "more classes than a generator": (
        {"module": MLP(noise_dim=4, width=8, depth=1, sample_shape=(2,), num_classes=2), "data": (X, Y)},
        "module has 2 classes, but the data 3: build it with num_classes=3",
    ),
    "missing class": ({"module": Labeled(), "data": (X, Y + 1)}, "data has no sample of class 0"),
    "classes of a loader": (
        {"data": _loader(X, Y), "noise_shape": 4},
        "num_classes is missing, which a DataLoader .*: pass the number",
    ),
    "empty loader": ({"data": DataLoader(TensorDataset(X), 64, drop_last=True)}, "data is a DataLoader without a single batch"),
    "loader of three": ({"data": _loader(X, Y, Y)}, r"data has batches of \(Tensor, Tensor, Tensor\)"),
    "two samples of a step": ({"schedule": schedule(generated=0), "noise_shape": 4}, "generated is 0: pass at least 1"),
    "guidance": (
        {"schedule": schedule(guidance_exponent=1.0, unconditional=2, labels_per_step=2), "module": Labeled(), "data": (X, Y)},
        "guidance_exponent is 1.0, but the module takes no guidance scale: pass None",
    ),
    "image features": (
        {"encoder": lambda x: x[:, None, None], "noise_shape": 4},
        r"encoder returns 'sample' as \(2, 1, 1, 2\): return \[b, d\], or \[b, k, d\]",
    ),
    "no features": ({"encoder": lambda x: None, "noise_shape": 4}, "encoder returns a NoneType: return a tensor"),
    "loss": ({"loss": nn.MSELoss()}, "loss is a MSELoss: pass a DriftingLoss"),
    "device": ({"device": "nowhere"}, "device is 'nowhere'"),
    "seed": ({"seed": -1}, "seed is -1"),
    "text of a rate": ({"schedule": schedule(learning_rate="1e-3")}, "learning_rate is '1e-3', not a number"),
    "text of a share": ({"schedule": schedule(ema_decay="0.9")}, "ema_decay is '0.9', not a number"),
    "no steps": ({"schedule": schedule(warmup_steps="2")}, "warmup_steps is '2', not a whole number"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused_in_a_sentence(case):
    changes, sentence = BAD[case]
    given = {"module": network(), "data": X, **changes}
    module = given.pop("module")
    with pytest.raises(InputError, match=sentence):
        Trainer(module, given.pop("data"), **given)
    assert module.training


ONE = torch.zeros(2)
BAD_ITEMS = {
    "fraction": ([(ONE, 0), (ONE, 0.9)], "labels has 0.9: pass one whole number for each sample"),
    "text": ([(ONE, "cat")], "labels has 'cat': pass one whole number for each sample"),
    "NaN": ([(ONE, math.nan)], "labels has nan: pass one whole number for each sample"),
    "tensor of a fraction": ([(ONE, torch.tensor(0.9))], r"labels has torch.float32 of shape \(\): pass one whole number"),
    "vector": ([(ONE, torch.tensor([0, 1]))], r"labels has torch.int64 of shape \(2,\): pass one whole number for each sample"),
    "two shapes": ([ONE, torch.zeros(3)], r"data has samples of shape \(2,\) and of \(3,\): pass tensors of one shape"),
    "two shapes with labels": ([(ONE, 0), (torch.zeros(3), 0)], r"data has samples of shape \(2,\) and of \(3,\): pass tensors"),
    "two shapes of a column": (
        [{"x": ONE}, {"x": torch.zeros(3)}],
        r"data has samples of shape \(2,\) and of \(3,\): pass tensors",
    ),
    "two kinds": ([ONE, (ONE, 0)], r"data has samples of shape \(2,\) and of tuple: pass tensors of one shape"),
    "two lengths": ([(ONE, 0), (ONE,)], "data has items of tuple: pass a data set of tensors x, or of pairs"),
}


@pytest.mark.parametrize("case", BAD_ITEMS)
def test_items_that_do_not_fit_are_refused_in_a_sentence(case):
    items, sentence = BAD_ITEMS[case]
    with pytest.raises(InputError, match=sentence):
        Trainer(Labeled(), Listed(items))


@pytest.mark.parametrize("number", [int, np.int64, torch.tensor, np.array])
def test_labels_of_items_may_be_any_whole_numbers(number):
    trainer = Trainer(Labeled(), Listed([(ONE, number(label)) for label in (0, 1, 2)]), schedule=schedule(1))
    assert len(list(trainer)) == 1


def test_module_may_have_more_classes_than_the_data():
    trainer = Trainer(Labeled(), (X, Y.clamp(max=1)), schedule=schedule(1, labels_per_step=2))
    assert len(list(trainer)) == 1


def test_class_that_a_loader_never_yields_is_named():
    trainer = Trainer(Labeled(), _loader(X, Y.clamp(max=1)), schedule=schedule(2, labels_per_step=3))
    with pytest.raises(InputError, match="data has no sample of class 2 in an epoch"):
        next(iter(trainer))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda state: state.pop("step"), "has no step: pass what state_dict"),
        (lambda state: state.update(step=torch.tensor(7)), "of step 7: pass a schedule with at least 7 steps"),
        (lambda state: state.pop("rng.state"), "checkpoint is 'the state'"),
        (lambda state: state.update({"positives.x": torch.zeros(1)}), "of real samples, but this run has no such state"),
    ],
)
def test_state_that_does_not_fit_is_refused_and_changes_nothing(change, sentence, assert_same_tensors):
    trainer, other = _trainer("tensor", 6), _trainer("tensor", 6)
    assert len(list(other)) == 6
    state, before = other.state_dict(), trainer.state_dict()
    change(state)
    with pytest.raises(InputError, match=sentence):
        trainer.load_state_dict(state)
    assert_same_tensors(trainer.state_dict(), before)


def test_divergence_is_reported(monkeypatch):
    trainer = Trainer(network(), X, loss=LOSS, schedule=schedule(3), noise_shape=4)
    with torch.no_grad():
        trainer.module[0].weight.fill_(math.nan)
    with pytest.raises(drifting.training.DivergenceError, match="NaN or infinite at step 1"):
        list(trainer)
