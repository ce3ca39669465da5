"""Compute a mean shift by Triton kernels on a GPU (`triton_kernels`, `triton_tiles`).

GPU builds of torch contain Triton, which compiles a kernel when it is first called, and caches the result on disk. Where Triton is
missing, where its kernels do not give what torch gives, or with DRIFTING_COMPILED=0 in the environment, torch does the work.

Small groups stay on the chip: one program computes the distances of a group, in each of two passes. The first, for the scale, reads
the features of the targets, then those of rows and targets. The second reads those of rows and targets, and those of the targets
again at each temperature; it writes one drift per temperature, and these are then added up. What a program reads again may still be
in the cache of the device, so that a pass reads the features from memory once.

Larger groups are cut into tiles of rows and targets, whose distances are computed in four passes: for the scale, for the sums over
rows, for those over columns, and for the drift. Memory is linear in the numbers of samples, and rows can be split over processes.

Shapes: t temperatures, g groups, n generated, k targets, d coordinates.
"""

import functools
import importlib.util
import math
import os
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from drifting._checks import constant
from drifting.fields.base import Problem
from drifting.fields.diagnostics import KernelStatistics, spread_of_rows
from drifting.fields.mean_shift import MeanShift
from drifting.fields.pairwise import DIRECT_DIMENSIONS

_DEVICES = ("cuda",)
# Rows and targets of a small group at most, its pairs with the padding, and the targets of a tile. More pairs do not fit into the
# registers of a program, and more tiles take long to compile.
_ROWS, _COLUMNS, _PAIRS, _TILE = 64, 256, 12288, 32
# Rows, targets and coordinates of tiles of larger groups; half the rows if there would be too few programs for a device.
_TILES, _FEATURES, _PROGRAMS = (64, 64), 16, 256
# Warps of a program with up to 32 rows, or more.
_WARPS = (4, 8)
# The second axis of a grid is limited.
_GROUPS = 2**16 - 1
_SUM_BLOCK = 1024
# Largest difference from torch, relative to the largest drift.
_TOLERANCE = 1e-3


class _Kernels(NamedTuple):
    """The modules of kernels."""

    groups: Any
    tiles: Any


@functools.cache
def _kernels() -> _Kernels | None:
    """Return the kernels, or None where Triton is missing or switched off."""
    if os.environ.get("DRIFTING_COMPILED") == "0" or importlib.util.find_spec("triton") is None:
        return None
    from drifting.fields import triton_kernels, triton_tiles

    return _Kernels(triton_kernels, triton_tiles)


def fits_the_chip(rows: int, columns: int) -> bool:
    """Return whether one program holds all pairs of a group."""
    return rows <= _ROWS and columns <= _COLUMNS and _power_of_two(rows) * _whole(columns, _TILE) * _TILE <= _PAIRS


def is_available(problem: Problem) -> bool:
    """Return whether the kernels compute the mean shift of a problem."""
    samples = [problem.generated, *problem.negatives, problem.positives]
    device, kinds = problem.generated.device.type, {part.dtype for part in samples}
    if device not in _DEVICES or len(kinds) > 1 or not kinds <= {torch.float32, torch.bfloat16}:
        return False
    groups, rows, _ = problem.generated.shape
    fits = len(problem.negatives) <= 2 and problem.num_self in (0, rows) and groups <= _GROUPS
    return fits and _agree(problem.generated.device)


@functools.cache
def _agree(device: torch.device) -> bool:
    """Return whether the kernels give what torch gives on a device; warn if they do not.

    They are compiled on the user's machine by the release of Triton that came with torch, so that this is asked before their first
    use in a process.
    """
    if _kernels() is None:
        return False
    try:
        worst = max(_error(rows, width, device) for rows in (5, _ROWS + 1) for width in (3, 20))
    except Exception as error:  # of any kind: a compiler raises it
        reason = f"{type(error).__name__}: {str(error)[:200]}"
    else:
        if worst < _TOLERANCE:
            return True
        reason = f"drifts differ from those of torch by {worst:.1e} of their size"
    warnings.warn(f"Triton kernels are not used on {device}, torch does the work ({reason})", RuntimeWarning, stacklevel=3)
    return False


def _error(rows: int, width: int, device: torch.device) -> float:
    """Return the largest difference between the drifts of the kernels and of torch in a small problem, relative to the largest."""
    generator = torch.Generator(device).manual_seed(0)
    generated, positives = (torch.randn(2, count, width, generator=generator, device=device) for count in (rows, rows + 3))
    temperatures = torch.tensor([0.3, 1.0], device=device)
    drifts = TritonDrifts(Problem(generated, [generated], positives, None, rows), floor=1e-6)
    drifts.mean_distance()
    drifts.root_mean_squares(temperatures)
    found = drifts.total(torch.ones_like(temperatures))
    expected = MeanShift(1e-6)(generated, positives, generated, temperatures=temperatures, num_self=rows).sum(0)
    return float((found - expected).abs().max() / expected.abs().max())


