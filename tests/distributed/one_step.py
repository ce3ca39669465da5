"""Steps of a small training, by however many processes there are: what the tests compare."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from drifting.config import RunConfig
from drifting.data.bank import MemoryBank
from drifting.data.sources import BankSource, InMemorySource
from drifting.distributed import join, whole
from drifting.generators.base import Generator
from drifting.generators.dit import DiT, DiTSize
from drifting.loss import DriftingLoss
from drifting.runs.train import build_encoder, build_positives
from drifting.training.loop import Step, draw_batch, train
from drifting.training.positives import Positives
from drifting.training.schedule import Schedule
from drifting.training.state import TrainingState

CLASSES, SHAPE = 4, (1, 4, 4)
GUIDED = {"guidance_exponent": 2.0, "unguided_prob": 0.3, "unconditional": 3}


@dataclass(frozen=True)
class Case:
    """A training: `schedule` changes its settings."""

    labeled: bool = True
    bank: bool = False
    sharded: bool = False
    gradient_checkpointing: bool = False
    dtype: torch.dtype = torch.float64
    device: str = "cpu"
    steps: int = 1
    schedule: dict[str, Any] = field(default_factory=dict)

    def make(self) -> tuple[TrainingState, Positives, Schedule]:
        """Build everything, in the default precision."""
        rng = torch.Generator().manual_seed(0)
        given = {"steps": self.steps, "generated": 6, "positives": 4, "learning_rate": 1e-3, "labels_per_step": CLASSES}
        schedule = Schedule(**{**given, "max_grad_norm": None, "ema_decay": 0.9, **self.schedule})
        size = DiTSize(patch=2, width=8, depth=2, heads=2, cond_dim=8, num_context_tokens=2, num_styles=3, style_classes=5)
        generator = DiT(
            sample_shape=SHAPE,
            size=size,
            num_classes=CLASSES if self.labeled else None,
            guided=schedule.draws_guidance,
            output_std=0.5,
            gradient_checkpointing=self.gradient_checkpointing,
        )
        for weight in generator.parameters():  # away from the start, where gates are closed
            weight.data = torch.randn(weight.shape, generator=rng) * 0.3
        samples, labels = torch.randn(40, *SHAPE, generator=rng), torch.arange(40) % CLASSES if self.labeled else None
        source = InMemorySource(samples, labels)
        if self.bank:
            sizes = {"capacity_per_class": 8, "unconditional_capacity": 20, "dtype": samples.dtype, "device": self.device}
            bank = MemoryBank(CLASSES if self.labeled else None, sample_shape=SHAPE, **sizes)
            source = BankSource(samples, labels, bank, push_per_step=3, seed=5)
        shared = {"processes": join(), "sharded": self.sharded}
        positives = Positives(source, encode, later=schedule.labels_per_microbatch is not None)
        return TrainingState(generator.to(self.device), schedule, 0, **shared), positives, schedule


def encode(samples: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return two feature maps, one of them of four locations."""
    patches = samples.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4).flatten(2, 3)[:, 0]
    return {"all": samples.flatten(1)[:, None], "patches": patches.sin()}


def trained(case: Case) -> dict[str, Any]:
    """Train, and return what the last step reported and left: loss, scales, drift norms, statistics and gradients."""
    with _precision(case.dtype):
        state, positives, schedule = case.make()
        *_, step = train(state, positives, encode, DriftingLoss(temperatures=(0.3, 1.0)), schedule)
    return _left(state, step)


def first_step(config: RunConfig) -> dict[str, Any]:
    """Return the same of the first step of a run whose data and encoder are there."""
    encoder = build_encoder(config, config.build_network())
    positives = build_positives(config, encoder)
    shared = {"processes": join(), "sharded": config.parallel == "fsdp"}
    state = TrainingState(config.build_generator(), config.schedule, config.seed, **shared)
    return _left(state, next(train(state, positives, encoder, config.loss.build(), config.schedule)))


def assert_close(found: Any, expected: Any, **tolerance: float) -> None:
    """Compare numbers, tensors and dictionaries of them."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_close(found[name], value, **tolerance)
    else:
        torch.testing.assert_close(found, expected, **tolerance)


def _left(state: TrainingState, step: Step) -> dict[str, Any]:
    return {
        "loss": step.report.loss,
        "norms": {name: torch.stack(list(report.drift_norms.values())) for name, report in step.report.features.items()},
        "scales": {name: report.scale for name, report in step.report.features.items()},
        "statistics": {name: torch.stack(report.statistics) for name, report in step.report.features.items() if report.statistics},
        "gradients": {name: whole(weight.grad) for name, weight in state.generator.named_parameters()},
        "averages": {name: whole(value) for name, value in state.averaged.state_dict().items()},
        "rng": state.rng.get_state(),
    }


def drawn(case: Case) -> list[dict[str, Any]]:
    """Return what is drawn for three steps, without the features."""
    with _precision(case.dtype):
        state, positives, schedule = case.make()
        batches = [draw_batch(state, positives, schedule) for _ in range(3)]
    return [{**vars(batch), "rng": state.rng.get_state()} for batch in batches]


class _precision:
    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def __enter__(self) -> None:
        torch.set_default_dtype(self._dtype)

    def __exit__(self, *_: object) -> None:
        torch.set_default_dtype(torch.float32)


def pulled(make: Callable[[int | None], Generator], num_classes: int | None, sharded: bool) -> dict[str, torch.Tensor]:
    """Return the gradient of the mean square of six samples of a generator, each process making its share of them."""
    torch.manual_seed(0)
    network, processes, rng = make(num_classes), join(), torch.Generator().manual_seed(1)
    inputs = [torch.randn(6, *network.noise_shape, generator=rng), None, torch.full((6,), 2.0)]
    if num_classes is not None:
        inputs[1] = torch.arange(6) % num_classes
    codes = network.draw_style_indices(6, rng)
    if sharded:
        processes.shard(network)
    copies, _ = processes.wrap_ddp(network)
    for _ in range(2):  # a weight that a pass does not use shows in the next one
        network.zero_grad()
        own = [None if value is None else value[processes.share(6)] for value in [*inputs, *([] if codes is None else [codes])]]
        copies(*own).square().mean().backward()
    return {name: whole(weight.grad) for name, weight in network.named_parameters()}
