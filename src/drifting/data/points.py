"""Points in the plane: eight toy distributions, sampled anew at every step, and a user's own points, standardized for training.

The toys lie within about [-1.5, 1.5]^2. `swiss_roll` and `checker` are those of the authors' notebook.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from drifting._checks import check_memory, nearest_name
from drifting._files import check_exists
from drifting.data.dataset import Data, found
from drifting.data.sources import InMemorySource, StreamSource
from drifting.errors import InputError, reason

# Larger and smaller units are too close to the limits of float64 for calculations and pictures.
_LEAST_SCALE, _MOST_SCALE = 1e-290, 1e290
_TEXTS = {".csv", ".tsv", ".txt"}
# With fewer points, samples are copies of them.
_FEW_POINTS = 100
# Memory for the words and numbers of a text table in Python, per character.
_BYTES_PER_CHARACTER = 40

Points = Float[Tensor, "n 2"]


class Frame(NamedTuple):
    """The frame of points: coordinates = center + scale * standardized, with one scale for both axes."""

    center: tuple[float, float]
    scale: float

    def standardize(self, points: Points) -> Points:
        """Return standardized points in float32, for training."""
        return ((points.double() - torch.tensor(self.center, dtype=torch.float64)) / self.scale).float()

    def restore(self, points: Points) -> Points:
        """Return points in the coordinates of the user, in float64, because float32 has too few digits far from the origin."""
        return points.double() * self.scale + torch.tensor(self.center, dtype=torch.float64)


class PlaneData(Data):
    """Samples in the plane.

    Attributes:
        frame: frame of the samples in the coordinates of the user.
        modes: centers of the equally likely parts, or None.
    """

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return (2,)

    @property
    def frame(self) -> Frame:
        """Frame of the samples; the unit frame by default."""
        return Frame((0.0, 0.0), 1.0)

    @property
    def modes(self) -> Float[Tensor, "k 2"] | None:
        """Centers of the equally likely parts, or None."""
        return None

    def depict(self, drawing: Any) -> list[Path]:
        """Draw points."""
        return drawing.points(self.frame)

    def evaluate(self, evaluation: Any) -> dict[str, Any]:
        """Compare points."""
        return evaluation.points(self.modes)


@dataclass(frozen=True)
class Toy:
    """One toy distribution.

    Attributes:
        draw: (count, rng) -> `count` new points on the device of rng.
        modes: centers of the equally likely parts, or None for a connected distribution.
    """

    draw: Callable[[int, torch.Generator], Points]
    modes: Float[Tensor, "k 2"] | None = None


def toy(name: str) -> Toy:
    """Return a toy distribution by name; raises InputError with the nearest name if there is none."""
    if name not in TOYS:
        raise InputError(f"dataset is '{name}': did you mean '{nearest_name(name, TOYS)}'? There are {', '.join(TOYS)}")
    return TOYS[name]


def _uniform(count: int, rng: torch.Generator) -> Tensor:
    return torch.rand(count, generator=rng, device=rng.device)


def _choice(count: int, options: int, rng: torch.Generator) -> Tensor:
    return torch.randint(options, (count,), generator=rng, device=rng.device)


def _with_noise(x: Tensor, y: Tensor, scale: float, rng: torch.Generator) -> Points:
    points = torch.stack([x, y], 1)
    return points + scale * torch.randn(points.shape, generator=rng, device=rng.device)


def _moons(count: int, rng: torch.Generator) -> Points:
    angle = math.pi * _uniform(count, rng)
    lower = _choice(count, 2, rng)
    x = torch.where(lower == 1, 1 - angle.cos(), angle.cos())
    y = torch.where(lower == 1, 0.5 - angle.sin(), angle.sin())
    return _with_noise((x - 0.5) / 1.25, (y - 0.25) / 1.25, 0.05, rng)


def _swiss_roll(count: int, rng: torch.Generator) -> Points:
    angle = math.pi / 2 + 4 * math.pi * _uniform(count, rng)
    return _with_noise(angle * angle.cos() / (4.5 * math.pi), angle * angle.sin() / (4.5 * math.pi), 0.03, rng)


def _checker(count: int, rng: torch.Generator) -> Points:
    corners = _CHECKER_CENTERS.to(rng.device)[_choice(count, len(_CHECKER_CENTERS), rng)] - 0.25
    x, y = corners.unbind(1)
    return _with_noise(x + 0.5 * _uniform(count, rng), y + 0.5 * _uniform(count, rng), 0.05, rng)


def _circles(count: int, rng: torch.Generator) -> Points:
    angle = 2 * math.pi * _uniform(count, rng)
    radius = torch.where(_choice(count, 2, rng) == 1, 1.0, 0.5)
    return _with_noise(radius * angle.cos(), radius * angle.sin(), 0.04, rng)


def _spirals(count: int, rng: torch.Generator) -> Points:
    turn = _uniform(count, rng).sqrt()
    angle = 3 * math.pi * turn + math.pi * _choice(count, 2, rng)
    return _with_noise(turn * angle.cos(), turn * angle.sin(), 0.02, rng)


def _eight_gaussians(count: int, rng: torch.Generator) -> Points:
    x, y = _EIGHT_CENTERS.to(rng.device)[_choice(count, len(_EIGHT_CENTERS), rng)].unbind(1)
    return _with_noise(x, y, 0.1, rng)


def _gaussian_grid(count: int, rng: torch.Generator) -> Points:
    x, y = _GRID_CENTERS.to(rng.device)[_choice(count, len(_GRID_CENTERS), rng)].unbind(1)
    return _with_noise(x, y, 0.04, rng)


def _pinwheel(count: int, rng: torch.Generator) -> Points:
    radial, tangential = torch.randn(2, count, generator=rng, device=rng.device)
    x, y = 0.7 + 0.18 * radial, 0.06 * tangential
    angle = 2 * math.pi / 5 * _choice(count, 5, rng) + 1.4 * (x - 0.7) / 0.7
    return torch.stack([x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()], 1)


_CHECKER_CENTERS = torch.tensor(
    [(-0.75 + 0.5 * column, -0.75 + 0.5 * row) for row in range(4) for column in range(4) if (row + column) % 2 == 0]
)
_EIGHT_CENTERS = torch.tensor([(math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)) for k in range(8)])
_GRID_CENTERS = torch.tensor([(-1 + 0.5 * column, -1 + 0.5 * row) for row in range(5) for column in range(5)])

TOYS = {
    "moons": Toy(_moons),
    "swiss_roll": Toy(_swiss_roll),
    "checker": Toy(_checker, _CHECKER_CENTERS),
    "circles": Toy(_circles),
    "spirals": Toy(_spirals),
    "eight_gaussians": Toy(_eight_gaussians, _EIGHT_CENTERS),
    "pinwheel": Toy(_pinwheel),
    "gaussian_grid": Toy(_gaussian_grid, _GRID_CENTERS),
}


@dataclass(frozen=True, kw_only=True)
class ToyData(PlaneData):
    """A distribution in the plane, see `toy`."""

    dataset: str

    @property
    def title(self) -> str:
        """Name of the distribution."""
        return self.dataset

    @property
    def modes(self) -> Float[Tensor, "k 2"] | None:
        """Centers of equally likely parts."""
        return toy(self.dataset).modes

    def source(self, seed: int, bank: Any = None, **options: Any) -> StreamSource:
        """Return a source of new samples of the distribution."""
        return StreamSource(toy(self.dataset).draw, (2,))


def load_points(path: Path) -> Points:
    """Return points in float64 from a .npy file or a text table (.csv, .tsv, .txt) with or without a header.

    Raises:
        InputError: unless the file holds a finite numeric array [n, 2] or, as text, two numbers per line or the columns x and y.
    """
    path, kinds = Path(path).expanduser(), ".npy or .csv file"
    check_exists(path, f"pass the path of a {kinds}")
    if not path.is_file():  # a named pipe would be waited for
        raise InputError(f"data is '{path}', which is not a regular file: pass the path of a {kinds}")
    array = _text_array(path) if path.suffix.lower() in _TEXTS else _npy_array(path)
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "iuf":
        raise InputError(f"data is '{path}', an array of {array.dtype}, shape {np.shape(array)}: pass real numbers of shape [n, 2]")
    if len(array) < 2:
        raise InputError(f"data is '{path}', which holds {len(array)} points: pass at least 2")
    with np.errstate(over="ignore"):  # numbers in extended precision can overflow
        array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise InputError(f"data is '{path}', which holds NaN or infinite values: remove those points")
    return torch.from_numpy(array)


def _npy_array(path: Path) -> np.ndarray:
    try:
        # Mapped, because numpy.load allocates the memory that the header declares before it checks the size of the file.
        array = np.array(np.load(path, allow_pickle=False, mmap_mode="r"))
    except MemoryError:
        raise
    except Exception as error:  # the header is parsed as Python, so a damaged one can raise nearly anything
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"data is '{path}', which cannot be read as .npy ({reason}): save it with numpy.save") from None
    return array


def _text_array(path: Path) -> Float[np.ndarray, "n 2"]:
    """Return the two columns of a table whose lines are split at tabs, semicolons, commas or else spaces."""
    check_memory(_BYTES_PER_CHARACTER * path.stat().st_size, f"data is '{path}', whose numbers", "keep fewer points")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"data is '{path}', which cannot be read as text ({reason(error)}): save it as UTF-8") from None
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    lines = [(number, line) for number, line in lines if line and not line.startswith("#")]
    separator = next((mark for mark in "\t;," if lines and mark in lines[0][1]), None)
    rows = [(number, [word.strip().strip("\"'") for word in line.split(separator)]) for number, line in lines]
    header = rows.pop(0)[1] if rows and not any(map(_is_number, rows[0][1])) else []
    width = len(header or rows[0][1]) if rows else 2
    names = [name.lower() for name in header]
    named = names.count("x") == names.count("y") == 1
    if width != 2 and not named:
        columns = f"columns {', '.join(header)}"[:100] if header else f"{width} columns"
        raise InputError(f"data is '{path}', a table of {columns}: keep two columns, or name two of them x and y in a header")
    places = [names.index("x"), names.index("y")] if named else [0, 1]
    return np.array([_numbers(path, number, words, places, width) for number, words in rows], np.float64).reshape(-1, 2)


def _numbers(path: Path, number: int, words: list[str], places: list[int], width: int) -> list[float]:
    if len(words) != width:
        raise InputError(f"data is '{path}', whose line {number} has {len(words)} columns where others have {width}: fix that line")
    wrong = next((words[place] for place in places if not _is_number(words[place])), None)
    if wrong is not None:
        raise InputError(f"data is '{path}', whose line {number} holds '{wrong[:40]}', which is not a number: write it like 1.5")
    return [float(words[place]) for place in places]


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def frame_of(points: Points, origin: str) -> Frame:
    """Return the frame in which points have mean 0 and a root mean square coordinate of 0.5, like the toys."""
    if bool((points == points[0]).all()):
        raise InputError(f"data is '{origin}', which holds one point many times: pass points that differ")
    # Relative to the first point and the farthest other point, because sums and squares of the coordinates could overflow.
    offsets = points - points[0]
    size = offsets.abs().max()
    relative = offsets / size
    middle = relative.mean(0)
    scale = 2 * float((relative - middle).square().mean().sqrt()) * float(size)
    center = (points[0] + middle * size).tolist()
    if not _LEAST_SCALE < scale < _MOST_SCALE:
        what = f"points are {scale / 2:g} apart" if math.isfinite(scale) else "values are too large"
        raise InputError(f"data is '{origin}', whose {what}: choose another unit for them")
    return Frame((center[0], center[1]), scale)


@dataclass(frozen=True, kw_only=True)
class PointsData(PlaneData):
    """A user's own points.

    Attributes:
        path: file of the points.
        center, scale: frame of the points, found when the file is first read and saved with the run.
        count, fingerprint: number and checksum of the points, found in the same way and checked whenever the file is read again.
            Runs of earlier versions have neither.
    """

    path: str
    center: tuple[float, float] | None = found()
    scale: float | None = found()
    count: int | None = found()
    fingerprint: str | None = found()

    @property
    def frame(self) -> Frame:
        """Frame of the points, known after `find`."""
        if self.center is None or self.scale is None:
            raise InputError(f"data is '{self.path}', whose center and scale are not known yet: resolve the configuration first")
        return Frame(self.center, self.scale)

    @property
    def title(self) -> str:
        """Name of the file."""
        return Path(self.path).stem

    def find(self, *, labeled: bool = False) -> "PointsData":
        """Return the data with frame, count and fingerprint."""
        if self.scale is not None:
            return self
        points = load_points(Path(self.path))
        center, scale = frame_of(points, self.path)
        return replace(
            self,
            path=str(Path(self.path).expanduser().resolve()),
            center=center,
            scale=scale,
            count=len(points),
            fingerprint=_fingerprint(points),
        )

    def load(self) -> Points:
        """Return the points in float64, or raise InputError if they have changed since the run began."""
        points = load_points(Path(self.path))
        if self.fingerprint not in (None, _fingerprint(points)):
            what = "whose points are not those that the run began with, though they are as many"
            if len(points) != self.count:
                what = f"which holds {len(points)} points where the run began with {self.count}"
            raise InputError(f"data is '{self.path}', {what}: bring those back, or train anew")
        return points

    def check(self) -> None:
        """Raise InputError if the points have changed since the run began."""
        self.load()

    def source(self, seed: int, bank: Any = None, **options: Any) -> InMemorySource:
        """Return the standardized points."""
        return InMemorySource(self.frame.standardize(self.load()))

    def report(self) -> list[str]:
        """Return the number of points, and a note if there are few."""
        if self.count is None:
            return []
        few = f"note: {self.count} points are few, and samples will be copies of them: bring more"
        return [f"{self.count} points", *([few] if self.count < _FEW_POINTS else [])]

    def exporter(self) -> Callable[[Tensor], Tensor]:
        """Return the function from samples to points in the coordinates of the user."""
        return self.frame.restore


def _fingerprint(points: Points) -> str:
    return hashlib.sha256(points.contiguous().numpy().data).hexdigest()[:16]
