"""Data: real samples, drawn by label at every step.

A configuration stores its data as the name of a class of this package that ends in "Data".
"""

from drifting.data.bank import BankConfig, MemoryBank
from drifting.data.dataset import Data, Decoder, ImageData, Source, forget_data
from drifting.data.image_folder import ImageFilesData
from drifting.data.images import DigitsData, ImagesData, ImageSet, load_digits, load_images
from drifting.data.latents import LatentsData
from drifting.data.points import TOYS, PointsData, ToyData, load_points
from drifting.data.sources import BankSource, InMemorySource, LoaderSource, StreamSource
from drifting.data.streamed import StreamedData

__all__ = [
    "TOYS",
    "BankConfig",
    "BankSource",
    "Data",
    "Decoder",
    "DigitsData",
    "ImageData",
    "ImageFilesData",
    "ImageSet",
    "ImagesData",
    "InMemorySource",
    "LatentsData",
    "LoaderSource",
    "MemoryBank",
    "PointsData",
    "Source",
    "StreamSource",
    "StreamedData",
    "ToyData",
    "forget_data",
    "load_digits",
    "load_images",
    "load_points",
]
