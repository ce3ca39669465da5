"""Pairwise distances and doubly normalized affinities, computed in tiles that stay in cache.

Equation (paper, Algorithm 2), for the logits l_ij = -|x_i - y_j| / temperature:

    A_ij = sqrt( softmax_j(l)_ij * softmax_i(l)_ij ) = exp( l_ij + r_i + c_j ),
    r_i = -logsumexp_j(l_ij) / 2,    c_j = -logsumexp_i(l_ij) / 2

so two vectors (the row and the column potential) and one exponential per entry give the whole matrix. Only the distances are stored
at full size. A masked pair has distance infinity and affinity 0, or the floor. With another kernel of `kernels`, its logarithm
takes the place of the logits. Normalized over the targets of each row alone, the affinity is the first softmax without the root.

If rows are split over processes, the minimum and the sum of each column are reduced over all processes.

Shapes: g groups (independent problems), n rows (generated samples), k columns (targets), d coordinates.

Source: paper, Algorithm 2; the two potentials and the tiles are ours.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from drifting._checks import constant, exact_products
from drifting.fields.base import Peers
from drifting.fields.kernels import log_kernel

# Largest number of entries of a tile. On a CPU a tile and its buffer fit the L2 cache of a core; elsewhere tiles only bound memory.
_CPU_TILE = 2**19
_DEVICE_TILE = 2**26
# Up to so many affinities are computed in one piece on a GPU.
_AT_ONCE = 2**22

# Up to this many coordinates, summing squared differences directly is as fast as a matrix product, and exact near zero.
DIRECT_DIMENSIONS = 8

# Logits are clamped here: e^-69 is 1e-30, far above the denormal numbers on which a CPU is slow.
_UNDERFLOW = -69.0
_MAX_SCALE = 1e20
_MASKED = -1e30


def tiles(shape: Sequence[int], device: torch.device) -> Iterator[tuple[slice, slice]]:
    """Cut a [g, n, k] problem into (groups, rows) slices: several small groups together, or some rows of one large group."""
    groups, rows, columns = shape
    budget = _CPU_TILE if device.type == "cpu" else _DEVICE_TILE
    group_step = max(1, budget // max(1, rows * columns))
    row_step = rows if group_step > 1 else max(1, min(rows, budget // columns))
    for group in range(0, groups, group_step):
        for row in range(0, rows, row_step):
            yield slice(group, min(group + group_step, groups)), slice(row, min(row + row_step, rows))


class Memory:
    """Memory for matrices, kept between calls: on a CPU, fresh pages from the system cost more time than the distances.

    Attributes:
        kept: The memory of each purpose, flat: a tensor, or an array of the compiled loops.
    """

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}

    def __reduce__(self) -> tuple[type["Memory"], tuple[()]]:
        """Return what makes a copy, which has memory of its own: what is kept here says nothing."""
        return Memory, ()

    def matrix(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return an uninitialized tensor of a shape. It shares its memory with the tensors returned before."""
        size, flat = math.prod(shape), self.kept.get("matrix")
        if flat is None or flat.numel() < size or flat.dtype != like.dtype or flat.device != like.device:
            flat = self.kept["matrix"] = like.new_empty(size)
        return flat[:size].view(shape)


@constant
def pairwise_distances(
    x: Float[Tensor, "g n d"], y: Float[Tensor, "g k d"], *, memory: Memory | None = None
) -> Float[Tensor, "g n k"]:
    """Return the Euclidean distance of every x to every y of its group, in the dtype of x.

    The expansion |x|^2 + |y|^2 - 2xy loses digits far from the origin and near zero. Therefore up to `DIRECT_DIMENSIONS`
    coordinates are subtracted directly; more are centered first, and on a CPU their products are summed in float64.
    """
    if x.shape[-1] <= DIRECT_DIMENSIONS and is_slow_to_launch(x):
        return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    out = (memory or Memory()).matrix((x.shape[0], x.shape[1], y.shape[1]), like=x)
    prepare = _by_difference if x.shape[-1] <= DIRECT_DIMENSIONS else _by_expansion
    center = y.mean(1, keepdim=True)
    # Samples are centered and copied for a few groups at a time, because copies of many groups of wide features need most memory.
    for groups, tiles_of_groups in itertools.groupby(scratch_tiles(out), lambda tile: tile[0]):
        fill = prepare(x[groups] - center[groups], y[groups] - center[groups])
        for _, rows, scratch in tiles_of_groups:
            fill(rows, out[groups, rows], scratch)
            out[groups, rows].sqrt_()
    return out


