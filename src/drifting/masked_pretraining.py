"""Masked auto-encoders trained on more images, or latents of them, than memory holds: read batch after batch from the disk."""

from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from drifting import config as configuration
from drifting.checkpoint import checkpoints, load_checkpoint, save_checkpoint, save_json, steps_done
from drifting.config import EncoderRunConfig, MAEConfig, StreamedData
from drifting.data.pixels import to_signed
from drifting.data.shuffle import shuffled_indices
from drifting.data.streamed import Rows
from drifting.encoders.mae import MaskedAutoencoder, mae_loss, random_mask
from drifting.run_folder import CONFIG
from drifting.training.interruption import Interrupted, command_to_go_on, polite_stop
from drifting.training.masked import Batches, masked_state, train_masked
from drifting.training.network import EncoderStep, NetworkState
from drifting.training.progress import show_steps
from drifting.training.recorder import CHECKPOINTS

# Rows that the figures are of, at most, and how many of them at once.
_MEASURED, _AT_ONCE = 2048, 64
# Seeds of masks that training does not draw.
_FIGURES_STREAM = 10**6


def train_streamed(network: MaskedAutoencoder, config: EncoderRunConfig, folder: Path) -> dict[str, int | float]:
    """Train a network on its device, by `training.masked.train_masked`, from the newest checkpoint in its folder if there is one.

    Returns:
        `num_train_images`; `masked_error`, the mean squared error of what is filled in, and of a network that learnt classes
        `train_accuracy`, the share of whole images that it names right, both of training images.

    Raises:
        DivergenceError: if its loss becomes NaN or infinite.
        Interrupted: if the process was asked to stop; the state is saved.
    """
    settings, rows = cast(MAEConfig, config.encoder), configuration.open_rows(cast(StreamedData, config.data), config.seed)
    state = masked_state(network, settings, config.seed)
    save_json(folder / CONFIG, configuration.to_json(config))
    if found := checkpoints(folder / CHECKPOINTS):
        _restore(state, found[-1], settings.steps)
    batches = batches_of(rows, settings.batch_size, config.seed)
    with ThreadPoolExecutor(1) as thread:
        steps = train_masked(state, _ahead(batches, settings.steps, thread), settings)
        kept = _kept(steps, state, config, folder)
        show_steps(kept, settings.steps, settings.batch_size, what="encoder", done=state.step)
    return {"num_train_images": len(rows), **_figures(network.eval(), rows, config)}


def batches_of(rows: Rows, batch_size: int, seed: int) -> Batches:
    """Return the batches of a training: every epoch is a new order of all rows, and each time a row is varied anew."""

    def batches(number: int, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        del rng
        first = (number - 1) * batch_size
        indices = shuffled_indices(len(rows), first, batch_size, seed)
        taken = rows.take(indices, torch.arange(first, first + batch_size))
        return taken, None if rows.labels is None else rows.labels[indices]

    return batches


def _ahead(batches: Batches, last: int, thread: Executor) -> Batches:
    """Return the same batches, each read by a thread while the step before it computes."""
    waiting: dict[int, Future] = {}

    def read(number: int, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        found = waiting.pop(number).result() if number in waiting else batches(number, rng)
        if number < last:
            waiting[number + 1] = thread.submit(batches, number + 1, rng)
        return found

    return read


def _restore(state: NetworkState, checkpoint: Path, steps: int) -> None:
    done = steps_done(checkpoint, steps)
    state.restore(load_checkpoint(checkpoint)[0], done, str(checkpoint))


def _kept(steps: Iterator[EncoderStep], state: NetworkState, config: EncoderRunConfig, folder: Path) -> Iterator[EncoderStep]:
    """Pass steps on; save the state now and then, in the end, and where training is asked to stop, which it then does.

    A state that is not finite takes the place of no checkpoint.
    """
    last, facts = config.encoder.steps, configuration.to_json(config)
    with polite_stop() as stop:
        for step in steps:
            yield step
            if stop or step.number % config.checkpoint_every == 0 or step.number == last:
                state.check_faults()
                save_checkpoint(folder / CHECKPOINTS, step.number, state.tensors(), facts, keep=config.keep)
            if stop and step.number < last:
                raise Interrupted(step.number, last, command_to_go_on(config.preset, folder))


@torch.no_grad()
def _figures(network: MaskedAutoencoder, rows: Rows, config: EncoderRunConfig) -> dict[str, float]:
    rng = torch.Generator(config.device).manual_seed(_FIGURES_STREAM + config.seed)
    errors, hits = list[Tensor](), list[Tensor]()
    for images, labels in _measured(rows, config.seed):
        batch = to_signed(images.to(config.device))
        mask = random_mask(len(batch), network.grid, rng)
        errors.append(mae_loss(network(batch, mask)[0], network.patches(batch), mask))
        if network.classify is not None and labels is not None:
            hits.append(cast(Tensor, network(batch)[1]).argmax(1).cpu() == labels)
    figures = {"masked_error": float(torch.stack(errors).mean())}
    return figures | ({"train_accuracy": float(torch.cat(hits).double().mean())} if hits else {})


def _measured(rows: Rows, seed: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    batches, count = batches_of(rows, _AT_ONCE, seed), min(_MEASURED, len(rows))
    for number in range(1, max(2, count // _AT_ONCE + 1)):
        yield batches(number, torch.Generator())
