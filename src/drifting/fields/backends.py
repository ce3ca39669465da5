"""What computes a mean shift: compiled loops on a CPU, Triton kernels on a GPU, or torch. `open_drifts` selects one for a problem.

The compiled loops (`loops`) are an optional backend, the extra `fast`, for samples in float32. Numba compiles them when they are
first called, and caches them on disk: beside their source, or where NUMBA_CACHE_DIR says, or in the user's cache folder where the
source cannot be written. Matrix products are those of the library that torch itself contains (oneMKL), called from within the
loops. Where numba or these products are missing, or with DRIFTING_COMPILED=0 in the environment, torch does the work. The kernels
of a GPU have a file of their own, `triton_drifts`.

Results do not depend on the number of threads: one thread computes each unit of work, and sums over units have a fixed order.

Shapes: t temperatures, g groups, n generated, k targets, d coordinates.
"""

import ctypes
import functools
import importlib.util
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from drifting._checks import constant
from drifting.fields import triton_drifts
from drifting.fields.base import Drifts, Field, Problem
from drifting.fields.mean_shift import MeanShift
from drifting.fields.pairwise import Memory, kernel_scale, pairwise_distances

# Rows of a block: groups of at most so many are computed at once, larger ones in blocks that share the packing of a product.
_WHOLE, _BLOCK = 256, 128
# Work on the rows of one group is split into at most so many units, whose column sums are kept apart.
_LANES = 16
# Distances of up to so many pairs are stored (256 MiB); more are computed again in each of three passes.
_STORED_PAIRS = 2**26
_HIGHEST_POWER = 32


def open_drifts(field: Field, problem: Problem, *, smallest: float, memory: Memory | None = None) -> Drifts:
    """Return the drifts of a problem by the fastest backend that computes this field.

    Args:
        field: the field. A subclass of `MeanShift` is another field.
        problem: the samples.
        smallest: lower bound of distances.
        memory: memory for matrices, kept between calls.
    """
    if type(field) is MeanShift and problem.peers is None and len(problem.negatives) <= 2 and is_available(problem.generated):
        return CompiledDrifts(problem, floor=field.affinity_floor, smallest=smallest, memory=memory)
    if type(field) is MeanShift and triton_drifts.is_available(problem):
        return triton_drifts.TritonDrifts(problem, floor=field.affinity_floor, smallest=smallest)
    return FieldDrifts(field, problem, smallest=smallest, memory=memory)


