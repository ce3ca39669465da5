"""The samples of a run as facts for the page of its report: points with the arrows of the drift, or sheets of images."""

import base64
import io
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from drifting.config import RunConfig
from drifting.data import Decoder, Source
from drifting.data.pixels import to_bytes, to_signed
from drifting.data.points import Frame
from drifting.data.sources import reference_samples
from drifting.errors import InputError
from drifting.metrics.images import nearest
from drifting.runs.pictures import Drawing, layout, summed_drift

# Points that are drawn, lines of arrows, and the resolution of coordinates.
_POINTS, _ARROWS, _LEVELS = 1500, 21, 4095
# Length of the longest arrow in pixels of the canvas, and the power of the drift that arrows show.
_LONGEST_ARROW, _ROOT = 60.0, 0.4
# Pixels between the images of a grid.
_GAP = 1
# Share of the window around the data that is left free.
_MARGIN = 0.1
# Widest picture of samples in pixels.
_WIDEST = 1000


def read_or_note(read: Callable[[], Any], missing: list[str]) -> Any:
    """Return what a function reads; if it cannot, note why and return None."""
    try:
        return read()
    except InputError as error:
        missing.append(f"{str(error)[:1].upper()}{str(error)[1:]}")
        return None


@dataclass(frozen=True)
class Showing(Drawing):
    """The ways to show the samples of a run on the page; its data choose one, or draw pictures of their own into the folder.

    Attributes:
        found: the facts for the page.
    """

    found: dict[str, Any] = field(default_factory=dict)

    def points(self, frame: Frame) -> list[Path]:
        """Show points in the plane and, if the field can compute it, the drift at every place."""
        real = reference_samples(self.source, self.config.snapshot_samples, 0)
        self.found.update(_plane(self.snapshots, frame, real, summed_drift(self.config.loss.build(), frame, real)))
        return []

    def images(self, train: UInt8[Tensor, "s c h w"]) -> list[Path]:
        """Show images, one class per row where there are classes, and the training images nearest to the last ones."""
        self.decoded(to_bytes)
        rows, columns = self._layout()
        last = self.snapshots[max(self.snapshots)][: rows * columns]
        _, indices = nearest(last.flatten(1), to_signed(train).flatten(1))
        self.found["nearest"] = _sheet(train[indices], rows, columns)
        return []

    def decoded(self, decode: Decoder) -> list[Path]:
        """Show images that a function decodes."""
        rows, columns = self._layout()
        count, labeled = rows * columns, self.source.num_classes == rows
        anything = self.source.draw_unconditional(1, count, torch.Generator().manual_seed(0))[0]
        real = decode(reference_samples(self.source, count, 0) if labeled else anything)
        self.found.update(_sheets(self.snapshots, decode, rows, columns), real=_sheet(real, rows, columns))
        if labeled and self.config.data.class_names is not None:
            self.found["names"] = list(self.config.data.class_names)
        return []

    def _layout(self) -> tuple[int, int]:
        return layout(self.source.num_classes, min(map(len, self.snapshots.values())))


def shown_samples(
    config: RunConfig, snapshots: Mapping[int, Tensor], source: Source | None, missing: list[str]
) -> dict[str, Any] | None:
    """Return the samples through the training as facts for the page, without real ones if the data are gone; None for none.

    Args:
        config: configuration of the run.
        snapshots: step -> samples.
        source: source of real samples; None to make it here.
        missing: takes sentences about what cannot be shown.
    """
    if not snapshots:
        missing.append("No samples were kept of this training.")
        return None
    snapshots = dict(sorted(snapshots.items()))
    source = read_or_note(lambda: config.data.source(config.seed), missing) if source is None else source
    if source is None:
        shape, count = next(iter(snapshots.values())).shape[1:], min(map(len, snapshots.values()))
        if shape == (2,):
            return _plane(snapshots, Frame((0.0, 0.0), 1.0), None, None)
        return (
            _sheets(snapshots, to_bytes, *layout(config.data.num_classes, count))
            if len(shape) == 3 and shape[0] in (1, 3)
            else None
        )
    with tempfile.TemporaryDirectory() as folder:
        showing = Showing(config, source, Path(folder), snapshots, [])
        own = read_or_note(lambda: config.data.depict(showing), missing) or []
        pictures = [picture_address(path.read_bytes()) for path in own if path.suffix == ".png"]
    return showing.found or ({"kind": "pictures", "pictures": pictures} if pictures else None)


def _plane(
    snapshots: Mapping[int, Float[Tensor, "n 2"]],
    frame: Frame,
    real: Float[Tensor, "r 2"] | None,
    drift: Callable[[Tensor, Tensor], Tensor] | None,
) -> dict[str, Any]:
    """Return points in the plane as facts for the page, in whole numbers from 0 to `_LEVELS` inside the window."""
    restored = [frame.restore(samples) for samples in snapshots.values()]
    window = restored[-1] if real is None else frame.restore(real)
    low, high = window.amin(0), window.amax(0)
    half = (0.5 + _MARGIN) * (float((high - low).max()) or 1.0)
    corner = (low + high) / 2 - half

    def placed(points: Float[Tensor, "n 2"]) -> list[int]:
        return ((points - corner) / (2 * half) * _LEVELS).round().clamp(-_LEVELS, 2 * _LEVELS).flatten().int().tolist()

    arrows = None
    if drift is not None:
        places = torch.cartesian_prod(
            *(torch.linspace(float(at), float(at) + 2 * half, _ARROWS, dtype=torch.float64) for at in corner)
        )
        fields = [drift(places, samples) for samples in restored]
        longest = max(float(vectors.norm(dim=1).max()) for vectors in fields) or 1.0
        vectors = [[round(value, 1) for value in _arrows(one / longest).flatten().tolist()] for one in fields]
        arrows = {"places": placed(places), "vectors": vectors}
    return {
        "kind": "points",
        "steps": list(snapshots),
        "real": None if real is None else placed(frame.restore(real)[:_POINTS]),
        "points": [placed(samples[:_POINTS]) for samples in restored],
        "arrows": arrows,
    }


def _sheets(snapshots: Mapping[int, Tensor], decode: Decoder, rows: int, columns: int) -> dict[str, Any]:
    """Return the images of every snapshot as facts for the page, without real ones."""
    sheets = [_sheet(decode(samples[: rows * columns]), rows, columns) for samples in snapshots.values()]
    return {"kind": "images", "steps": list(snapshots), "images": sheets, "real": None, "nearest": None, "names": None}


def _arrows(vectors: Float[Tensor, "q 2"]) -> Float[Tensor, "q 2"]:
    """Return arrows in pixels, for vectors of length 1 at most."""
    return _LONGEST_ARROW * vectors * vectors.norm(dim=1, keepdim=True).clamp(min=1e-12) ** (_ROOT - 1)


def _sheet(images: UInt8[Tensor, "n c h w"], rows: int, columns: int) -> str:
    """Return a grid of images whose classes come in turn, one class per row, as the address of a picture."""
    framed = torch.nn.functional.pad(images[: rows * columns], (0, _GAP, 0, _GAP), value=128)
    pixels = framed.unflatten(0, (columns, rows)).permute(1, 3, 0, 4, 2).flatten(2, 3).flatten(0, 1).cpu().numpy()
    picture = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels[..., :3]))
    if picture.width > _WIDEST:
        picture = picture.resize((_WIDEST, max(1, round(picture.height * _WIDEST / picture.width))))
    written = io.BytesIO()
    picture.save(written, format="png", optimize=True)
    return picture_address(written.getvalue())


def picture_address(png: bytes) -> str:
    """Return a picture as an address that needs no network."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
