"""Train networks other than generators, step after step, from a state that can be saved and restored.

The images are in memory, or are read from the disk while the previous step computes. All randomness of a training comes from one
stream whose state is part of the training state, so a resumed training continues bit for bit.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from drifting._checks import OPTIMIZERS, check_choice
from drifting._torch import keep_freed_memory, stream_seed
from drifting.data.sources import shuffled_indices
from drifting.data.streamed import Rows
from drifting.encoders.base import STEADY, Optimization
from drifting.errors import InputError
from drifting.training.state import DivergenceError, ExponentialAverage, State, build_optimizer

# Number of steps between two checks of the losses, which wait for the device.
_CHECK_EVERY = 25

# Number of a step, counted from 1 -> its images (uint8 in 0..255, floats in [-1, 1] or latents) and their labels, if there are any.
Batches = Callable[[int], tuple[Shaped[Tensor, "b c h w"], Int[Tensor, " b"] | None]]
# (number of a step, rng) -> the loss of its batch, or parts whose sum is the loss.
LossOfStep = Callable[[int, torch.Generator], Tensor | Iterable[Tensor]]


class HeldRows(Rows):
    """Images in memory; they are not augmented.

    Args:
        images: all training images, uint8 in 0..255 or float in [-1, 1].
        labels: class of each image; None without labels.

    Raises:
        InputError: if there is no image, or there are labels, but not one for every image.
    """

    def __init__(self, images: Shaped[Tensor, "s c h w"], labels: Int[Tensor, " s"] | None = None) -> None:
        if len(images) == 0:
            raise InputError("data is empty: pass at least one image")
        if labels is not None and len(images) != len(labels):
            raise InputError(f"data has {len(images)} images and {len(labels)} labels: pass one label for every image")
        self.images, self.labels, self.shape, self.dtype = images, labels, tuple(images.shape[1:]), images.dtype

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def take(self, indices: Int[Tensor, " b"], positions: Int[Tensor, " b"]) -> Shaped[Tensor, "b c h w"]:
        """Return images."""
        return self.images[indices]


def batches_of(rows: Rows, batch_size: int, seed: int) -> Batches:
    """Return the batches of a training: every epoch has a new order of all rows, and new augmentations.

    Args:
        rows: images of the training.
        batch_size: number of images in a step.
        seed: seed of the order.
    """
    order = stream_seed(seed, "encoder batches")

    def batches(number: int) -> tuple[Tensor, Tensor | None]:
        first = (number - 1) * batch_size
        indices = shuffled_indices(len(rows), first, batch_size, order)
        images = rows.take(indices, torch.arange(first, first + batch_size))
        return images, None if rows.labels is None else rows.labels[indices]

    return batches


def read_ahead(batches: Batches, last: int, thread: Executor) -> Batches:
    """Return the same batches up to the last step; a thread reads each of them while the previous step computes."""
    waiting: dict[int, Future] = {}

    def read(number: int) -> tuple[Tensor, Tensor | None]:
        found = waiting.pop(number).result() if number in waiting else batches(number)
        if number < last:
            waiting[number + 1] = thread.submit(batches, number + 1)
        return found

    return read


@dataclass(frozen=True)
class NetworkStep:
    """The result of an optimizer step: its number, counted from 1, and the loss of its batch, on the device."""

    number: int
    loss: Float[Tensor, ""]


class NetworkState(State):
    """Everything that changes while a network other than a generator is trained.

    Args:
        model: network, trained in place on its device.
        learning_rate: highest learning rate of the schedule.
        seed: seed of the random stream.
        settings: further settings of the training.

    Raises:
        InputError: if there is no optimizer of this name.
    """

    def __init__(self, model: nn.Module, *, learning_rate: float, seed: int, settings: Optimization = STEADY) -> None:
        self.model, self.learning_rate, self.settings = model, learning_rate, settings
        check_choice("optimizer", settings.optimizer, OPTIMIZERS)
        optimizer = build_optimizer(model, settings, learning_rate)
        self.average = None if settings.ema_decay is None else ExponentialAverage(model, settings.ema_decay)
        averages = {} if self.average is None else {"average": self.average}
        super().__init__({"model": model, **averages}, optimizer, stream_seed(seed, "encoder training"))

    def check_faults(self) -> None:
        """Raise DivergenceError if a loss was not finite. Waits for the device."""
        if (fault := self._first_fault()) is not None:
            message = f"the loss of the {type(self.model).__name__.lower()} became NaN or infinite at step {fault[0]}"
            raise DivergenceError(f"{message}: lower the learning rate")

    def descend(self, loss: Tensor | Iterable[Tensor], number: int, steps: int) -> Float[Tensor, ""]:
        """Take the optimizer step of a number for a loss, or for parts of it, and return the loss.

        The graph of each part is released before the next part is computed, to bound memory.
        """
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for part in [loss] if isinstance(loss, Tensor) else loss:
            part.backward()
            total = total + part.detach()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * self.settings.factor(number, steps)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self._record_fault(total, number)
        return total


class NetworkTraining:
    """A training whose steps are taken by iterating over it.

    An iteration continues from the state: after an earlier state was restored, it takes the same steps bit for bit. At the end the
    network takes the averaged weights, if there are any.

    Args:
        state: training state; advanced in place.
        loss_of: computes the loss of a step.
        steps: number of steps of the whole training.
    """

    def __init__(self, state: NetworkState, loss_of: LossOfStep, *, steps: int) -> None:
        self.state, self.steps, self._loss_of = state, steps, loss_of

    def __iter__(self) -> Iterator[NetworkStep]:
        """Take the remaining steps and yield each; raises DivergenceError if the loss becomes NaN or infinite."""
        keep_freed_memory()
        state = self.state
        for number in range(state.step + 1, self.steps + 1):
            state.model.train()
            loss = state.descend(self._loss_of(number, state.rng), number, self.steps)
            if number % _CHECK_EVERY == 0 or number == self.steps:
                state.check_faults()
            state.step = number
            yield NetworkStep(number, loss)
        if state.average is not None:
            state.model.load_state_dict(state.average.module.state_dict())


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a network."""
    return next(module.parameters()).device