class FieldDrifts:
    """The drifts of any field, by torch."""

    @constant
    def __init__(self, field: Field, problem: Problem, *, smallest: float, memory: Memory | None = None) -> None:
        """Compute the distances. `open_drifts` has the arguments."""
        self._field, self._problem = field, problem
        targets = torch.cat([*problem.negatives, problem.positives], 1)
        self._negatives = targets[:, : -problem.positives.shape[1]]
        self._distances = pairwise_distances(problem.generated, targets, memory=memory)
        if smallest > 0:
            self._distances.clamp_(min=smallest)
        self._drifts = self._distances

    def mean_distance(self) -> Float[Tensor, ""]:
        """Return the weighted mean of the distances, see `Drifts`."""
        weights = self._problem.weights
        return self._distances.mean() if weights is None else (self._distances.mean(1) * weights).mean()

    def root_mean_squares(self, temperatures: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
        """Call the field, see `Drifts`."""
        problem = self._problem
        options = {"temperatures": temperatures, "weights": problem.weights, "num_self": problem.num_self}
        options |= {} if problem.peers is None else {"peers": problem.peers}
        self._drifts = self._field(problem.generated, problem.positives, self._negatives, **options, distances=self._distances)
        # Reduce each row first: a tensor of squares would be as large as the drift.
        return torch.linalg.vector_norm(self._drifts, dim=3).square().mean((1, 2)).div(problem.generated.shape[2]).sqrt()

    def total(self, factors: Float[Tensor, " t"]) -> Float[Tensor, "g n d"]:
        """Add up what the field returned, see `Drifts`."""
        total = self._drifts[0] * factors[0]
        for value, factor in zip(self._drifts[1:], factors[1:], strict=True):
            total.addcmul_(value, factor)
        return total


class _Loops(NamedTuple):
    """The modules of compiled loops."""

    simd: Any
    distances: Any
    affinities: Any


@functools.cache
def _loops() -> _Loops | None:
    """Return the compiled loops, or None where numba or the matrix products of torch are missing."""
    if os.environ.get("DRIFTING_COMPILED") == "0" or products() is None or importlib.util.find_spec("numba") is None:
        return None
    from drifting.fields.loops import affinities, distances, simd

    return _Loops(simd, distances, affinities)


def products() -> dict[str, int] | None:
    """Return the addresses of torch's matrix product and of the number of its threads, or None if this build has others."""
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        found = {"drifting_sgemm": library.sgemm_, "drifting_blas_threads": library.MKL_Set_Num_Threads_Local}
    except (OSError, AttributeError):
        return None
    return {name: ctypes.cast(function, ctypes.c_void_p).value or 0 for name, function in found.items()}


def is_available(samples: Tensor) -> bool:
    """Return whether this backend computes the field of such samples."""
    return samples.device.type == "cpu" and samples.dtype == torch.float32 and _loops() is not None


class CompiledDrifts:
    """The mean shift of one call at every temperature, before the temperatures are added up; see `Drifts`."""

    def __init__(self, problem: Problem, *, floor: float, smallest: float = 0.0, memory: Memory | None = None) -> None:
        """Compute the distances. `open_drifts` has the arguments; `floor` is the lower bound of the squared affinity."""
        generated, empty = problem.generated, problem.generated[:, :0]
        first, *second = problem.negatives
        parts = [part.contiguous() for part in (first, *(second or [empty]), problem.positives)]
        self._memory, self._threads = memory or Memory(), torch.get_num_threads()
        loops = _loops()
        assert loops is not None, "ask is_available first"
        self._loops, self._floor, self._smallest = loops, math.sqrt(floor), smallest
        self._like, self._weights = generated, problem.weights
        self._sizes = sizes = self._cut(generated, parts, problem.num_self)
        self._arrays = self._allocate(generated.contiguous(), parts)
        if sizes.kept:
            self._run(self._loops.distances.center_groups, self._arrays, units=len(generated))
        sums = torch.empty(len(generated) * sizes.lanes, dtype=torch.float64)
        self._run(self._loops.distances.measure, self._arrays, sums.numpy())
        self._sum = sums.sum()
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
            own=int(num_self > 0),
            kept=kept,
            stored=stored,
            block=block,
            lanes=lanes,
            smallest=self._f(self._smallest),
        )

    def _allocate(self, generated: Tensor, parts: Sequence[Tensor]) -> Any:
        sizes, groups = self._sizes, len(generated)
        slots = groups if sizes.kept else self._threads
        matrices = (groups, sizes.rows) if sizes.stored else (self._threads, sizes.block)
        return self._loops.distances.Arrays(
            *(samples.detach().numpy() for samples in (generated, *parts)),
            weights=self._filled(self._weights, parts, 0.0),
            filling=self._filled(generated.new_zeros(1, sizes.targets), parts, math.inf),
            center=self._new("center", groups, sizes.width),
            y=self._new("y", slots, sizes.columns * sizes.width),
            x=self._new("x", slots, 1 if sizes.own else sizes.rows * sizes.width),
            norms=self._new("norms", slots, sizes.rows + sizes.columns),
            distances=self._new("distances", *matrices, sizes.columns),
            nearest=self._new("nearest", groups, sizes.rows),
            column_nearest=self._new("column nearest", groups * sizes.lanes, sizes.columns),
            scratch=self._new("scratch", 1, 1, 1),
            integers=torch.zeros(self._threads, 8, dtype=torch.int32).numpy(),
            floats=torch.zeros(self._threads, 2).numpy(),
        )

    def _filled(self, values: Tensor | None, parts: Sequence[Tensor], filling: float) -> Any:
        """Return one value per column, from those of the targets (ones by default) and one for filling columns."""
        sizes, negatives = self._sizes, parts[0].shape[1] + parts[1].shape[1]
        filled = torch.full((1 if values is None else len(values), sizes.columns), filling)
        filled[:, :negatives] = 1 if values is None else values[:, :negatives]
        filled[:, sizes.negatives : sizes.negatives + parts[2].shape[1]] = 1 if values is None else values[:, negatives:]
        return filled.numpy()

    def mean_distance(self) -> Float[Tensor, ""]:
        """Return the mean of distance * weight over all pairs, those of a sample with itself included."""
        return (self._sum / (len(self._like) * self._sizes.rows * self._sizes.targets)).float()

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
        squares = torch.from_numpy(kernel.squares).sum(0)[self._order.argsort()]
        return (squares / self._like.numel()).sqrt().float()

    def total(self, factors: Float[Tensor, " t"]) -> Float[Tensor, "g n d"]:
        """Return the sum of the drifts of the last call of `root_mean_squares`, each times a factor."""
        total = torch.empty(self._like.shape)
        self._run(self._loops.affinities.combine, self._moved, factors.float()[self._order].numpy(), total.numpy())
        return total

    def _kernel(self, temperatures: Float[Tensor, " t"]) -> Any:
        """Return the kernel at all temperatures, the highest first, before any sum."""
        sizes, groups, count = self._sizes, len(self._like), len(temperatures)
        self._order = temperatures.argsort(descending=True)
        scale = -kernel_scale(temperatures[self._order])
        ratio = scale / scale[0]
        power = ratio.round()
        simple = ((ratio - power).abs() <= 1e-6 * ratio) & (power <= _HIGHEST_POWER)
        return self._loops.affinities.Kernel(
            scale=scale.numpy(),
            power=torch.where(simple, power, 0).int().numpy(),
            bound=(self._loops.simd.UNDERFLOW.item() / power.double()).exp().float().numpy(),
            row=self._new("row", groups, count, sizes.rows),
            column=self._new("column", groups * sizes.lanes * count, sizes.columns),
            floor=self._f(self._floor),
            moved=self._new("moved", groups, count * sizes.rows * sizes.width),
            squares=torch.empty(groups * sizes.lanes, count, dtype=torch.float64).numpy(),
        )

    def _new(self, name: str, *shape: int) -> Any:
        """Return an uninitialized array, in memory that is kept between calls."""
        kept, key, size = self._memory.kept, f"compiled {name}", math.prod(shape)
        if key not in kept or kept[key].numel() < size:
            kept[key] = torch.empty(size)
        return kept[key][:size].view(shape).numpy()

    @staticmethod
    def _f(value: float) -> Any:
        return torch.tensor(value, dtype=torch.float32).numpy()[()]

    def _run(self, loop: Callable[..., None], *arguments: Any, units: int | None = None) -> None:
        """Run a loop over all units, or over that many groups, each thread some of them."""
        count = units or len(self._like) * self._sizes.lanes
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
