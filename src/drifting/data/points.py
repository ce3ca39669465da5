"""A user's own points in the plane, brought to unit size for training."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from drifting.errors import InputError


class Frame(NamedTuple):
    """Where points lie: coordinates = centre + scale * standardised, each axis of the plane scaled alike."""

    centre: tuple[float, float]
    scale: float

    def standardise(self, points: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
        """Return points as training sees them, in float32."""
        return ((points - torch.tensor(self.centre, dtype=points.dtype)) / self.scale).float()

    def restore(self, points: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
        """Return points in the user's coordinates, in float32."""
        return (points.double() * self.scale + torch.tensor(self.centre, dtype=torch.float64)).float()


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
    if not np.isfinite(array).all():
        raise InputError(f"data is '{path}', which holds NaN or infinite values: remove those points")
    return torch.from_numpy(array.astype(np.float64))


def frame_of(points: Float[Tensor, "n 2"], origin: str) -> Frame:
    """Return the frame in which points have mean 0 and a root mean square coordinate of 0.5, the size of the toys."""
    centre = points.mean(0)
    spread = float((points - centre).square().mean().sqrt())
    if spread == 0:
        raise InputError(f"data is '{origin}', which holds one point many times: pass points that differ")
    return Frame((float(centre[0]), float(centre[1])), 2 * spread)
