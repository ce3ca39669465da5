"""Networks of diffusers and transformers, data sets of the library datasets, and any callable, in the library's loop."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import drifting
from drifting import InputError, Schedule, Trainer
from drifting.sampling import seeded_noise

PAGE = (Path(__file__).parents[2] / "docs" / "own_parts.md").read_text()
SCHEDULE = Schedule(steps=2, generated=8, positives=8, learning_rate=1e-3)
LABELED = Schedule(steps=2, generated=4, positives=4, labels_per_step=2, learning_rate=1e-3)


@pytest.mark.usefixtures("here", "no_pictures")
def test_code_of_the_page_trains_and_samples(capsys):
    for library in ("diffusers", "transformers", "datasets"):
        pytest.importorskip(library)
    found: dict = {}
    exec(compile("\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.S)), "docs/own_parts.md", "exec"), found)
    assert found["samples"].shape == found["also"].shape == (4, 1, 16, 16)
    assert bool(found["samples"].isfinite().all())
    assert not any(weight.requires_grad for weight in found["encoder"].parameters())
    assert all(weight.requires_grad for weight in found["unet"].parameters())
    printed = capsys.readouterr().out
    assert "5 {" in printed
    assert "4 torch.Size([2048, 2])" in printed
    assert printed.count("torch.Size([6, 2])") == 2


class Linear(nn.Module):
    noise_shape, num_classes = (3,), 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        assert noise.dtype == torch.float32
        return noise[:, :2] * self.weight + 10.0 * labels[:, None]


def test_any_callable_is_sampled_from_its_own_noise():
    noise = seeded_noise(range(5), (4,), 3)
    assert torch.equal(drifting.sample(lambda rows: rows**2, 5, noise_shape=4, seed=3, batch_size=2), noise**2)
    shaped = drifting.sample(lambda rows: rows.sum((2, 3)), 5, noise_shape=(2, 3, 3))
    assert torch.equal(shaped, seeded_noise(range(5), (2, 3, 3), 0).sum((2, 3)))


def test_module_with_classes_is_sampled_by_label_and_keeps_its_mode():
    module = Linear().eval()
    samples = drifting.sample(module, 4, labels=[1, 0])
    assert torch.equal(samples, seeded_noise(range(4), (3,), 0)[:, :2] + torch.tensor([10.0, 0, 10, 0])[:, None])
    assert not module.training
    assert not samples.requires_grad
    dropped = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.9))
    assert torch.equal(drifting.sample(dropped, 3, noise_shape=3), drifting.sample(dropped, 3, noise_shape=3))
    assert dropped.training


@pytest.mark.parametrize(
    ("generator", "options", "words"),
    [
        (nn.Linear(3, 2), {}, "noise_shape is missing"),
        (nn.Linear(3, 2), {"noise_shape": 4}, r"generator fails on noise \(1, 4\) .*: pass another noise_shape"),
        (nn.Linear(3, 2), {"noise_shape": 0}, "noise_shape is 0: pass at least 1"),
        (nn.Linear(3, 2), {"noise_shape": 3, "labels": [1]}, "trained without labels"),
        (lambda noise: [noise], {"noise_shape": 3}, "generator makes list of one row of noise"),
        (lambda noise: noise.sum(), {"noise_shape": 3}, r"generator makes \(\) of one row of noise"),
        (Linear(), {"labels": [2]}, "choose from 0 to 1"),
    ],
)
def test_what_cannot_be_sampled_is_refused(generator, options, words):
    with pytest.raises(InputError, match=words):
        drifting.sample(generator, 3, **options)


class Rows(Dataset):
    """A data set whose items are columns by name."""

    def __init__(self, **columns: torch.Tensor) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: values[index] for name, values in self.columns.items()}


def _losses(module: nn.Module, data: object, schedule: Schedule, **options: object) -> list[float]:
    return [float(step.loss) for step in Trainer(module, data, schedule=schedule, **options)]


def test_columns_by_name_are_the_samples_and_labels():
    points, labels = torch.randn(40, 2), torch.arange(40) % 2
    expected = _losses(Linear(), (points, labels), LABELED)
    assert expected[0] != expected[1]
    assert _losses(Linear(), Rows(x=points, y=labels), LABELED) == expected
    assert _losses(Linear(), Rows(y=labels, x=points), LABELED) == expected
    for data in (Rows(x=points), DataLoader(Rows(x=points), batch_size=10)):
        assert len(_losses(nn.Linear(3, 2), data, SCHEDULE, noise_shape=3)) == 2


@pytest.mark.parametrize(
    "columns",
    [
        {"a": torch.randn(40, 2), "b": torch.randn(40, 2)},
        {"a": torch.randn(40, 2), "b": torch.arange(40), "c": torch.arange(40)},
        {"b": torch.arange(40)},
    ],
)
def test_columns_that_do_not_say_which_are_samples_are_refused(columns):
    with pytest.raises(InputError, match=r"data has the columns .*: keep one of samples"):
        Trainer(nn.Linear(3, 2), Rows(**columns), schedule=SCHEDULE, noise_shape=3)


def test_transform_of_a_data_set_is_applied():
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"point": [[1.0, 2.0]] * 20})
    table.set_transform(lambda rows: {"x": [torch.tensor(row) + 100 for row in rows["point"]]})
    trainer = Trainer(nn.Linear(3, 2), table, schedule=SCHEDULE, noise_shape=3)
    assert torch.equal(trainer._positives._source.samples, torch.tensor([[101.0, 102.0]] * 20))
    with pytest.raises(InputError, match="which has no length: pass a DataLoader"):
        Trainer(nn.Linear(3, 2), table.with_format(None).to_iterable_dataset(), schedule=SCHEDULE, noise_shape=3)
