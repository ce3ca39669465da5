"""What a run is trained on."""

from dataclasses import dataclass

from drifting.data.points import Frame
from drifting.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ToyData:
    """A distribution in the plane, see `data.toys`."""

    dataset: str


@dataclass(frozen=True, kw_only=True)
class PointsData:
    """A user's own points.

    Attributes:
        path: of their file.
        centre, scale: where they lie; found when the file is first read and kept with the run.
        count, fingerprint: how many there are, and what stands for them; found likewise, and checked whenever the file is read
            again. Runs of earlier versions have neither.
    """

    path: str
    centre: tuple[float, float] | None = None
    scale: float | None = None
    count: int | None = None
    fingerprint: str | None = None

    @property
    def frame(self) -> Frame:
        """Where the points lie; only of a resolved configuration."""
        if self.centre is None or self.scale is None:
            raise InputError(f"data is '{self.path}', whose centre and scale are not known yet: resolve the configuration first")
        return Frame(self.centre, self.scale)


@dataclass(frozen=True, kw_only=True)
class DigitsData:
    """Handwritten digits of 8 x 8 pixels, embedded in scikit-learn."""


@dataclass(frozen=True, kw_only=True)
class ImagesData:
    """Images of a folder or of the Hub, see `data.images.load_images`.

    Attributes:
        name: what they are called, and where they are looked for if there is no `path`.
        path: folder or Hub id; None to look for `name`.
        image_size: pixels to a side after cropping and resizing; None to keep them.
        channels: 1 or 3 to convert; None to keep them.
        colour: refuse images that are not of red, green and blue.
        conditional: one population for each class, or one for all.
        image_shape: channels, height and width; found when the images are first read and kept with the run.
        num_classes: found likewise; None where there are no labels or they are not used.
        class_names: of each label, found likewise where they are known.
        counts: training images of each class, or of all without classes; found likewise.
        fingerprint: stands for all training images; found likewise. Classes, counts and this are checked whenever the images are
            read again, as far as they are known: runs of earlier versions have none of the three.
    """

    name: str
    path: str | None = None
    image_size: int | None = None
    channels: int | None = None
    colour: bool = False
    conditional: bool = True
    image_shape: tuple[int, int, int] | None = None
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    counts: tuple[int, ...] | None = None
    fingerprint: str | None = None


@dataclass(frozen=True, kw_only=True)
class ImageFilesData:
    """Images of a folder that are too many for memory: decoded, cropped and resized as they are drawn, see `data.image_folder`.

    Attributes:
        path: folder with one sub-folder for each class, or with `train` and `val` above those; None where it is not known yet.
        image_size: pixels to a side after cropping and resizing.
        conditional: one population for each class, or one for all.
        flip: mirror every other image, by chance.
        image_shape: channels, height and width; found when the folder is first listed and kept with the run.
        num_classes: found likewise; None where labels are not used.
        class_names, counts: names of the classes and how many images each has; found likewise.
        files: stands for the names of the files; found likewise, and checked whenever the folder is listed again.
    """

    path: str | None = None
    image_size: int = 256
    conditional: bool = True
    flip: bool = True
    image_shape: tuple[int, int, int] | None = None
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    counts: tuple[int, ...] | None = None
    files: str | None = None


@dataclass(frozen=True, kw_only=True)
class LatentsData:
    """Latents of images, computed before by `drifting latents`, see `data.latents`.

    Attributes:
        path: folder of the cache; None where it is not known yet.
        conditional: one population for each class, or one for all.
        flip: take the latent of the mirrored image for every other one, by chance.
        vae: name or folder of the auto-encoder that decodes samples; found in the cache and kept with the run.
        vae_fingerprint: of the auto-encoder that the cache must have been made with; found likewise.
        image_shape: channels, height and width that latents must have; found likewise.
        num_classes, class_names: found likewise; None where labels are not used.
        files: stands for the names of the files; found likewise, and checked whenever the cache is opened again.
    """

    path: str | None = None
    conditional: bool = True
    flip: bool = True
    vae: str | None = None
    vae_fingerprint: str | None = None
    image_shape: tuple[int, int, int] | None = None
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    files: str | None = None


# What stays on disk until it is drawn.
StreamedData = ImageFilesData | LatentsData
Data = ToyData | PointsData | DigitsData | ImagesData | ImageFilesData | LatentsData
# What encoders are trained on.
EncoderData = ImagesData | ImageFilesData | LatentsData
