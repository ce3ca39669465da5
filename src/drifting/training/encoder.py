"""An encoder that is learned in the same training as the generator, by an optimizer of its own.

After each step of the generator, the encoder takes one on a batch of its own; see `encoders.learned` for its loss. While the
generator takes a step, the weights of the encoder have no gradient.

Source: arXiv:2610.04703.
"""

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from drifting.encoders.base import EncoderConfig
from drifting.encoders.learned import LearnedConfig, LearnedFeatures, density_loss
from drifting.training.positives import encode_sets


class LearnedEncoder(nn.Module):
    """The network and its optimizer.

    Args:
        network: the encoder, on the device of the training.
        settings: its settings.
    """

    def __init__(self, network: LearnedFeatures, settings: LearnedConfig) -> None:
        super().__init__()
        self.network, self._settings = network.requires_grad_(False), settings
        rate: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": 0.0}
        self.optimizer = torch.optim.AdamW(network.parameters(), fused=True, **rate)

    def learn(self, real: Float[Tensor, "l p *sample"], generated: Float[Tensor, "l n *sample"]) -> Float[Tensor, ""]:
        """Take a step on real and generated samples of each label; return the loss before it, without gradient."""
        self.network.requires_grad_(True)
        self.optimizer.zero_grad(set_to_none=True)
        sizes, losses = [real.shape[1], generated.shape[1]], []
        for features in encode_sets(self.network, torch.cat([real, generated], 1)).values():
            sets = features.transpose(1, 2).flatten(0, 1).split(sizes, 1)
            losses.append(density_loss(*sets, temperature=self._settings.temperature))
        loss = torch.stack(losses).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self._settings.max_grad_norm)
        self.optimizer.step()
        self.network.requires_grad_(False)
        return loss.detach()


def learner_of(network: nn.Module | None, settings: EncoderConfig) -> LearnedEncoder | None:
    """Return the encoder that learns in the training of its generator, around its network; None for any other encoder."""
    return LearnedEncoder(cast(LearnedFeatures, network), cast(LearnedConfig, settings)) if settings.learns else None