def _by_difference(x: Float[Tensor, "g n d"], y: Float[Tensor, "g k d"]) -> Callable[[slice, Tensor, Tensor], None]:
    """Return a function that writes the squared distances of one tile, one coordinate after the other."""
    x, y = (samples.movedim(-1, 0).contiguous() for samples in (x, y))

    def fill(rows: slice, out: Tensor, scratch: Tensor) -> None:
        for index in range(len(x)):
            difference = torch.sub(x[index, :, rows, None], y[index, :, None], out=scratch)
            out.addcmul_(difference, difference) if index else torch.square(difference, out=out)

    return fill


def _by_expansion(x: Float[Tensor, "g n d"], y: Float[Tensor, "g k d"]) -> Callable[[slice, Tensor, Tensor], None]:
    """Return a function that writes the squared distances of one tile as |x|^2 + |y|^2 - 2xy."""
    wide = torch.float64 if x.device.type == "cpu" else x.dtype
    y = y.to(wide)
    norms = _squared_norms(y).mT

    def fill(rows: slice, out: Tensor, scratch: Tensor) -> None:
        del scratch
        some = x[:, rows].to(wide)
        # Rounded to TF32, near distances would be wrong in the first digit.
        with exact_products():
            squares = torch.baddbmm(norms, some, y.mT, alpha=-2, out=out if wide == out.dtype else None)
        squares.add_(_squared_norms(some))
        (squares if squares is out else out.copy_(squares)).clamp_(min=0)

    return fill


def _squared_norms(samples: Float[Tensor, "g n d"]) -> Float[Tensor, "g n 1"]:
    """Return |x|^2 without a temporary matrix of squares."""
    return torch.linalg.vector_norm(samples, dim=-1, keepdim=True).square_()


def mask_self(distances: Float[Tensor, "g n k"], count: int, peers: Peers | None = None) -> None:
    """Mask the pairs (i, i) in place; the first `count` columns are the rows themselves, or the rows of all peers in rank order."""
    first = 0 if peers is None else peers.rank * distances.shape[1]
    distances[..., first:].diagonal(dim1=1, dim2=2)[:, :count] = torch.inf


def row_potential(
    distances: Float[Tensor, "g n k"], nearest: Float[Tensor, "g n 1"], scale: Tensor, kernel: str = "laplace"
) -> Float[Tensor, "g n 1"]:
    """Return r_i, half the negative log-sum-exp of each row's logits `scale * distances`; `nearest` is the row minimum."""
    shift = _logits(nearest, scale, kernel)
    total = torch.empty_like(shift)
    for groups, rows, scratch in scratch_tiles(distances):
        logits = _logits(distances[groups, rows], scale, kernel, out=scratch).sub_(shift[groups, rows])
        torch.sum(_exp_(logits, _UNDERFLOW), dim=2, keepdim=True, out=total[groups, rows])
    return (total.log_() + shift) / -2


def column_potential(
    distances: Float[Tensor, "g n k"],
    nearest: Float[Tensor, "g 1 k"],
    scale: Tensor,
    peers: Peers | None = None,
    kernel: str = "laplace",
) -> Float[Tensor, "g 1 k"]:
    """Return c_j, half the negative log-sum-exp of each column's logits `scale * distances` over the rows of all peers.

    `nearest` is the minimum of each column, also over the rows of all peers.
    """
    shift = _logits(nearest.masked_fill(nearest == torch.inf, 0), scale, kernel)
    total = torch.zeros_like(shift)
    for groups, rows, scratch in scratch_tiles(distances):
        logits = _potential_logits(-shift[groups], distances[groups, rows], scale, kernel, scratch)
        total[groups] += _exp_(logits, _UNDERFLOW).sum(1, keepdim=True)
    total = total if peers is None else peers.all_reduce_sum(total)
    return (total.log_() + shift) / -2


def _potential_logits(
    column: Float[Tensor, "g 1 k"], distances: Float[Tensor, "g r k"], scale: Tensor, kernel: str, out: Tensor | None
) -> Float[Tensor, "g r k"]:
    """Return the logits plus a potential of the columns, for the Laplace kernel in one pass."""
    if kernel == "laplace":
        return torch.addcmul(column, distances, scale, out=out)
    return _logits(distances, scale, kernel, out=out).add_(column)


