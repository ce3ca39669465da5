"""The optimizers of a generator: AdamW, and Muon, which moves a matrix of weights equally far in every direction.

Equation of Muon, for an n x k matrix W of weights (a convolution has one row for each output channel) and its gradient G, with
momentum m = 0.95, learning rate l and weight decay d:

    M <- m M + (1 - m) G,    U S V^T = m M + (1 - m) G,    W <- (1 - l d) W - 0.2 l sqrt(max(n, k)) U V^T

With this factor a step has about the same root mean square as one of AdamW, so both can use one learning rate. Five steps of a
Newton-Schulz iteration, X <- (a I + b X X^T + c (X X^T)^2) X, approximate U V^T. All steps are polynomials of the first X X^T, so
for a long matrix they are multiplied at its smaller side, and the matrix itself is used twice instead of ten times.

Source: Jordan et al. 2024 (Muon); the factor is from arXiv:2502.16982; the products at the smaller side are Gram Newton-Schulz
(tridao.me/blog/2026/gram-newton-schulz), which needs restarts in half precision, but not in float32 as here.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from drifting._checks import constant, full_precision
from drifting.checkpoint import check_state
from drifting.distributed import laid_out
from drifting.training.schedule import Schedule

_MOMENTUM = 0.95
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_SMALLEST_NORM = 1e-7
_STEP_OF_ADAMW = 0.2


def build_optimizer(generator: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    """Return the optimizer of a schedule for all weights of a generator, with its initial state."""
    settings: dict[str, Any] = {"lr": schedule.learning_rate, "betas": schedule.betas, "weight_decay": schedule.weight_decay}
    if schedule.optimizer == "muon":
        optimizer = Muon(generator, **settings)
    else:
        optimizer = torch.optim.AdamW(generator.parameters(), fused=True, **settings)
    start_optimizer(optimizer)
    return optimizer


class Muon(torch.optim.Optimizer):
    """Muon for the weights of `nn.Linear` and `nn.Conv2d`, AdamW for all others: biases, embeddings, scales.

    Args:
        model: the network; its matrices are the first group of parameters, all others the second.
        lr: learning rate of both groups.
        betas: decay rates of the moments of AdamW.
        weight_decay: decoupled weight decay of both groups.
    """

    def __init__(self, model: nn.Module, *, lr: float, betas: tuple[float, float], weight_decay: float) -> None:
        layers = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
        matrices = {id(layer.weight): layer.weight for layer in layers}
        others = [parameter for parameter in model.parameters() if id(parameter) not in matrices]
        adamw = torch.optim.AdamW([{"params": others}], lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
        super().__init__([{"params": list(matrices.values())}, {"params": others}], adamw.defaults)
        for weight in matrices.values():
            self.state[weight]["momentum"] = torch.zeros_like(weight, requires_grad=False)

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] - no closure
        """Move all weights that have a gradient by one step."""
        matrices, others = self.param_groups
        for weight in matrices["params"]:
            if weight.grad is not None:
                self._move(weight, weight.grad, matrices["lr"], matrices["weight_decay"])
        # It shares the state and the group of this optimizer, so that a checkpoint holds them once.
        adamw = torch.optim.AdamW([{"params": others["params"]}], fused=True)
        adamw.state, adamw.param_groups = self.state, [others]
        adamw.step()

    def _move(self, weight: Tensor, gradient: Tensor, rate: float, decay: float) -> None:
        momentum = self.state[weight]["momentum"].lerp_(gradient, 1 - _MOMENTUM)
        direction = gradient.lerp(momentum, _MOMENTUM).flatten(1)
        factor = _STEP_OF_ADAMW * max(direction.shape) ** 0.5
        weight.mul_(1 - rate * decay).sub_(orthogonalized(direction).view_as(weight), alpha=rate * factor)


@constant
def orthogonalized(matrix: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """Return an approximation of U V^T for a matrix U S V^T, in float32 or better.

    Singular values above a hundredth or so of the root of their sum of squares become 0.7 to 1.2; smaller ones grow up to 480-fold.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    wide = full_precision(matrix.mT if tall else matrix)
    wide = wide / wide.norm().clamp(min=_SMALLEST_NORM)
    identity = torch.eye(len(wide), dtype=wide.dtype, device=wide.device)
    # For a nearly square matrix, it takes fewer products to multiply the matrix itself.
    small = 2 * wide.shape[1] > 3 * wide.shape[0]
    carried, gram, factor = wide, wide @ wide.mT, identity
    linear, cubic, quintic = _COEFFICIENTS
    for index in range(_ITERATIONS):
        if index:
            gram = factor @ gram @ factor if small else carried @ carried.mT
        factor = torch.addmm(gram, gram, gram, beta=cubic, alpha=quintic).add_(identity, alpha=linear)
        carried = factor if small and index == 0 else factor @ carried
    found = carried @ wide if small else carried
    return found.mT if tall else found


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the state of every parameter as named tensors: "0.exp_avg", "0.step", ..."""
    states = optimizer.state_dict()["state"]
    return {f"{index}.{key}": torch.as_tensor(value) for index, state in states.items() for key, value in state.items()}


def start_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Give every weight of AdamW without state the state before its first step, so that the names to save are known."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if not optimizer.state[weight]:
                counted_on = weight.device if group["fused"] or group["capturable"] else "cpu"
                optimizer.state[weight]["step"] = torch.zeros((), dtype=torch.float32, device=counted_on)
                for name in ("exp_avg", "exp_avg_sq"):
                    optimizer.state[weight][name] = torch.zeros_like(weight, requires_grad=False)


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], origin: str = "the checkpoint") -> None:
    """Restore the result of `flatten_optimizer`; the hyper-parameters stay those of the configuration.

    Raises:
        InputError: if the state is incomplete or belongs to other weights.
    """
    start_optimizer(optimizer)
    own = flatten_optimizer(optimizer)
    check_state(tensors, own, origin)
    # In place, to keep the memory layout of the weights, which a fused step requires.
    for name, value in own.items():
        value.copy_(laid_out(tensors[name], value))
