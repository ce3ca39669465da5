"""The training state: weights, their averages, the optimizer and one random stream, and its form in checkpoints.

The optimizer is AdamW, or Muon, which moves a matrix of weights equally far in every direction. Equation of Muon, for an n x k
matrix W of weights (a convolution has one row for each output channel) and its gradient G, with momentum m = 0.95, learning rate l
and weight decay d:

    M <- m M + (1 - m) G,    U S V^T = m M + (1 - m) G,    W <- (1 - l d) W - 0.2 l sqrt(max(n, k)) U V^T

With this factor a step has about the same root mean square as one of AdamW, so both can use one learning rate. Four steps of a
Newton-Schulz iteration, X <- (a I + b X X^T + c (X X^T)^2) X, approximate U V^T. Each step has the coefficients that take the range
of singular values that the step before has left as close to 1 as possible, beginning with 0.003 to 1. All steps are polynomials of
the first X X^T, so for a long matrix they are multiplied at its smaller side, and the matrix itself is used twice instead of eight
times.

Source: Jordan et al. 2024 (Muon), with five steps of one polynomial; the factor is from arXiv:2502.16982; that the best polynomial
of each step is the best composition is from arXiv:2505.16932, the coefficients are computed here; the products at the smaller side
are Gram Newton-Schulz (tridao.me/blog/2026/gram-newton-schulz), which needs restarts in half precision, but not in float32 as here.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from drifting._checks import constant, full_precision
from drifting._torch import stream_seed
from drifting.checkpoint import check_state, described, load_weights
from drifting.distributed import ALONE, Processes, laid_out, local
from drifting.encoders.base import Optimization
from drifting.errors import InputError
from drifting.generators.base import Generator
from drifting.loss import FeatureLoss
from drifting.training.schedule import Schedule

if TYPE_CHECKING:
    from drifting.training.encoder import LearnedEncoder

_MOMENTUM = 0.95
# Coefficients (a, b, c) of each step. They take singular values of 0.003 to 1 to between 0.80 and 1.20.
_COEFFICIENTS = (
    (8.38367, -24.7659, 18.3571),
    (4.04342, -3.0114, 0.569512),
    (3.50557, -2.62665, 0.525719),
    (2.49012, -1.83428, 0.436835),
)
_SMALLEST_NORM = 1e-7
_STEP_OF_ADAMW = 0.2


def build_optimizer(model: nn.Module, settings: Schedule | Optimization, learning_rate: float) -> torch.optim.Optimizer:
    """Return the optimizer of the settings for all weights of a network, with its initial state."""
    options: dict[str, Any] = {"lr": learning_rate, "betas": settings.betas, "weight_decay": settings.weight_decay}
    if settings.optimizer == "muon":
        optimizer = Muon(model, **options)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), fused=True, **options)
    start_optimizer(optimizer)
    return optimizer


class Muon(torch.optim.Optimizer):
    """Muon for the weights of `nn.Linear` and `nn.Conv2d`, AdamW for all others: biases, embeddings, scales.

    Args:
        model: the network; its matrices are the first group of parameters, all others the second.
        lr: learning rate of both groups.
        betas: decay rates of the moments of AdamW.
        weight_decay: decoupled weight decay of both groups.
    """

    def __init__(self, model: nn.Module, *, lr: float, betas: tuple[float, float], weight_decay: float) -> None:
        layers = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
        matrices = {id(layer.weight): layer.weight for layer in layers}
        others = [parameter for parameter in model.parameters() if id(parameter) not in matrices]
        adamw = torch.optim.AdamW([{"params": others}], lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
        super().__init__([{"params": list(matrices.values())}, {"params": others}], adamw.defaults)
        for weight in matrices.values():
            self.state[weight]["momentum"] = torch.zeros_like(weight, requires_grad=False)

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] - no closure
        """Move all weights that have a gradient by one step."""
        matrices, others = self.param_groups
        for weight in matrices["params"]:
            if weight.grad is not None:
                self._move(weight, weight.grad, matrices["lr"], matrices["weight_decay"])
        # It shares the state and the group of this optimizer, so that a checkpoint holds them once.
        adamw = torch.optim.AdamW([{"params": others["params"]}], fused=True)
        adamw.state, adamw.param_groups = self.state, [others]
        adamw.step()

    def _move(self, weight: Tensor, gradient: Tensor, rate: float, decay: float) -> None:
        momentum = self.state[weight]["momentum"].lerp_(gradient, 1 - _MOMENTUM)
        direction = gradient.lerp(momentum, _MOMENTUM).flatten(1)
        factor = _STEP_OF_ADAMW * max(direction.shape) ** 0.5
        weight.mul_(1 - rate * decay).sub_(orthogonalized(direction).view_as(weight), alpha=rate * factor)


@constant
def orthogonalized(matrix: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """Return an approximation of U V^T for a matrix U S V^T, in float32 or better.

    Singular values above 0.003 of the root of their sum of squares become 0.80 to 1.20; smaller ones grow up to 295-fold.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    wide = full_precision(matrix.mT if tall else matrix)
    wide = wide / wide.norm().clamp(min=_SMALLEST_NORM)
    identity = torch.eye(len(wide), dtype=wide.dtype, device=wide.device)
    # For a nearly square matrix, it takes fewer products to multiply the matrix itself.
    small = 2 * wide.shape[1] > 3 * wide.shape[0]
    carried, gram, factor = wide, wide @ wide.mT, identity
    for index, (linear, cubic, quintic) in enumerate(_COEFFICIENTS):
        if index:
            gram = factor @ gram @ factor if small else carried @ carried.mT
        factor = torch.addmm(gram, gram, gram, beta=cubic, alpha=quintic).add_(identity, alpha=linear)
        carried = factor if small and index == 0 else factor @ carried
    found = carried @ wide if small else carried
    return found.mT if tall else found


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the state of every parameter as named tensors: "0.exp_avg", "0.step", ..."""
    states = optimizer.state_dict()["state"]
    return {f"{index}.{key}": torch.as_tensor(value) for index, state in states.items() for key, value in state.items()}


def start_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Give every weight of AdamW without state the state before its first step, so that the names to save are known."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if not optimizer.state[weight]:
                counted_on = weight.device if group["fused"] or group["capturable"] else "cpu"
                optimizer.state[weight]["step"] = torch.zeros((), dtype=torch.float32, device=counted_on)
                for name in ("exp_avg", "exp_avg_sq"):
                    optimizer.state[weight][name] = torch.zeros_like(weight, requires_grad=False)


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], origin: str = "the checkpoint") -> None:
    """Restore the result of `flatten_optimizer`; the hyper-parameters stay those of the configuration.

    Raises:
        InputError: if the state is incomplete or belongs to other weights.
    """
    start_optimizer(optimizer)
    own = flatten_optimizer(optimizer)
    check_state(tensors, own, origin)
    # In place, to keep the memory layout of the weights, which a fused step requires.
    for name, value in own.items():
        value.copy_(laid_out(tensors[name], value))


# State of a random stream on a CPU: length in bytes, index of the number of values left (int32), of the next value (int64), block.
_CPU_STREAM, _LEFT, _NEXT, _BLOCK = 5056, 2, 2, 624


class DivergenceError(RuntimeError):
    """The loss became NaN or infinite; the message names the step, the feature and the temperature."""


class State:
    """Everything that changes while a network is trained.

    Args:
        networks: name in the state -> network; the trained network comes first, then averages of its weights.
        optimizer: optimizer of the network.
        seed: seed of the random stream.

    Attributes:
        step: number of steps that are done.
        rng: the random stream.
        seed: seed of the random stream.
        device: device of the networks and the stream.
    """

    def __init__(self, networks: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, seed: int) -> None:
        self._networks, self.optimizer = dict(networks), optimizer
        self.device = next(weight.device for network in networks.values() for weight in network.parameters())
        self.rng = torch.Generator(self.device).manual_seed(seed)
        self.seed, self.step = seed, 0
        self._faults: dict[tuple[str, float], Tensor] = {}

    def _record_fault(self, value: Tensor, number: int, source: tuple[str, float] = ("", 0.0)) -> None:
        """Record the first step at which a value of a source was not finite. The record stays on the device."""
        first = self._faults.get(source, torch.zeros((), dtype=torch.long, device=self.device))
        self._faults[source] = torch.where((first == 0) & ~value.isfinite(), number, first)

    def _first_fault(self) -> tuple[int, str, float] | None:
        """Return the first step with a value that was not finite, and its source, or None. Waits for the device."""
        steps = torch.stack(list(self._faults.values())).tolist() if self._faults else []
        return min(((step, *source) for source, step in zip(self._faults, steps, strict=True) if step > 0), default=None)

    def tensors(self) -> dict[str, Tensor]:
        """Return the whole state as named tensors; if weights are sharded, those of this process."""
        parts = {
            **{name: network.state_dict() for name, network in self._networks.items()},
            "optimizer": flatten_optimizer(self.optimizer),
            "rng": {"state": self.rng.get_state()},
        }
        return {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}

    def check(self, tensors: Mapping[str, Tensor], step: int, origin: str) -> None:
        """Raise InputError unless a state is a result of `tensors` at a step of this training; nothing is changed."""
        _check_stream(self.rng, tensors.get("rng.state"), origin)
        check_state(tensors, self.tensors(), origin, step=step)

    def restore(self, tensors: Mapping[str, Tensor], step: int, origin: str) -> None:
        """Restore a result of `tensors`; raises InputError as `check` does, before anything is changed."""
        self.check(tensors, step, origin)

        def part(name: str) -> dict[str, Tensor]:
            return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}

        for name, network in self._networks.items():
            load_weights(network, part(name), origin)
        restore_optimizer(self.optimizer, part("optimizer"), origin)
        self.rng.set_state(tensors["rng.state"])  # pyright: ignore[reportArgumentType] - checked
        self.step = step


class TrainingState(State):
    """Everything that changes while a generator is trained.

    Args:
        generator: network to train, on the device of the run.
        schedule: settings of the optimizer.
        seed: seed of the random stream.
        encoder: encoder that learns in the same training; None if it is fixed.
        processes: processes that train together.
        sharded: whether each process keeps a share of every weight instead of a copy of all weights.

    Attributes:
        temperature: the learned factor of all temperatures; None if none is learned.
        encoder: the encoder that is learned in this training; None if it is fixed.
    """

    def __init__(
        self,
        generator: Generator,
        schedule: Schedule,
        seed: int,
        *,
        encoder: "LearnedEncoder | None" = None,
        processes: Processes = ALONE,
        sharded: bool = False,
    ) -> None:
        self.generator, self.processes = generator, processes
        self.averages = {decay: ExponentialAverage(generator, decay) for decay in (schedule.ema_decay, *schedule.other_ema_decays)}
        if sharded:
            for network in (generator, *(average.module for average in self.averages.values())):
                processes.shard(network)
        self.chosen = schedule.ema_decay
        self.temperature, self.encoder, rate = None, encoder, schedule.temperature_learning_rate
        if rate is not None:
            from drifting.training.temperature import LearnedTemperature

            self.temperature = LearnedTemperature(rate, next(generator.parameters()).device)
        learners = {"temperature": self.temperature, "encoder": encoder}
        self._learners = {name: learner for name, learner in learners.items() if learner is not None}
        for learner in self._learners.values():
            start_optimizer(learner.optimizer)
        first, *others = self.averages.items()
        averages = {"average": first[1], **{f"average-{decay}": average for decay, average in others}}
        networks = {"generator": generator, **averages, **self._learners}
        super().__init__(networks, build_optimizer(generator, schedule, schedule.learning_rate), stream_seed(seed, "training"))

    @property
    def averaged(self) -> Generator:
        """The generator with averaged weights, from which to sample: that of the decay `chosen`, at first `ema_decay`."""
        return cast(Generator, self.averages[self.chosen].module)

    def tensors(self) -> dict[str, Tensor]:
        """Return the whole state as named tensors; if weights are sharded, those of this process."""
        further = {
            f"{part}_optimizer.{name}": value
            for part, learner in self._learners.items()
            for name, value in flatten_optimizer(learner.optimizer).items()
        }
        return {**super().tensors(), **further}

    def restore(self, tensors: Mapping[str, Tensor], step: int, origin: str) -> None:
        """Restore a result of `tensors`; raises InputError as `check` does, before anything is changed."""
        super().restore(tensors, step, origin)
        for part, learner in self._learners.items():
            prefix = f"{part}_optimizer."
            own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            restore_optimizer(learner.optimizer, own, origin)

    def record_faults(self, report: FeatureLoss) -> None:
        """Record the first step at which a drift was not finite. The record stays on the device."""
        for name, feature in report.features.items():
            for temperature, norm in feature.drift_norms.items():
                self._record_fault(norm, self.step, (name, temperature))

    def check_faults(self) -> None:
        """Raise DivergenceError if a drift was not finite in any step, or a weight is not finite now. Waits for the device."""
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
        """Return the weight with the layout of an entry of the state, by its name; None for an entry without a weight."""
        if name.startswith("optimizer."):
            weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
            return weights[int(name.split(".")[1])]
        own = name.partition(".module.")[2] or name.removeprefix("generator.")
        return dict(self.generator.named_parameters()).get(own)


def _check_stream(rng: torch.Generator, state: Tensor | None, origin: str) -> None:
    """Raise InputError unless a random stream can take a state; the stream is not changed."""
    if state is None or state.dtype != torch.uint8 or state.ndim != 1:
        found = "missing" if state is None else described(state)
        raise InputError(f"checkpoint is '{origin}', whose random stream is {found}: delete it and resume")
    if state.shape != rng.get_state().shape:
        name = rng.device.type
        raise InputError(f"device is '{name}', but the random stream of '{origin}' is of another kind of device: resume on that")
    try:
        torch.Generator(rng.device).set_state(state)
        sound = len(state) != _CPU_STREAM or _has_numbers(state)
    except RuntimeError:
        sound = False
    if not sound:
        raise InputError(f"checkpoint is '{origin}', whose random stream has an invalid state: delete it and resume")


def _has_numbers(state: Tensor) -> bool:
    """Return whether a stream on a CPU continues inside its block of numbers; torch itself would read beyond it."""
    left, place = int(state.view(torch.int32)[_LEFT]), int(state.view(torch.int64)[_NEXT])
    return (left, place) == (1, 0) or (left >= 1 and left + place == _BLOCK + 1)


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
