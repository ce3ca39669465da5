"""Flow matching with the network of a drifting generator, the baseline of `quality.py` and `sampling.py`.

Images x1 and noise x0 are joined by straight lines, x_t = (1 - t) x0 + t x1, whose velocity is x1 - x0. The network predicts the
image at the end of the line, because a perceptron with a short code can draw images but no noise; its velocity is
(prediction - x_t) / (1 - t). The loss is the mean square of its difference to x1 - x0. Samples follow the velocity in equal Euler
steps, one evaluation of the network each.

Source: arXiv:2210.02747 (the linear path); arXiv:2511.13720 (predicted images with the loss of velocities, its lower bound of
1 - t, and times from a logistic normal distribution).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from drifting.data.images import ImageSet
from drifting.data.pixels import to_signed
from drifting.generators import DecoderMLPConfig
from drifting.generators.base import Generator
from drifting.training.schedule import Schedule
from drifting.training.state import TrainingState

FREQUENCIES = 32
# Below this distance from the end of the line, the loss no longer divides by it.
CLOSEST = 0.05
BATCH = 128
SCHEDULE = Schedule(steps=10**6, generated=2, positives=2, learning_rate=1e-3, warmup_steps=100, ema_decay=0.999)


class Flow(Generator):
    """A drifting generator's network that takes a noisy image and a time in place of noise; calling it solves the flow.

    Args:
        config: network of the drifting generator.
        sample_shape: shape of one image.
        num_classes: number of labels.

    Attributes:
        evaluations: number of Euler steps of a sample.
    """

    def __init__(self, config: DecoderMLPConfig, sample_shape: Sequence[int], num_classes: int) -> None:
        super().__init__()
        shape = tuple(sample_shape)
        inputs = math.prod(shape) + 2 * FREQUENCIES
        self.network = replace(config, noise_dim=inputs).build(sample_shape=shape, num_classes=num_classes, guided=False)
        self.noise_shape = self.sample_shape = shape
        self.num_classes, self.evaluations = num_classes, 1

    def predict(self, images: Tensor, times: Tensor, labels: Tensor | None) -> Tensor:
        """Return the images at the ends of the lines; `times` is [b]."""
        rates = torch.logspace(0, 3, FREQUENCIES, device=images.device)
        phases = times[:, None] * rates
        return self.network(torch.cat([images.flatten(1), phases.cos(), phases.sin()], 1), labels)

    def loss(self, images: Tensor, labels: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Return the mean squared error of the velocity."""
        along = times[:, None, None, None]
        predicted = self.predict(torch.lerp(noise, images, along), times, labels)
        return ((predicted - images) / (1 - along).clamp(min=CLOSEST)).square().mean()

    def forward(self, noise: Tensor, labels: Tensor | None = None, guidance_scale: Tensor | None = None) -> Tensor:
        """Return one image per row of noise."""
        del guidance_scale
        images = noise
        for step in range(self.evaluations):
            time = step / self.evaluations
            velocity = (self.predict(images, noise.new_full((len(noise),), time), labels) - images) / (1 - time)
            images = images + velocity / self.evaluations
        return images


def train_flow(state: TrainingState, data: ImageSet, schedule: Schedule = SCHEDULE, batch: int = BATCH) -> Iterator[int]:
    """Train a flow from the state's step on, yielding the number of each step."""
    flow, rng = state.generator, state.rng
    assert isinstance(flow, Flow)
    assert data.labels is not None
    flow.train()
    while True:
        chosen = torch.randint(len(data.images), (batch,), generator=rng)
        images = to_signed(data.images[chosen])
        noise = torch.randn(images.shape, generator=rng)
        times = torch.randn(batch, generator=rng).sigmoid()
        state.step += 1
        state.optimizer.zero_grad(set_to_none=True)
        flow.loss(images, data.labels[chosen], noise, times).backward()
        for group in state.optimizer.param_groups:
            group["lr"] = schedule.learning_rate_at(state.step)
        state.optimizer.step()
        for average in state.averages.values():
            average.update_parameters(flow)
        yield state.step