def affinity(
    distances: Float[Tensor, "g r k"],
    row: Tensor,
    column: Tensor,
    scale: Tensor,
    floor: float,
    out: Tensor | None = None,
    kernel: str = "laplace",
) -> Float[Tensor, "g r k"]:
    """Return A = exp(scale * distances + row + column), with its square clamped from below at `floor`."""
    logits = _potential_logits(column, distances, scale, kernel, out).add_(row)
    if kernel != "laplace":
        # No affinity exceeds 1, but a logit of many digits, such as a square, rounds to more.
        logits.clamp_(max=0)
    if floor > 0:
        return _exp_(logits, math.log(floor) / 2)
    return torch.threshold_(_exp_(logits, _UNDERFLOW), 2 * math.exp(_UNDERFLOW), 0)


def affinity_tiles(
    distances: Float[Tensor, "g n k"],
    temperatures: Float[Tensor, " t"],
    floor: float,
    peers: Peers | None = None,
    *,
    kernel: str = "laplace",
    by_columns: bool = True,
) -> Iterator[tuple[int, slice, slice, Float[Tensor, "g r k"]]]:
    """Yield (temperature index, groups, rows, affinity) for every tile and temperature. The next tile overwrites the affinity.

    Without `by_columns` the affinity is normalized over the targets of each row alone.
    """
    nearest_target = distances.amin(2, keepdim=True)
    nearest_row = _nearest_row(distances, peers) if by_columns else None
    for index, scale in enumerate(kernel_scale(temperatures)):
        row = row_potential(distances, nearest_target, scale, kernel)
        if nearest_row is None:
            row, column = 2 * row, torch.zeros_like(distances[:, :1])
        else:
            column = column_potential(distances, nearest_row, scale, peers, kernel)
        for groups, rows, scratch in scratch_tiles(distances):
            tile = affinity(distances[groups, rows], row[groups, rows], column[groups], scale, floor, scratch, kernel)
            yield index, groups, rows, tile


def _nearest_row(distances: Float[Tensor, "g n k"], peers: Peers | None) -> Float[Tensor, "g 1 k"]:
    """Return the smallest distance of each column over the rows of all peers."""
    nearest = distances.amin(1, keepdim=True)
    return nearest if peers is None else peers.all_reduce_min(nearest)


def _logits(distances: Float[Tensor, "*shape"], scale: Tensor, kernel: str, out: Tensor | None = None) -> Float[Tensor, "*shape"]:
    """Return the logarithm of the kernel."""
    return torch.mul(distances, scale, out=out) if kernel == "laplace" else log_kernel(distances, scale, kernel, out)


def is_slow_to_launch(samples: Tensor) -> bool:
    """Return whether starting an operation takes longer than a small one itself, as on a GPU."""
    return samples.device.type != "cpu"


def fits_at_once(distances: Float[Tensor, "g n k"], temperatures: Float[Tensor, " t"]) -> bool:
    """Return whether `affinities_at_once` is faster than tiles."""
    return is_slow_to_launch(distances) and len(temperatures) * distances.numel() <= _AT_ONCE


def affinities_at_once(
    distances: Float[Tensor, "g n k"],
    temperatures: Float[Tensor, " t"],
    floor: float,
    *,
    kernel: str = "laplace",
    by_columns: bool = True,
) -> Float[Tensor, "g t*n k"]:
    """Return the affinities at all temperatures, by few operations on whole matrices."""
    logits = _logits(distances[:, None], kernel_scale(temperatures)[:, None, None], kernel)
    # Finite, because a sample without others has no normalizer: its column is masked.
    logits.clamp_(min=_MASKED)
    affinity = logits.log_softmax(3)
    affinity = (affinity.add_(logits.log_softmax(2)).mul_(0.5) if by_columns else affinity).exp_()
    return (affinity.clamp_(min=math.sqrt(floor)) if floor > 0 else affinity).flatten(1, 2)


def kernel_scale(temperatures: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
    """Return -1 / temperature, clamped so that its product with any ordinary distance is finite in float32."""
    return -temperatures.reciprocal().clamp(max=_MAX_SCALE)


def scratch_tiles(matrix: Float[Tensor, "g n k"]) -> Iterator[tuple[slice, slice, Float[Tensor, "g r k"]]]:
    """Yield the tiles of a matrix, each with the same scratch memory: fresh memory costs more time than the arithmetic."""
    memory = matrix.new_empty(0)
    for groups, rows in tiles(matrix.shape, matrix.device):
        shape = matrix[groups, rows].shape
        memory = memory if memory.numel() >= shape.numel() else matrix.new_empty(shape.numel())
        yield groups, rows, memory[: shape.numel()].view(shape)


def _exp_(logits: Tensor, lowest: float) -> Tensor:
    """Exponentiate clamped logits in place: denormal results make this and every later product a hundred times slower on a CPU."""
    return logits.clamp_(min=lowest).exp_()
