"""The optimizers of a generator: AdamW, and Muon, which gives every direction of a matrix of weights the same step.

Equation of Muon, for an n x k matrix W of weights (of a convolution: a row for each output channel) and its gradient G, with
momentum m = 0.95, learning rate l and weight decay d:

    M <- m M + (1 - m) G,    U S V^T = m M + (1 - m) G,    W <- (1 - l d) W - 0.2 l sqrt(max(n, k)) U V^T

The factor gives a step a root mean square like that of AdamW, so that one learning rate serves both. U V^T is approached by five
steps of a Newton-Schulz iteration, X <- (a I + b X X^T + c (X X^T)^2) X. All its steps are polynomials of the first X X^T, so they
are multiplied up at the smaller side of a long matrix, which itself is touched twice in place of ten times.

Source: Jordan et al. 2024 (Muon); the factor from arXiv:2502.16982; the products at the smaller side are Gram Newton-Schulz
(tridao.me/blog/2026/gram-newton-schulz), which needs restarts in half precision. Here it is computed in float32, and needs none.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from drifting._checks import constant, full_precision
from drifting.checkpoint import start_optimizer
from drifting.training.schedule import Schedule

_MOMENTUM = 0.95
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_SMALLEST_NORM = 1e-7
_STEP_OF_ADAMW = 0.2


def build_optimizer(generator: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    """Return the optimizer that a schedule asks for, over all weights of a generator, with its state from the start."""
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
        model: whose parameters are optimized; its matrices are the first group, all others the second.
        lr: learning rate of both.
        betas: of AdamW.
        weight_decay: decoupled, of both.
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
        # Its state and its group are these, so that there is one of each to be saved.
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
    """Return about U V^T of a matrix U S V^T, in float32 at least.

    Singular values above a hundredth or so of the root of their sum of squares become 0.7 to 1.2; smaller ones grow up to 480-fold.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    wide = full_precision(matrix.mT if tall else matrix)
    wide = wide / wide.norm().clamp(min=_SMALLEST_NORM)
    identity = torch.eye(len(wide), dtype=wide.dtype, device=wide.device)
    # Where the matrix is nearly square, carrying it along itself takes fewer products.
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
