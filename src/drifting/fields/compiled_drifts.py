"""The mean shift by compiled loops on a CPU (`loops`), for samples in float32.

Numba (the extra `fast`) compiles the loops when they are first called, and caches them on disk: beside their source, or where
NUMBA_CACHE_DIR says, or in the user's cache folder where the source cannot be written. Where numba is missing, or with
DRIFTING_COMPILED=0 in the environment, torch does the work.

Results do not depend on the number of threads: one thread computes each unit of work, and sums over units have a fixed order.

Shapes: t temperatures, g groups, n generated, k targets, d coordinates.
"""

import functools
import importlib.util
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from drifting.fields.balance import balanced
from drifting.fields.base import Problem
from drifting.fields.mean_shift import MeanShift
from drifting.fields.pairwise import Memory, kernel_scale

# Rows of a block: groups of at most so many are computed at once, larger ones in blocks that share the packing of a product.
_WHOLE, _BLOCK = 256, 128
# Work on the rows of one group is split into at most so many units, whose column sums are kept apart.
_LANES = 16
# Distances of up to so many pairs are stored (256 MiB); more are computed again in each of three passes.
_STORED_PAIRS = 2**26
_HIGHEST_POWER = 32


class _Loops(NamedTuple):
    """The modules of compiled loops."""

    vectors: Any
    simd: Any
    products: Any
    distances: Any
    affinities: Any


@functools.cache
def _loops() -> _Loops | None:
    """Return the compiled loops, or None where numba is missing."""
    if os.environ.get("DRIFTING_COMPILED") == "0" or importlib.util.find_spec("numba") is None:
        return None
    from drifting.fields.loops import affinities, distances, products, simd, vectors

    return _Loops(vectors, simd, products, distances, affinities)


def is_available(samples: Tensor) -> bool:
    """Return whether this backend computes the field of such samples."""
    return samples.device.type == "cpu" and samples.dtype == torch.float32 and _loops() is not None


def must_compile() -> bool:
    """Return whether numba will compile the loops at their first call, which takes about 20 seconds."""
    loops = _loops()
    return loops is not None and not loops.vectors.is_cached(loops.affinities.combine)


