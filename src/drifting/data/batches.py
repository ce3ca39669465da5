"""The form of real samples and their labels: batches of a data set or a loader are read, and what does not fit is refused."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from drifting.errors import InputError


def as_batch(batch: Any) -> tuple[Tensor, Tensor | None]:
    """Return the samples and labels of a batch: a tensor, a pair of tensors, or columns by name; raises InputError otherwise."""
    batch = _columns(batch) if isinstance(batch, Mapping) else batch
    parts = tuple(batch) if isinstance(batch, list | tuple) else (batch,)
    if not all(isinstance(part, Tensor) for part in parts) or not 1 <= len(parts) <= 2:
        kinds = ", ".join(type(part).__name__ for part in parts)
        raise InputError(f"data has batches of ({kinds}): pass tensors x, or pairs (x, y) of samples and labels")
    return check_samples(*parts)


def _columns(columns: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """Return the samples and labels among columns: labels are whole numbers, one for each sample."""
    tensors = {name: value for name, value in columns.items() if isinstance(value, Tensor)}
    labels = [value for value in tensors.values() if value.ndim == 1 and not value.is_floating_point()]
    samples = [value for value in tensors.values() if value.ndim > 1 or value.is_floating_point()]
    if len(tensors) < len(columns) or len(samples) != 1 or len(labels) > 1:
        found = ", ".join(
            f"{name} {tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__}" for name, value in columns.items()
        )
        raise InputError(f"data has the columns {found}: keep one of samples, and at most one of labels, as tensors")
    return (*samples, *labels)


def check_samples(samples: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Return samples as float32 and labels as integers, or raise InputError if they have another form."""
    if not samples.is_floating_point():
        raise InputError(f"data is {samples.dtype}: pass floats, such as images / 127.5 - 1 for bytes")
    if labels is None:
        return samples.float(), None
    check_labels(labels, len(samples))
    return samples.float(), labels.long()


def check_labels(labels: Tensor, count: int) -> None:
    """Raise InputError unless labels are whole numbers from 0 on, one for each of `count` samples."""
    if labels.ndim != 1 or len(labels) != count or labels.is_floating_point():
        found = f"{labels.dtype} of shape {tuple(labels.shape)} for {count} samples"
        raise InputError(f"labels are {found}: pass one whole number for each sample")
    if len(labels) and int(labels.min()) < 0:
        raise InputError(f"labels has {int(labels.min())}: number the classes from 0 on")


def check_drawn(labels: Tensor, num_classes: int) -> None:
    """Raise InputError unless there are classes of all labels that are to be drawn. Only labels on a CPU are looked at."""
    if labels.device.type != "cpu":  # reading them would wait for the device
        return
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if len(wrong):
        raise InputError(f"labels has {int(wrong[0])}: choose from 0 to {num_classes - 1}")


def check_finite(samples: Tensor) -> None:
    """Raise InputError if samples are NaN or infinite."""
    if samples.is_floating_point() and not bool(samples.isfinite().all()):
        raise InputError("data holds NaN or infinite values: remove or fix those samples")