class TritonDrifts:
    """The mean shift of one call at every temperature, before the temperatures are added up; see `Drifts`."""

    @constant
    def __init__(self, problem: Problem, *, floor: float, smallest: float = 0.0) -> None:
        """Prepare the samples, without computing anything yet.

        Args:
            problem: the samples; ask `is_available` first.
            floor: lower bound of the squared affinity.
            smallest: lower bound of distances.
        """
        kernels = _kernels()
        assert kernels is not None, "ask is_available first"
        self._kernels, self._problem = kernels, problem
        generated = problem.generated
        groups, rows, width = generated.shape
        first, *second = (part.detach().contiguous() for part in problem.negatives)
        positives, weights = problem.positives.detach().contiguous(), problem.weights
        negatives = sum(part.shape[1] for part in problem.negatives)
        columns = negatives + positives.shape[1]
        self._samples = kernels.groups.Samples(
            generated=generated.detach().contiguous(),
            first=first,
            second=second[0] if second else first,
            positives=positives,
            weights=first if weights is None else weights.detach().float().contiguous(),
            center=self._new(groups, width),
            rows=rows,
            count=first.shape[1],
            negatives=negatives,
            columns=columns,
            width=width,
            shift=0 if problem.peers is None else problem.peers.rank * rows,
            smallest=float(smallest),
            floor=math.sqrt(floor),
        )
        self._small = problem.peers is None and fits_the_chip(rows, columns)
        self._cut = self._choose_cut()
        self._centered = False
        self._drifts = self._samples.center[None, :, None]

    def _choose_cut(self) -> Any:
        samples, groups = self._samples, len(self._samples.generated)
        rows, columns = _TILES
        if self._small:
            rows, columns = _power_of_two(samples.rows), _TILE
        elif groups * _whole(samples.rows, rows) < _PROGRAMS:
            rows //= 2
        return self._kernels.groups.Cut(
            rows=rows,
            columns=columns,
            features=_FEATURES,
            tiles=tuple(_cut_columns(samples.columns)) if self._small else (),
            temperatures=1,
            padded=1,
            own=self._problem.num_self > 0,
            weighted=self._problem.weights is not None,
            direct=samples.width <= DIRECT_DIMENSIONS,
            precision="ieee",
        )

    def _new(self, *shape: int) -> Tensor:
        return self._problem.generated.new_empty(shape, dtype=torch.float32)

    def mean_distance(self) -> Float[Tensor, ""]:
        """Return the mean of distance * weight over all pairs, those of a sample with itself included."""
        samples, groups = self._samples, len(self._samples.generated)
        if self._small:
            sums = self._new(groups)
            self._launch(self._kernels.groups.measure_groups, (groups,), samples, sums, CUT=self._cut)
            self._centered = True
        else:
            self._find_center()
            sums = self._new(groups, _whole(samples.rows, self._cut.rows))
            self._launch(self._kernels.tiles.measure_tiles, sums.shape[::-1], samples, sums, CUT=self._cut)
        return (sums.sum(dtype=torch.float64) / (groups * samples.rows * samples.columns)).float()

    def root_mean_squares(self, temperatures: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
        """Compute the drifts at these temperatures; return the root mean square of each over groups, samples and coordinates."""
        temperatures = self._prepare(temperatures)
        squares = self._move_groups(temperatures) if self._small else self._move_tiles(temperatures)
        return (squares.sum(1, dtype=torch.float64) / self._problem.generated.numel()).sqrt().float()

    def total(self, factors: Float[Tensor, " t"]) -> Float[Tensor, "g n d"]:
        """Return the sum of the drifts of the last call of `root_mean_squares`, each times a factor."""
        total = self._new(*self._drifts.shape[1:])
        size, factors = total.numel(), factors.detach().float().contiguous()
        grid = (_whole(size, _SUM_BLOCK),)
        self._launch(self._kernels.groups.combine, grid, self._drifts, factors, total, size, COUNT=len(factors), BLOCK=_SUM_BLOCK)
        return total

    @constant
    def statistics(self, temperatures: Float[Tensor, " t"]) -> KernelStatistics:
        """Return how the kernel spreads, see `diagnostics.KernelStatistics`."""
        temperatures = self._prepare(temperatures)
        groups, rows, _ = self._samples.generated.shape
        sums, grid = self._new(2, 3, len(temperatures), groups, rows), (_whole(rows, self._cut.rows), groups, 2)
        self._launch(self._kernels.tiles.spread_tiles, grid, self._samples, self._kernel(temperatures), sums, CUT=self._cut)
        highest, total, squares = sums.unbind(1)
        negative, positive = total.square() / squares.clamp(min=1)
        mass = highest * total
        share = mass[1] / mass.sum(0).clamp(min=torch.finfo(mass.dtype).tiny)
        spread = spread_of_rows(positive, negative, share, count=self._problem.positives.shape[1])
        return KernelStatistics(*(values.mean((1, 2)) for values in spread))

    def _prepare(self, temperatures: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
        """Find the center, and cut the problem for these temperatures."""
        self._find_center()
        self._cut = self._cut._replace(temperatures=len(temperatures), padded=_power_of_two(len(temperatures), 1))
        return temperatures.detach().float().contiguous()

    def _find_center(self) -> None:
        if not self._centered:
            groups, width = self._samples.center.shape
            self._launch(
                self._kernels.groups.center_targets, (groups, _whole(width, self._cut.features)), self._samples, CUT=self._cut
            )
            self._centered = True

    def _move_groups(self, temperatures: Float[Tensor, " t"]) -> Float[Tensor, "t g"]:
        count, groups = len(temperatures), len(self._samples.generated)
        self._drifts, squares = self._new(count, *self._samples.generated.shape), self._new(count, groups)
        self._launch(self._kernels.groups.move_groups, (groups,), self._samples, temperatures, self._drifts, squares, CUT=self._cut)
        return squares

    def _move_tiles(self, temperatures: Float[Tensor, " t"]) -> Float[Tensor, "t _"]:
        samples, cut, count = self._samples, self._cut, len(temperatures)
        groups, rows, width = samples.generated.shape
        kernel = self._kernel(temperatures)
        sides, masses = self._new(2, count, groups, rows, width), self._new(2, count, groups, rows)
        tiles = _whole(rows, cut.rows)
        self._launch(self._kernels.tiles.move_tiles, (tiles, groups, 2), samples, kernel, sides, masses, CUT=cut)
        squares = self._new(count, groups, tiles)
        self._launch(self._kernels.tiles.join_sides, (tiles, groups, count), samples, sides, masses, squares, CUT=cut)
        self._drifts = sides[0]
        return squares.flatten(1)

    def _kernel(self, temperatures: Float[Tensor, " t"]) -> Any:
        """Return the normalizers of rows and columns over all processes."""
        row = self._add_up(temperatures, 1)
        column = self._over_peers(self._add_up(temperatures, 0), temperatures)
        return self._kernels.groups.Kernel(temperatures, *row, *column)

    def _add_up(self, temperatures: Float[Tensor, " t"], axis: int) -> tuple[Float[Tensor, "g _"], Float[Tensor, "g t _"]]:
        """Return the nearest distance and the sum of every row (axis 1) or column (axis 0) relative to it."""
        samples, cut, groups = self._samples, self._cut, len(self._samples.generated)
        count, size = (samples.rows, cut.rows) if axis == 1 else (samples.columns, cut.columns)
        nearest, sums = self._new(groups, count), self._new(groups, len(temperatures), count)
        grid = (_whole(count, size), groups)
        self._launch(self._kernels.tiles.add_up_tiles, grid, samples, temperatures, nearest, sums, AXIS=axis, CUT=cut)
        return nearest, sums

    def _over_peers(self, column: tuple[Tensor, Tensor], temperatures: Float[Tensor, " t"]) -> tuple[Tensor, Tensor]:
        """Return the nearest distance and the sum of every column over the rows of all processes."""
        peers, (nearest, sums) = self._problem.peers, column
        if peers is None:
            return column
        lowest = peers.all_reduce_min(nearest.clone())
        gaps = lowest.masked_fill(lowest == torch.inf, 0) - nearest
        return lowest, peers.all_reduce_sum(sums * torch.exp(gaps[:, None] / temperatures[:, None]))

    def _launch(self, kernel: Any, grid: Sequence[int], *arguments: Any, **constants: Any) -> None:
        with torch.cuda.device_of(self._samples.generated):  # Triton launches on the current device
            kernel[tuple(grid)](*arguments, **constants, num_warps=_WARPS[self._cut.rows > _TILE])


def _whole(count: int, size: int) -> int:
    """Return how many pieces of a size hold a count."""
    return -(-count // size)


def _power_of_two(count: int, least: int = 16) -> int:
    """Return the smallest power of two that is not below a count."""
    return max(least, 1 << (count - 1).bit_length())


def _cut_columns(columns: int) -> list[tuple[int, int]]:
    """Return the first target and the size of each tile of a small group. The last may be smaller than the others."""
    whole, rest = divmod(columns, _TILE)
    last = [(whole * _TILE, _power_of_two(rest))] if rest else []
    return [(index * _TILE, _TILE) for index in range(whole)] + last
