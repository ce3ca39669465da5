"""Real samples with a condition each, such as actions with the observations that led to them.

A condition is a label of its own: a step draws some of the conditions, its generated samples of one condition are a group, and the
only positive of the group is the sample that came with the condition.

Shapes: s samples, b samples of a batch, l conditions of a step.
"""

from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from drifting.data.dataset import ALL
from drifting.errors import InputError


class Conditions:
    """Conditions by their number. Copies of a network share them.

    Args:
        rows: all conditions.
    """

    def __init__(self, rows: Shaped[Tensor, "s *stored"]) -> None:
        self.rows = rows

    def __deepcopy__(self, memo: Any) -> "Conditions":
        """Return the same conditions."""
        return self

    def __getitem__(self, numbers: Int[Tensor, " b"]) -> Shaped[Tensor, "b *stored"]:
        """Return some of the conditions, on the device of their numbers."""
        self.rows = self.rows.to(numbers.device)
        return self.rows[numbers]


class PairedSource:
    """Samples with one condition each, as a source whose labels are the numbers of the conditions.

    Args:
        samples: all real samples.
        conditions: the condition of each sample.

    Raises:
        InputError: if there is not one condition for each sample, or a value is not finite.
    """

    def __init__(self, samples: Float[Tensor, "s *sample"], conditions: Shaped[Tensor, "s *stored"]) -> None:
        if len(samples) == 0 or len(conditions) != len(samples):
            raise InputError(f"conditions has {len(conditions)} rows for {len(samples)} samples: pass one for each")
        for name, values in (("data", samples), ("conditions", conditions)):
            if not bool(values.isfinite().all()):
                raise InputError(f"{name} holds NaN or infinite values: remove or fix those samples")
        self.samples, self.conditions = samples, Conditions(conditions)
        self.sample_shape, self.num_classes = tuple(samples.shape[1:]), len(samples)

    def draw(
        self, labels: Int[Tensor, " l"] | None, count: int, rng: torch.Generator, own: slice = ALL
    ) -> Float[Tensor, "l p *sample"]:
        """Return the sample of each condition, `count` times."""
        self.samples = self.samples.to(rng.device)
        numbers = torch.arange(self.num_classes, device=rng.device) if labels is None else labels
        return self.samples[numbers[own], None].expand(-1, count, *self.sample_shape)

    def draw_unconditional(self, sets: int, count: int, rng: torch.Generator, own: slice = ALL) -> Float[Tensor, "l m *sample"]:
        """Return sets of samples of any condition."""
        self.samples = self.samples.to(rng.device)
        return self.samples[torch.randint(self.num_classes, (sets, count), generator=rng, device=rng.device)[own]]
