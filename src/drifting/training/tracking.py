"""Send the figures and the samples of a training to TensorBoard or Weights & Biases while it runs.

A tracker changes nothing in the training. If it fails, there is one warning, and the training goes on without it.
"""

import importlib
import json
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from drifting._checks import check_choice
from drifting._extras import install_hint
from drifting.errors import InputError, reason

# Makes a picture of the samples of a snapshot; None for samples of which there is none.
Draw = Callable[[Tensor], Image.Image | None]


class Service(ABC):
    """What receives the figures."""

    @abstractmethod
    def send(self, step: int, values: Mapping[str, float]) -> None:
        """Send the figures of a step."""

    @abstractmethod
    def show(self, step: int, picture: Image.Image) -> None:
        """Send a picture of the samples of a step."""

    @abstractmethod
    def close(self) -> None:
        """Send what is left."""


class _TensorBoard(Service):
    def __init__(self, folder: Path, configuration: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))
        self._writer.add_text("configuration", f"```json\n{json.dumps(configuration, indent=1)}\n```")

    def send(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def show(self, step: int, picture: Image.Image) -> None:
        self._writer.add_image("samples", np.asarray(picture.convert("RGB")), step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases(Service):
    def __init__(self, folder: Path, configuration: Mapping[str, Any]) -> None:
        import wandb

        self._wandb: Any = wandb
        # The output of the command stays with the command, and nothing but the run is read.
        settings = wandb.Settings(console="off", save_code=False, disable_git=True)
        options: dict[str, Any] = {"name": folder.resolve().name, "config": dict(configuration), "settings": settings}
        self._run: Any = wandb.init(project="drifting", dir=str(folder), **options)

    def send(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def show(self, step: int, picture: Image.Image) -> None:
        self._run.log({"samples": self._wandb.Image(picture)}, step=step)

    def close(self) -> None:
        self._run.finish()


_SERVICES: dict[str, Callable[[Path, Mapping[str, Any]], Service]] = {"tensorboard": _TensorBoard, "wandb": _WeightsAndBiases}
TRACKERS = tuple(_SERVICES)


def check_tracker(name: str) -> None:
    """Raise InputError unless there is such a tracker and its library is installed."""
    check_choice("track", name, TRACKERS)
    try:
        importlib.import_module(name)
    except ImportError:
        raise InputError(f"track is '{name}', whose library is not installed: {install_hint('track')}") from None


class Tracking:
    """A tracker of one training, as a context manager.

    Args:
        name: "tensorboard", which writes into the folder tensorboard/, or "wandb", whose environment variables decide the rest:
            with WANDB_MODE=offline, it writes into wandb/ and needs no network.
        folder: folder of the run, which names it.
        configuration: settings of the training, sent once.
        draw: makes a picture of samples; None to send no pictures.
        resumed: whether samples of earlier steps were sent before.

    Raises:
        InputError: if the tracker is unknown, not installed or does not start.
    """

    def __init__(
        self,
        name: str,
        folder: str | Path,
        configuration: Mapping[str, Any],
        *,
        draw: Draw | None = None,
        resumed: bool = False,
    ) -> None:
        check_tracker(name)
        self._name, self._draw, self._shown = name, draw, math.inf if resumed else -1
        try:
            self._service: Service | None = _SERVICES[name](Path(folder), configuration)
        except Exception as error:  # every tracker raises its own
            offline = "; without a network, set WANDB_MODE=offline" if name == "wandb" else ""
            raise InputError(f"track is '{name}', which does not start ({reason(error)}): leave it out{offline}") from None

    def record(self, values: Mapping[str, float], snapshots: Mapping[int, Tensor] | None = None) -> None:
        """Send a line of figures, one of which is `step`, and pictures of the snapshots up to it that were not sent yet.

        Args:
            values: name -> figure; those that are not finite are left out.
            snapshots: step -> samples.
        """
        step = int(values["step"])
        figures = {name: float(value) for name, value in values.items() if name != "step" and math.isfinite(value)}
        self._shown = min(self._shown, step - 1)
        new = sorted(at for at in snapshots or () if self._shown < at <= step)
        self._shown = step
        for at in new:
            self._try(lambda service, at=at: self._show(service, at, (snapshots or {})[at]))
        self._try(lambda service: service.send(step, figures))

    def _show(self, service: Service, step: int, samples: Tensor) -> None:
        picture = None if self._draw is None else self._draw(samples)
        if picture is not None:
            service.show(step, picture)

    def _try(self, action: Callable[[Service], None]) -> None:
        """Do something with the service; if it fails, warn and leave the service out from now on."""
        if self._service is None:
            return
        try:
            action(self._service)
        except Exception as error:  # nothing in a tracker may end a training
            self._service = None
            warnings.warn(f"track is '{self._name}', which failed ({reason(error)}): the training goes on without it", stacklevel=2)

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(self, *_: object) -> None:
        self._try(lambda service: service.close())