class CompiledDrifts:
    """The mean shift of one call at every temperature, before the temperatures are added up; see `Drifts`."""

    def __init__(self, problem: Problem, field: MeanShift, *, smallest: float = 0.0, memory: Memory | None = None) -> None:
        """Compute the distances. `open_drifts` has the arguments. With a repulsion other than 1, samples are masked negatives."""
        generated, empty = problem.generated, problem.generated[:, :0]
        first, *second = problem.negatives
        parts = [part.contiguous() for part in (first, *(second or [empty]), problem.positives)]
        self._memory, self._threads = memory or Memory(), torch.get_num_threads()
        loops = _loops()
        assert loops is not None, "ask is_available first"
        self._loops, self._field, self._smallest, self._order = loops, field, smallest, []
        self._numpy = loops.vectors.np  # the core itself imports torch alone
        self._like, self._weights, self._groups = generated, problem.weights, generated.shape[0]
        fixed = torch.full((self._groups,), field.repulsion)
        self._repulsion = (balanced(field, problem.positives, first, generated) if field.balance else fixed).numpy()
        self._sizes = sizes = self._cut(generated, parts, problem.num_self)
        self._arrays = self._allocate(generated.contiguous(), parts)
        if sizes.kept:
            self._run(self._loops.distances.center_groups, self._arrays, units=self._groups)
        sums = self._numpy.empty(self._groups * sizes.lanes)
        self._run(self._loops.distances.measure, self._arrays, sums)
        self._sum = float(sums.sum())
        self._moved = None

    def _cut(self, generated: Tensor, parts: Sequence[Tensor], num_self: int) -> Any:
        groups, rows, width = generated.shape
        first, second, third = (part.shape[1] for part in parts)
        negatives = self._loops.simd.padded(first + second)
        columns = negatives + self._loops.simd.padded(third)
        block = rows if rows <= _WHOLE else _BLOCK
        lanes = min(_LANES, -(-rows // block))
        kept, stored = int(lanes > 1), int(groups * rows * columns <= _STORED_PAIRS)
        return self._loops.distances.Sizes(
            rows=rows,
            negatives=negatives,
            columns=columns,
            targets=first + second + third,
            width=width,
            stride=width if width <= self._loops.distances.DIRECT_DIMENSIONS else self._loops.simd.padded(width),
            own=int(num_self > 0),
            kept=kept,
            stored=stored,
            block=block,
            lanes=lanes,
            smallest=self._numpy.float32(self._smallest),
        )

    def _allocate(self, generated: Tensor, parts: Sequence[Tensor]) -> Any:
        sizes, groups = self._sizes, self._groups
        slots = groups if sizes.kept else self._threads
        layout = (parts[0].shape[1] + parts[1].shape[1], parts[2].shape[1], sizes.negatives, sizes.columns)
        matrices = (groups, sizes.rows) if sizes.stored else (self._threads, sizes.block)
        panel, is_direct = self._loops.products.PANEL, sizes.width <= self._loops.distances.DIRECT_DIMENSIONS
        return self._loops.distances.Arrays(
            *(samples.detach().numpy() for samples in (generated, *parts)),
            weights=_ones(layout) if self._weights is None else _filled(self._weights, 0.0, layout).numpy(),
            filling=_filling(layout),
            center=self._new("center", groups, sizes.width),
            y=self._new("y", slots, sizes.columns * sizes.stride),
            packed=self._new("packed", slots, 1 if is_direct else -(-sizes.columns // panel) * panel * sizes.stride),
            x=self._new("x", slots, 1 if sizes.own else sizes.rows * sizes.stride),
            norms=self._new("norms", slots, sizes.rows + sizes.columns),
            distances=self._new("distances", *matrices, sizes.columns),
            nearest=self._new("nearest", groups, sizes.rows),
            column_nearest=self._new("column nearest", groups * sizes.lanes, sizes.columns),
            scratch=self._new("scratch", 1, 1, 1),
            panel=self._new("panel", self._threads, self._loops.products.DEPTH, panel),
        )

    def mean_distance(self) -> Float[Tensor, ""]:
        """Return the mean of distance * weight over all pairs, those of a sample with itself included."""
        return torch.tensor(self._sum / (self._groups * self._sizes.rows * self._sizes.targets))

    def root_mean_squares(self, temperatures: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
        """Compute the drifts at these temperatures; return the root mean square of each over groups, samples and coordinates."""
        sizes, count = self._sizes, len(temperatures)
        rows = 1 if sizes.width <= self._loops.distances.DIRECT_DIMENSIONS else count * sizes.block
        reserved = self._loops.affinities.RESERVED + count
        arrays = self._arrays._replace(scratch=self._new("scratch", self._threads, reserved + rows, sizes.columns))
        kernel = self._kernel(temperatures)
        self._run(self._loops.affinities.add_up, arrays, kernel)
        self._run(self._loops.affinities.move, arrays, kernel)
        self._moved = kernel.moved
        squares = kernel.squares.sum(0)
        sizes_of_drifts = [0.0] * count
        for index, place in enumerate(self._order):
            sizes_of_drifts[place] = math.sqrt(squares[index] / self._like.numel())
        return torch.tensor(sizes_of_drifts)

    def total(self, factors: Float[Tensor, " t"]) -> Float[Tensor, "g n d"]:
        """Return the sum of the drifts of the last call of `root_mean_squares`, each times a factor."""
        total = torch.empty(self._like.shape)
        listed = factors.tolist()
        self._run(self._loops.affinities.combine, self._moved, self._array([listed[place] for place in self._order]), total.numpy())
        return total

    def _kernel(self, temperatures: Float[Tensor, " t"]) -> Any:
        """Return the kernel at all temperatures, the highest first, before any sum."""
        sizes, groups, count = self._sizes, self._groups, len(temperatures)
        scales = (-kernel_scale(temperatures)).tolist()
        self._order = sorted(range(count), key=lambda index: scales[index])
        scales = [scales[index] for index in self._order]
        powers = [_whole(scale / (scales[0] or math.nan)) for scale in scales]  # infinitely far samples have scale 0
        return self._loops.affinities.Kernel(
            scale=self._array(scales),
            power=self._numpy.array(powers),
            bound=self._array([math.exp(self._loops.simd.UNDERFLOW.item() / max(1, power)) for power in powers]),
            row=self._new("row", groups, count, sizes.rows),
            column=self._new("column", groups * sizes.lanes * count, sizes.columns),
            floor=self._numpy.float32(math.sqrt(self._field.affinity_floor)),
            repulsion=self._repulsion,
            moved=self._new("moved", groups, count * sizes.rows * sizes.stride),
            squares=self._numpy.empty((groups * sizes.lanes, count)),
        )

    def _array(self, values: Sequence[float]) -> Any:
        """Return float32 as an array of the loops."""
        return self._numpy.array(values, self._numpy.float32)

    def _new(self, name: str, *shape: int) -> Any:
        """Return an uninitialized array, in memory that is kept between calls."""
        kept, key, size = self._memory.kept, f"compiled {name}", math.prod(shape)
        if key not in kept or kept[key].size < size:
            kept[key] = self._numpy.empty(size, self._numpy.float32)
        return kept[key][:size].reshape(shape)

    def _run(self, loop: Callable[..., None], *arguments: Any, units: int | None = None) -> None:
        """Run a loop over all units, or over that many groups, each thread some of them."""
        count = units or self._groups * self._sizes.lanes
        threads = min(self._threads, count)
        bounds = [count * index // threads for index in range(threads + 1)]
        parts = [(self._sizes, *arguments, bounds[thread], bounds[thread + 1], thread) for thread in range(threads)]
        if threads == 1:
            loop(*parts[0])
            return
        others = [_workers(os.getpid(), threads - 1).submit(loop, *part) for part in parts[1:]]
        loop(*parts[0])
        for other in others:
            other.result()


@functools.lru_cache(maxsize=1)
def _workers(process: int, count: int) -> ThreadPoolExecutor:
    """Return the threads of a process that work beside the calling one; a forked process has none of its parent's."""
    del process
    return ThreadPoolExecutor(count, thread_name_prefix="drifting-field")


def _whole(ratio: float) -> int:
    """Return a ratio that is a whole number of at most `_HIGHEST_POWER`, up to rounding in float32, or 0."""
    # NaN compares as false, and has no whole part.
    power = round(ratio) if ratio <= _HIGHEST_POWER else 0
    return power if abs(ratio - power) <= 1e-6 * ratio else 0


def _filled(values: Float[Tensor, "r k"], filling: float, layout: tuple[int, int, int, int]) -> Float[Tensor, "r c"]:
    """Return one value per column, from those of the targets.

    Args:
        values: one value per target.
        filling: the value of columns that fill vectors up.
        layout: numbers of negatives and positives, then of the columns of negatives and of all columns.
    """
    negatives, positives, split, columns = layout
    filled = torch.full((len(values), columns), filling)
    filled[:, :negatives] = values[:, :negatives]
    filled[:, split : split + positives] = values[:, negatives:]
    return filled


@functools.lru_cache(maxsize=32)
def _ones(layout: tuple[int, int, int, int]) -> Any:
    return _filled(torch.ones(1, sum(layout[:2])), 0.0, layout).numpy()


@functools.lru_cache(maxsize=32)
def _filling(layout: tuple[int, int, int, int]) -> Any:
    return _filled(torch.zeros(1, sum(layout[:2])), math.inf, layout).numpy()
