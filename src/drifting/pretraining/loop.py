"""How the networks that are not generators are optimized: by AdamW, step after step, from a state that can be kept and restored.

All randomness of a training comes from one stream, whose state is part of its own, so that a resumed one goes on bit for bit.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from drifting._seeds import stream_seed
from drifting.checkpoint import (
    check_state,
    check_stream,
    flatten_optimizer,
    load_weights,
    restore_optimizer,
    restore_stream,
    start_optimizer,
)
from drifting.encoders.base import Optimization
from drifting.training.state import DivergenceError, exponential_average

# How often the losses are looked at; looking waits for the device.
_CHECK_EVERY = 25
_STEADY = Optimization()


@dataclass(frozen=True)
class EncoderStep:
    """What the loops yield after each optimizer step: its number, counted from 1, and the loss of its batch, on the device."""

    number: int
    loss: Float[Tensor, ""]


class NetworkState:
    """Everything that changes while a network is trained, and its form on disk.

    Args:
        model: trained in place, on its device.
        learning_rate: the highest of the schedule.
        seed: of the one random stream.
        settings: of the optimizer.
    """

    def __init__(self, model: nn.Module, *, learning_rate: float, seed: int, settings: Optimization = _STEADY) -> None:
        self.model, self.learning_rate, self.settings = model, learning_rate, settings
        given = {"lr": learning_rate, "betas": settings.betas, "weight_decay": settings.weight_decay}
        self.optimizer = torch.optim.AdamW(model.parameters(), **given)
        start_optimizer(self.optimizer)
        self.average = None if settings.ema_decay is None else exponential_average(model, settings.ema_decay)
        self.rng = torch.Generator(device_of(model)).manual_seed(stream_seed(seed, "encoder training"))
        self.step = 0
        self._first_fault = torch.zeros((), dtype=torch.long, device=device_of(model))

    def note_fault(self, loss: Float[Tensor, ""], number: int) -> None:
        """Remember on the device at which step the loss first was not finite; nothing is read back here."""
        self._first_fault = torch.where((self._first_fault == 0) & ~loss.isfinite(), number, self._first_fault)

    def check_faults(self) -> None:
        """Raise DivergenceError if a loss was not finite. Reads from the device."""
        if int(self._first_fault) > 0:
            name = type(self.model).__name__.lower()
            message = f"the loss of the {name} became NaN or infinite at step {int(self._first_fault)}"
            raise DivergenceError(f"{message}: lower the learning rate")

    def tensors(self) -> dict[str, Tensor]:
        """Return the whole state as named tensors."""
        parts = {
            "model": self.model.state_dict(),
            "average": {} if self.average is None else self.average.state_dict(),
            "optimizer": flatten_optimizer(self.optimizer),
            "rng": {"state": self.rng.get_state()},
        }
        return {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}

    def restore(self, tensors: Mapping[str, Tensor], step: int, origin: str) -> None:
        """Take over a state returned by `tensors`, of a step; raises InputError, before anything changes, if it does not fit."""
        check_stream(self.rng, tensors.get("rng.state"), origin)
        check_state(tensors, self.tensors(), origin, step=step)

        def part(name: str) -> dict[str, Tensor]:
            return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}

        load_weights(self.model, part("model"), origin)
        if self.average is not None:
            load_weights(self.average, part("average"), origin)
        restore_optimizer(self.optimizer, part("optimizer"), origin)
        restore_stream(self.rng, tensors["rng.state"], origin)
        self.step = step


class NetworkTraining:
    """The steps of a training, taken one after the other by a loop over it, and the state that they advance.

    A loop goes on from where the state is: restored to an earlier state of the same training, it takes the same steps bit for bit.

    Args:
        state: what is trained; advanced in place.
        loss_of: the loss of a step, as `optimize` takes it.
        steps: number of the last step.
    """

    def __init__(
        self, state: NetworkState, loss_of: Callable[[int, torch.Generator], Tensor | Iterable[Tensor]], *, steps: int
    ) -> None:
        self.state, self.steps, self._loss_of = state, steps, loss_of

    def __iter__(self) -> Iterator[EncoderStep]:
        """Take the steps that are left; raises as `optimize` does."""
        return optimize(self.state, self._loss_of, steps=self.steps)


def optimize(
    state: NetworkState, loss_of: Callable[[int, torch.Generator], Tensor | Iterable[Tensor]], *, steps: int
) -> Iterator[EncoderStep]:
    """Minimize a loss over all weights of a network, from the state's step on, yielding after each step.

    Args:
        state: what is trained; advanced in place. In the end its network is given the averaged weights, where there are any.
        loss_of: (number of the step, counted from 1, rng) -> the loss of its batch, or the parts that it is the sum of, each of
            which is let go of before the next is asked for: that bounds memory.
        steps: number of the last step.

    Raises:
        DivergenceError: if the loss becomes NaN or infinite.
    """
    model, optimizer, settings = state.model, state.optimizer, state.settings
    for number in range(state.step + 1, steps + 1):
        model.train()
        optimizer.zero_grad(set_to_none=True)
        loss = _descend(loss_of(number, state.rng))
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = state.learning_rate * settings.factor(number, steps)
        optimizer.step()
        if state.average is not None:
            state.average.update_parameters(model)
        state.note_fault(loss, number)
        if number % _CHECK_EVERY == 0 or number == steps:
            state.check_faults()
        state.step = number
        yield EncoderStep(number, loss)
    if state.average is not None:
        model.load_state_dict(state.average.module.state_dict())


def _descend(loss: Tensor | Iterable[Tensor]) -> Float[Tensor, ""]:
    """Add the gradient of a loss, part by part, and return its value."""
    total = torch.zeros(())
    for part in [loss] if isinstance(loss, Tensor) else loss:
        part.backward()
        total = total.to(part.device) + part.detach()
    return total


def device_of(module: nn.Module) -> torch.device:
    """Return where a network is."""
    return next(module.parameters()).device
