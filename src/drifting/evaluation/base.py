"""What all evaluations share."""

from collections.abc import Callable, Sequence

from torch import Tensor

# (count, seed) -> samples
Sampler = Callable[[int, int], Tensor]
# The extractor is a name, all else are figures.
Metrics = dict[str, int | float | Sequence[float] | Sequence[int] | str]


def as_text(value: int | float | Sequence[float] | Sequence[int] | str) -> str:
    """Return a figure as tables show it: a count whole, a number in five digits, several in four each."""
    if isinstance(value, float):
        return f"{value:.5g}"
    return str(value) if isinstance(value, str | int) else " ".join(f"{part:.4g}" for part in value)
