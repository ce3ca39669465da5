"""A user's own points in the plane, brought to unit size for training."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from drifting.errors import InputError

# Units beyond these are too near to the ends of float64 to calculate and to draw with.
_LEAST_SCALE, _MOST_SCALE = 1e-290, 1e290


class Frame(NamedTuple):
    """Where points lie: coordinates = centre + scale * standardised, each axis of the plane scaled alike."""

    centre: tuple[float, float]
    scale: float

    def standardise(self, points: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
        """Return points as training sees them, in float32."""
        return ((points.double() - torch.tensor(self.centre, dtype=torch.float64)) / self.scale).float()

    def restore(self, points: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
        """Return points in the user's coordinates, in float64: far from the origin float32 would have no digits left for them."""
        return points.double() * self.scale + torch.tensor(self.centre, dtype=torch.float64)


def load_points(path: Path) -> Float[Tensor, "n 2"]:
    """Return the points of a .npy file in float64; raises InputError unless it holds a finite numeric [n, 2] array."""
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"data is '{path}', which does not exist: pass the path of a .npy file") from None
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"data is '{path}', which cannot be read as .npy ({error}): save it with numpy.save") from None
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "iuf":
        raise InputError(f"data is '{path}', an array of shape {np.shape(array)}: pass numbers of shape [n, 2]")
    if len(array) < 2:
        raise InputError(f"data is '{path}', which holds {len(array)} points: pass at least 2")
    with np.errstate(over="ignore"):  # of numbers in extended precision
        array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise InputError(f"data is '{path}', which holds NaN or infinite values: remove those points")
    return torch.from_numpy(array)


def frame_of(points: Float[Tensor, "n 2"], origin: str) -> Frame:
    """Return the frame in which points have mean 0 and a root mean square coordinate of 0.5, the size of the toys."""
    if bool((points == points[0]).all()):
        raise InputError(f"data is '{origin}', which holds one point many times: pass points that differ")
    # Relative to the first point and to the farthest of the others: squares and sums of the numbers themselves could overflow.
    offsets = points - points[0]
    size = offsets.abs().max()
    relative = offsets / size
    middle = relative.mean(0)
    scale = 2 * float((relative - middle).square().mean().sqrt()) * float(size)
    centre = (points[0] + middle * size).tolist()
    if not _LEAST_SCALE < scale < _MOST_SCALE:
        raise InputError(f"data is '{origin}', whose points are {scale / 2:g} apart: choose another unit for them")
    return Frame((centre[0], centre[1]), scale)
