"""Samples as the body of an answer: a picture, arrays, or numbers in JSON."""

import io
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from drifting.runs.samples import can_be_drawn, check_picture, picture_of
from drifting.sampling import Request, Sampler

# Format -> its media type.
MEDIA_TYPES = {"png": "image/png", "npz": "application/octet-stream", "json": "application/json"}
# Figures are drawn by matplotlib, whose fonts are shared.
_drawing = threading.Lock()


def formats_of(shape: Sequence[int]) -> tuple[str, ...]:
    """Return the formats of samples of a shape in the user's form; the first is the default. JSON is for points."""
    if len(shape) == 3:
        return ("png", "npz")
    return ("json", "npz", "png") if can_be_drawn(shape) else ("json", "npz")


def check_format(chosen: str, shape: Sequence[int], count: int) -> None:
    """Raise InputError if samples are too many for their format."""
    if chosen == "png":
        check_picture(shape, count)


def encode(
    chosen: str, sampler: Sampler, samples: Tensor, request: Request, to_json: Callable[[object], bytes]
) -> tuple[bytes, dict[str, str]]:
    """Return samples in a format, and headers that go with it.

    Args:
        chosen: the format.
        sampler: what made the samples.
        samples: the samples in the user's form.
        request: the request for them.
        to_json: encodes lists and dictionaries.
    """
    labels = None if request.labels is None else [request.label(index) for index in range(request.count)]
    if chosen == "json":
        found = {"samples": samples.tolist()}
        return to_json(found if labels is None else {**found, "labels": labels}), {}
    file = io.BytesIO()
    if chosen == "npz":
        arrays: dict[str, Any] = {"samples": samples.numpy()}
        np.savez(file, **(arrays if labels is None else {**arrays, "labels": np.array(labels, np.int64)}))
        return file.getvalue(), {"Content-Disposition": 'attachment; filename="samples.npz"'}
    with _drawing:
        picture_of(sampler, samples, request.labels).save(file, "png")
    return file.getvalue(), {}
