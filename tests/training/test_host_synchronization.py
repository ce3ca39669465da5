"""A training step never waits for its device between two logged steps: it reads no value, and copies none from the host."""

import dataclasses
import functools
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import drifting
from drifting.data.sources import InMemorySource
from drifting.encoders import Frozen
from drifting.fields import backends
from drifting.generators import DecoderMLP, DiT, DiTSize, UNet, UNetSize
from drifting.loss import DriftingLoss
from drifting.training import Positives, Schedule, TrainingState
from drifting.training.loop import train

SOURCE = str(Path(drifting.__file__).parent)
# What reads a value, or needs to know how many there are, and so waits for a device.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "is_nonzero", "equal"}
READERS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__")
# These look at values on a CPU alone, where that costs nothing: the count of an average is kept there, the others ask first.
ONLY_ON_A_CPU = {
    "_checks.py:check_weights",
    "data/batches.py:check_drawn",
    "nn.py:_checked",
    "guidance.py:unconditional_weight",
    "training/state.py:update_parameters",
}

SHAPE, CLASSES, STEPS = (3, 16, 16), 3, 4
SCHEDULE = Schedule(steps=STEPS, labels_per_step=2, generated=6, positives=5, learning_rate=1e-3, statistics_every=100)
DRAWN = {"guidance_exponent": 1.0, "unguided_prob": 0.2, "unconditional": 4}
CASES = {
    "plain": {},
    "independent negatives": {"independent_negatives": True},
    "detached samples": {"detached_samples": 3},
    "annealed temperatures": {"temperature_factors": (3.0, 1.0)},
    "learned temperature": {"temperature_learning_rate": 0.1},
    "guidance": DRAWN,
    "microbatches": {"microbatch_size": 4, **DRAWN},
    "labels at a time": {"labels_per_microbatch": 1, **DRAWN},
    "muon": {"optimizer": "muon"},
    "averages": {"other_ema_decays": (0.5, 0.9)},
    "bfloat16": {"precision": "bfloat16"},
    "one fixed scale": {"guidance_scale": 2.0, "unconditional": 4},
    "some places": {"place_share": 0.5},
}
CONDITIONED = {"heads": 2, "cond_dim": 8, "num_styles": 2, "style_classes": 4}
LABELS = {"sample_shape": SHAPE, "num_classes": CLASSES}
DIT = DiTSize(patch=8, width=8, depth=1, num_context_tokens=2, **CONDITIONED)
UNET = UNetSize(patch=4, widths=(8,), blocks=1, **CONDITIONED)
DECODER = {"code_dim": 8, "decoder_width": 4, "smoothing": True, "noise_dim": 4, "width": 8, "depth": 1}
GENERATORS = {
    "mlp": lambda guided: DecoderMLP(**LABELS, **DECODER, guided=guided),
    "dit": lambda guided: DiT(**LABELS, size=DIT, guided=guided),
    "unet": lambda guided: UNet(**LABELS, size=UNET, guided=guided),
}
TOGETHER = [("mlp", case) for case in CASES] + [
    (generator, case) for generator in ("dit", "unet") for case in ("plain", "guidance")
]


@pytest.fixture(autouse=True)
def field_of_a_device(monkeypatch):
    """Compute the field as on a device: the compiled loops are for a CPU, where reading costs nothing."""
    monkeypatch.setattr(backends, "is_available", lambda samples: False)


class _Places(Counter):
    """How often each place of the package read from a tensor."""

    def note(self) -> None:
        frame = sys._getframe(2)
        while frame is not None and (not frame.f_code.co_filename.startswith(SOURCE) or frame.f_code.co_name.startswith("<")):
            frame = frame.f_back
        if frame is not None:
            self[f"{Path(frame.f_code.co_filename).relative_to(SOURCE).as_posix()}:{frame.f_code.co_name}"] += 1


class _Waiting(TorchDispatchMode):
    def __init__(self, places: _Places) -> None:
        super().__init__()
        self.places = places

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        indices = args[1] if function.overloadpacket.__name__ in ("index", "index_put", "index_put_") else ()
        by_mask = any(index is not None and index.dtype == torch.bool for index in indices)
        counted = function is torch.ops.aten.repeat_interleave.Tensor and not (kwargs or {}).get("output_size")
        if function.overloadpacket.__name__ in WAITING or by_mask or counted:
            self.places.note()
        return function(*args, **(kwargs or {}))


@contextmanager
def _watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Places]:
    """Count the places of the package that read values from tensors, or make tensors from values of the host."""
    places = _Places()

    def noting(function):
        @functools.wraps(function)
        def run(*args, **kwargs):
            places.note()
            return function(*args, **kwargs)

        return run

    with monkeypatch.context() as patch, _Waiting(places):
        for name in READERS:
            patch.setattr(Tensor, name, noting(getattr(Tensor, name)))
        patch.setattr(torch, "tensor", noting(torch.tensor))
        yield places


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 4, stride=4)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"maps": self.layer(images).flatten(2).mT, "mean": images.mean((2, 3))[:, None]}


def _steps(generator: str, settings: dict, device: str) -> Iterator:
    torch.manual_seed(0)
    schedule = dataclasses.replace(SCHEDULE, **settings)
    images, labels = torch.randn(30, *SHAPE, device=device), torch.arange(30, device=device) % CLASSES
    encoder = Frozen(_Encoder().to(device))
    network = GENERATORS[generator](schedule.draws_guidance).to(device)
    state, positives = TrainingState(network, schedule, 0), Positives(InMemorySource(images, labels), encoder)
    return train(state, positives, encoder, DriftingLoss(temperatures=(0.1, 0.5)), schedule)


@pytest.mark.parametrize(("generator", "case"), TOGETHER)
def test_step_reads_nothing_back(monkeypatch, generator, case):
    steps = _steps(generator, CASES[case], "cpu")
    next(steps)  # moves the data, and reports statistics
    with _watched(monkeypatch) as places:
        next(steps)
    assert set(places) <= ONLY_ON_A_CPU, places


def test_what_waits_is_counted(monkeypatch):
    generator = GENERATORS["mlp"](False)
    state = TrainingState(generator, SCHEDULE, 0)
    with _watched(monkeypatch) as places:
        state.check_faults()
        torch.zeros(3)[torch.ones(3, dtype=torch.bool)]  # not in the package
    assert set(places) == {"training/state.py:check_faults"}


@pytest.mark.gpu
@pytest.mark.parametrize(("generator", "case"), TOGETHER)
def test_step_on_a_gpu_does_not_synchronize(generator, case):
    steps = _steps(generator, CASES[case], "cuda")
    next(steps)
    torch.cuda.set_sync_debug_mode("error")
    try:
        next(steps)
    finally:
        torch.cuda.set_sync_debug_mode("default")
