"""Data sources: real samples of given labels, drawn at every step."""

from typing import TYPE_CHECKING

from drifting._lazy import lazy_names

if TYPE_CHECKING:
    from drifting.data.bank import BankSource, MemoryBank
    from drifting.data.dataset import InMemorySource, Source, StreamSource
    from drifting.data.digits import load_digits
    from drifting.data.images import ImageSet, load_images
    from drifting.data.loader import LoaderSource
    from drifting.data.points import load_points
    from drifting.data.toys import TOYS

__all__ = [
    "TOYS",
    "BankSource",
    "ImageSet",
    "InMemorySource",
    "LoaderSource",
    "MemoryBank",
    "Source",
    "StreamSource",
    "load_digits",
    "load_images",
    "load_points",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "bank": ("BankSource", "MemoryBank"),
        "dataset": ("InMemorySource", "Source", "StreamSource"),
        "digits": ("load_digits",),
        "images": ("ImageSet", "load_images"),
        "loader": ("LoaderSource",),
        "points": ("load_points",),
        "toys": ("TOYS",),
    },
)
