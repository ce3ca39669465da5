"""How strongly a step acts on the weights of a network: the norms of its gradients, and how far the weights move, by part.

A part is a child of the network, such as `hidden` or `blocks`.
"""

from collections import defaultdict
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from drifting.distributed import whole


class Changes:
    """The change of the weights by one step. Make it after the backward pass, before gradients are clipped.

    Args:
        network: the network; its weights are copied until the step is done.
    """

    def __init__(self, network: nn.Module) -> None:
        self._parts: dict[str, list[nn.Parameter]] = defaultdict(list)
        for name, weight in network.named_parameters():
            if weight.grad is not None:
                self._parts[_part(name)].append(weight)
        self._before = {name: [weight.detach().clone() for weight in weights] for name, weights in self._parts.items()}
        gradients = {name: [weight.grad for weight in weights if weight.grad is not None] for name, weights in self._parts.items()}
        self._gradient_norms = {name: _norm(values) for name, values in gradients.items()}

    @torch.no_grad()
    def figures(self) -> dict[str, Tensor]:
        """Return gradient_norm/PART and, relative to the weights, weight_change/PART after the step; the copy is forgotten."""
        figures = {f"gradient_norm/{name}": norm for name, norm in self._gradient_norms.items()}
        for name, weights in self._parts.items():
            before = self._before.pop(name)
            size = _norm(before)
            moved = _norm([weight.detach() - old for weight, old in zip(weights, before, strict=True)])
            figures[f"weight_change/{name}"] = moved / size.clamp(min=torch.finfo(size.dtype).tiny)
        return figures


def _part(name: str) -> str:
    """Return the part of a weight. A module that only wraps the network is no part."""
    return name.removeprefix("module.").partition(".")[0]


def _norm(tensors: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Return the norm of all tensors together, over all processes if they are sharded."""
    return whole(torch.linalg.vector_norm(torch.stack([whole(torch.linalg.vector_norm(tensor.float())) for tensor in tensors])))
