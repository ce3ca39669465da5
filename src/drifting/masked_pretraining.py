"""Masked auto-encoders trained on more images, or latents of them, than memory holds: read batch after batch from the disk."""

from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import cast

import torch
from torch import Tensor

from drifting import config as configuration
from drifting._seeds import stream_seed
from drifting.config import EncoderRunConfig, MAEConfig, StreamedData
from drifting.data.pixels import to_signed
from drifting.data.shuffle import shuffled_indices
from drifting.data.streamed import Rows
from drifting.encoders.mae import MaskedAutoencoder, mae_loss, random_mask
from drifting.network_run import Saving, follow
from drifting.training.masked import Batches, masked_state, train_masked

# Rows that the figures are of, at most, and how many of them at once.
_MEASURED, _AT_ONCE = 2048, 64


def train_streamed(network: MaskedAutoencoder, config: EncoderRunConfig, saving: Saving) -> dict[str, int | float]:
    """Train a network on its device, by `training.masked.train_masked`, from its newest checkpoint if there is one.

    Returns:
        `num_train_images`; `masked_error`, the mean squared error of what is filled in, and of a network that learnt classes
        `train_accuracy`, the share of whole images that it names right, both of training images.

    Raises:
        DivergenceError: if its loss becomes NaN or infinite.
        Interrupted: if the process was asked to stop; the state is saved.
    """
    settings, rows = cast(MAEConfig, config.encoder), configuration.open_rows(cast(StreamedData, config.data), config.seed)
    state = masked_state(network, settings, config.seed)
    batches = batches_of(rows, settings.batch_size, config.seed)
    with ThreadPoolExecutor(1) as thread:
        training = train_masked(state, _ahead(batches, settings.steps, thread), settings)
        follow(training, saving, what="encoder", batch_size=settings.batch_size)
    return {"num_train_images": len(rows), **_figures(network.eval(), rows, config)}


def batches_of(rows: Rows, batch_size: int, seed: int) -> Batches:
    """Return the batches of a training: every epoch is a new order of all rows, and each time a row is varied anew."""

    def batches(number: int, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        del rng
        return _taken(rows, (number - 1) * batch_size, batch_size, seed)

    return batches


def _taken(rows: Rows, first: int, count: int, seed: int) -> tuple[Tensor, Tensor | None]:
    """Return the rows at places of the training's order, and their labels where they have any."""
    indices = shuffled_indices(len(rows), first, count, stream_seed(seed, "encoder batches"))
    images = rows.take(indices, torch.arange(first, first + count))
    return images, None if rows.labels is None else rows.labels[indices]


def _ahead(batches: Batches, last: int, thread: Executor) -> Batches:
    """Return the same batches, each read by a thread while the step before it computes."""
    waiting: dict[int, Future] = {}

    def read(number: int, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        found = waiting.pop(number).result() if number in waiting else batches(number, rng)
        if number < last:
            waiting[number + 1] = thread.submit(batches, number + 1, rng)
        return found

    return read


@torch.no_grad()
def _figures(network: MaskedAutoencoder, rows: Rows, config: EncoderRunConfig) -> dict[str, float]:
    rng = torch.Generator(config.device).manual_seed(stream_seed(config.seed, "masks of figures"))
    errors, hidden, hits = list[Tensor](), list[Tensor](), list[Tensor]()
    for images, labels in _measured(rows, config.seed):
        batch = to_signed(images.to(config.device))
        mask = random_mask(len(batch), network.grid, rng)
        errors.append(mae_loss(network(batch, mask)[0], network.patches(batch), mask))
        hidden.append(mask.sum())
        if network.classify is not None and labels is not None:
            hits.append(cast(Tensor, network(batch)[1]).argmax(1).cpu() == labels)
    shares = torch.stack(hidden) / torch.stack(hidden).sum()
    figures = {"masked_error": float((torch.stack(errors) * shares).sum())}
    return figures | ({"train_accuracy": float(torch.cat(hits).double().mean())} if hits else {})


def _measured(rows: Rows, seed: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Return the first rows of the training's order, each once."""
    count = min(_MEASURED, len(rows))
    for places in torch.arange(count).split(_AT_ONCE):
        yield _taken(rows, int(places[0]), len(places), seed)
