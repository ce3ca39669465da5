"""What changes during training: weights, their averages, the optimizer and the one random stream; and its form on disk."""

from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from drifting._seeds import stream_seed
from drifting.checkpoint import check_state, check_stream, flatten_optimizer, load_weights, restore_optimizer, restore_stream
from drifting.distributed import ALONE, Processes, local
from drifting.generators.base import Generator
from drifting.loss import FeatureLoss
from drifting.training.optimizer import build_optimizer
from drifting.training.schedule import Schedule


class DivergenceError(RuntimeError):
    """The loss became NaN or infinite: one sentence that names step, feature and temperature."""


class State:
    """What changes while a network is trained: weights, their averages, the optimizer, one random stream; and its form on disk.

    Args:
        networks: name in the state -> the network that is trained, first, and averages of its weights.
        optimizer: of the network.
        seed: of the random stream.

    Attributes:
        step: number of steps that were taken.
        rng: the random stream.
        device: of all of it.
    """

    def __init__(self, networks: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, seed: int) -> None:
        self._networks, self.optimizer = dict(networks), optimizer
        self.device = next(weight.device for network in networks.values() for weight in network.parameters())
        self.rng = torch.Generator(self.device).manual_seed(seed)
        self.step = 0
        self._faults: dict[tuple[str, float], Tensor] = {}

    def _note_fault(self, value: Tensor, number: int, source: tuple[str, float] = ("", 0.0)) -> None:
        """Remember on the device at which step a value of a source first was not finite; nothing is read back here."""
        first = self._faults.get(source, torch.zeros((), dtype=torch.long, device=self.device))
        self._faults[source] = torch.where((first == 0) & ~value.isfinite(), number, first)

    def _first_fault(self) -> tuple[int, str, float] | None:
        """Return the first step with a value that was not finite, and its source; None if there is none. Reads from the device."""
        return min(((int(first), *source) for source, first in self._faults.items() if int(first) > 0), default=None)

    def tensors(self) -> dict[str, Tensor]:
        """Return the whole state as named tensors; of sharded weights each process has its share."""
        parts = {
            **{name: network.state_dict() for name, network in self._networks.items()},
            "optimizer": flatten_optimizer(self.optimizer),
            "rng": {"state": self.rng.get_state()},
        }
        return {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}

    def check(self, tensors: Mapping[str, Tensor], step: int, origin: str) -> None:
        """Raise InputError unless a state is one that `tensors` returned at a step of this training; nothing is changed."""
        check_stream(self.rng, tensors.get("rng.state"), origin)
        check_state(tensors, self.tensors(), origin, step=step)

    def restore(self, tensors: Mapping[str, Tensor], step: int, origin: str) -> None:
        """Take over a state returned by `tensors`; raises InputError, before anything is taken over, as `check` does."""
        self.check(tensors, step, origin)

        def part(name: str) -> dict[str, Tensor]:
            return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}

        for name, network in self._networks.items():
            load_weights(network, part(name), origin)
        restore_optimizer(self.optimizer, part("optimizer"), origin)
        restore_stream(self.rng, tensors["rng.state"], origin)
        self.step = step


class TrainingState(State):
    """Everything that changes while a generator is trained.

    Args:
        generator: the network to train; its device is that of the run.
        schedule: the optimizer's settings.
        seed: of the one random stream.
        processes: those that train together.
        sharded: whether each of them keeps a share of every weight, in place of a copy of all.
    """

    def __init__(
        self, generator: Generator, schedule: Schedule, seed: int, *, processes: Processes = ALONE, sharded: bool = False
    ) -> None:
        self.generator, self.processes = generator, processes
        self.averages = {decay: ExponentialAverage(generator, decay) for decay in (schedule.ema_decay, *schedule.other_ema_decays)}
        if sharded:
            for network in (generator, *(average.module for average in self.averages.values())):
                processes.shard(network)
        self.chosen = schedule.ema_decay
        first, *others = self.averages.items()
        averages = {"average": first[1], **{f"average-{decay}": average for decay, average in others}}
        super().__init__({"generator": generator, **averages}, build_optimizer(generator, schedule), stream_seed(seed, "training"))

    @property
    def averaged(self) -> Generator:
        """The generator with averaged weights: the one to sample from. That of `ema_decay`, unless another was `chosen`."""
        return cast(Generator, self.averages[self.chosen].module)

    def note_faults(self, report: FeatureLoss) -> None:
        """Remember on the device at which step a drift first was not finite; nothing is read back here."""
        for name, feature in report.features.items():
            for temperature, norm in feature.drift_norms.items():
                self._note_fault(norm, self.step, (name, temperature))

    def check_faults(self) -> None:
        """Raise DivergenceError if a drift was not finite since the start, or a weight is not now. Reads from the device."""
        if (fault := self._first_fault()) is not None:
            step, name, temperature = fault
            raise DivergenceError(
                f"the loss became NaN or infinite at step {step}, in feature '{name}' at temperature {temperature:g}: "
                "lower the learning rate or lengthen the warm-up"
            )
        finite = torch.stack([local(weight).isfinite().all() for weight in self.generator.parameters()]).all()
        if self.processes.any(not bool(finite)):
            raise DivergenceError(
                f"the weights became NaN or infinite at step {self.step}: lower the learning rate or lengthen the warm-up"
            )

    def layout(self, name: str) -> Tensor | None:
        """Return a weight that an entry of the state is laid out as, by its name; None for one that is of no weight."""
        if name.startswith("optimizer."):
            weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
            return weights[int(name.split(".")[1])]
        own = name.partition(".module.")[2] or name.removeprefix("generator.")
        return dict(self.generator.named_parameters()).get(own)


class ExponentialAverage(AveragedModel):
    """A copy of a network whose weights are an average of those that the network had; `module` is the copy.

    After k updates the decay in force is min(decay, (1 + k) / (10 + k)), so that a short run does not remember its start.

    Args:
        network: the network being trained; the first update copies it.
        decay: share of the old average kept at each step in the long run, in [0, 1).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__(network)
        self.requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move the average toward the weights of the network, all at once; buffers are copied."""
        updates = int(self.n_averaged)  # is on the CPU, so no device is waited for
        averages, weights = ([local(weight) for weight in network.parameters()] for network in (self.module, model))
        if updates:
            # Rounded to float32, the precision of the weights, so that runs of earlier versions go on bit for bit.
            kept = float(np.float32(min(self.decay, (1 + updates) / (10 + updates))))
            torch._foreach_lerp_(averages, weights, 1 - kept)  # pyright: ignore[reportPrivateImportUsage]
        else:
            torch._foreach_copy_(averages, weights)  # pyright: ignore[reportPrivateImportUsage]
        for copied, buffer in zip(self.module.buffers(), model.buffers(), strict=True):
            copied.copy_(buffer)
        self.n_averaged += 1
