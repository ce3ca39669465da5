"""Commands that make samples of a run: as a file, or to compare them with real data."""

import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional

from drifting.cli.studies import print_table


@dataclass(frozen=True, kw_only=True)
class Draw:
    """How samples are drawn.

    Attributes:
        seed: random seed; sample i of a seed is always the same.
        guidance_scale: strength of the guidance, from 1 (none) up; that of the run by default.
        noise_scale: standard deviation of the noise; that of the run by default. Above it samples vary more, below it they are more
            typical.
    """

    seed: int = 0
    guidance_scale: float | None = None
    noise_scale: float | None = None

    def check(self) -> None:
        """Raise InputError for a noise scale that is out of range; what else there is, sampling checks."""
        from drifting._checks import check_noise_scale

        if self.noise_scale is not None:
            check_noise_scale(self.noise_scale)


def sample(
    run: Positional[str],
    /,
    *,
    num_samples: int = 64,
    labels: tuple[str, ...] | None = None,
    draw: Annotated[Draw, OmitArgPrefixes] = Draw(),
    vae: str | None = None,
    out: str = "samples.png",
    overwrite: bool = False,
) -> None:
    """Draw samples from a trained run, with one forward pass per sample.

    Args:
        run: run folder, owner/name of a run shared on the Hugging Face Hub, artifact of the authors (converted or not), or hub:NAME
            for a published artifact.
        num_samples: number of samples.
        labels: classes to cycle through, by name or number, as printed before training; all of them by default. If class names are
            whole numbers, such as folders 1, 2 and 3, a number is a name.
        draw: how samples are drawn.
        vae: Hub id or folder of the auto-encoder that decodes latents of an artifact; that of the paper by default.
        out: a picture of all samples (.png), an array (.npy) of points in their own coordinates or uint8 images [n, h, w, c], the
            same with labels in the form of ADM (.npz), or a folder of pictures (a name without a suffix, or with a final slash).
        overwrite: replace an existing file, or the pictures in the folder.
    """
    from drifting.runs import share as sharing

    draw.check()
    sharing.write_samples(run, out, num_samples, labels=labels, vae=vae, overwrite=overwrite, **vars(draw))
    print(out)


def evaluate(
    run: Positional[Path],
    /,
    *,
    extractor: str | None = None,
    real: str | None = None,
    num_samples: int | None = None,
    draw: Annotated[Draw, OmitArgPrefixes] = Draw(),
    batch_size: int | None = None,
    device: str = "cpu",
) -> None:
    """Compare samples of a trained run with real data; the figures are also written to metrics.json in the run folder.

    Args:
        run: the run folder.
        extractor: feature extractor for images: folder of a trained classifier (runs/NAME-classifier by default), a TorchScript
            Inception file (.pt), or pixels.
        real: real images to compare with: a folder of images, or their statistics (.safetensors or .npz); the images of the run by
            default. The figures in the column "real against real" are of other real images.
        num_samples: number of images or points to compare; 10,000 by default, or 50,000 with `real` or for data that are not held
            in memory. For digits it is fixed.
        draw: how samples are drawn.
        batch_size: number of images at a time, which bounds memory and changes nothing else.
        device: device of generator, decoder and extractor: cpu, cuda, cuda:1 or mps.
    """
    from drifting import runs
    from drifting.evaluation.tables import lines

    draw.check()
    trained = runs.load_run(run)
    trained.generator.noise_scale = draw.noise_scale or trained.generator.noise_scale
    with warnings.catch_warnings(record=True) as doubts:
        warnings.simplefilter("always", UserWarning)
        metrics = trained.evaluate(
            extractor=extractor,
            real=real,
            count=num_samples,
            seed=draw.seed,
            guidance_scale=draw.guidance_scale,
            batch_size=batch_size,
            device=device,
        )
    print_table(("metric", "value", "real against real", "better"), lines(metrics), title=str(run))
    for doubt in dict.fromkeys(str(doubt.message) for doubt in doubts):
        print(f"drifting: {doubt}", file=sys.stderr)
