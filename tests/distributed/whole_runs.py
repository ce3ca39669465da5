"""Runs and samples, made by however many processes there are: what the tests compare."""

import dataclasses
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from drifting import presets, runs
from drifting.config import RunConfig
from drifting.distributed import Processes, join, whole
from drifting.generators import DiTConfig
from drifting.generators.base import Generator
from drifting.generators.dit import DiT, DiTSize
from drifting.runs import pictures as drawing
from drifting.runs.train import build_encoder, build_positives
from drifting.sampling import sample
from tests.support.small_runs import shrunk

SIZE = {
    "patch": 4,
    "width": 16,
    "depth": 2,
    "heads": 2,
    "cond_dim": 16,
    "num_context_tokens": 2,
    "num_styles": 3,
    "style_classes": 5,
}
_WRITTEN: list[str] = []
_WATCHED: list[str] = []


def small_run(parallel: str = "ddp", **changes: Any) -> RunConfig:
    """Return a run on digits with a small transformer, six steps and a checkpoint at every second."""
    config = dataclasses.replace(shrunk(presets.preset("digits")), generator=DiTConfig(**SIZE))
    return presets.adjust(config, parallel=parallel, learning_rate=1e-4, **changes)


def train(config: RunConfig, folder: Path, resume: bool = False) -> dict[str, Any]:
    """Train without pictures; return the weights that are left, what this process wrote in the folder, and what it built."""
    _watch(folder)
    with (
        mock.patch.object(drawing, "draw_pictures", return_value=[]),
        mock.patch.object(DiT, "__init__", autospec=True, side_effect=DiT.__init__) as build,
    ):
        run = runs.train(config, folder, resume=resume)
    device = next(run.generator.parameters()).device.type
    return {"weights": run.generator.state_dict(), "written": list(_WRITTEN), "built": build.call_count, "device": device}


def error_of(config: RunConfig, folder: Path) -> tuple[str, str]:
    """Return the kind and the words of the error with which a training ends."""
    try:
        runs.train(config, folder)
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


def failing_first(folder: Path) -> tuple[str, str]:
    """Return the error of a block in which the first process alone fails."""
    processes = join()
    try:
        with processes.main_process_first():
            if processes.is_main_process:
                raise ValueError("broken")
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


def said() -> list[bool]:
    """Return whether anything was said, whether this process is the first to say two things, and whether anything was said then."""
    processes = join()
    before = processes.something_said()
    processes.barrier()
    answers = [before, *(processes.is_first_to_say(text) for text in ("one", "two"))]
    processes.barrier()
    return [*answers, processes.something_said()]


class Echo(Generator):
    """Samples are the noise, beside the style codes."""

    noise_shape, sample_shape, num_classes, num_styles, style_classes = (3,), (5,), 7, 2, 50

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, noise, labels, guidance_scale, style_indices):
        return torch.cat([noise, style_indices, labels[:, None]], 1)


def samples(batch_size: int, *, echo: bool = False, sharded: bool = False, count: int = 64) -> torch.Tensor:
    """Return samples of a small transformer, or of an echo."""
    torch.manual_seed(0)
    generator = Echo() if echo else DiT(sample_shape=(1, 8, 8), size=DiTSize(**SIZE), num_classes=3, output_std=0.75, bounded=True)
    processes: Processes = join()
    if sharded:
        processes.shard(generator)
    return sample(generator, count, seed=3, batch_size=batch_size, processes=processes)


def state_after(config: RunConfig, folder: Path) -> dict[str, torch.Tensor]:
    """Return the whole training state of the newest checkpoint, as a run of this configuration takes it over."""
    from drifting.training.recorder import Recorder
    from drifting.training.state import TrainingState

    shared = {"processes": join(), "sharded": config.parallel == "fsdp"}
    state = TrainingState(config.build_generator(), config.schedule, config.seed, **shared)
    positives = build_positives(config, build_encoder(config))
    options = {"facts": {}, "reference": torch.zeros(2, 1, 8, 8), "snapshot_samples": 4, "keep": 1}
    recorder = Recorder(folder, state, positives, **options)
    recorder.resume(config.schedule.steps)
    return {name: whole(tensor) for name, tensor in state.tensors().items()}


def _watch(folder: Path) -> None:
    """Note from now on whatever this process writes, makes, moves or deletes below a folder."""
    if not _WATCHED:
        sys.addaudithook(_note)
    _WATCHED[:], _WRITTEN[:] = [str(folder)], []


def _note(event: str, arguments: tuple) -> None:
    if event == "open":
        path, mode, flags = arguments
        changing = set(mode or "") & set("wax+") or (isinstance(flags, int) and flags & 3)
    else:
        path, changing = (arguments or ("",))[0], event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
    if changing and str(path).startswith(_WATCHED[0]):
        _WRITTEN.append(f"{event} {path}")
