"""The small weights that a release offers: generators of the toys, the digits and MNIST, as folders to share.

They are made on any machine by one command, and are no part of the repository.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from drifting import presets
from drifting._checks import nearest_name
from drifting.data.points import TOYS
from drifting.errors import InputError
from drifting.runs.publish import save_pretrained
from drifting.runs.train import train

# Largest size of a folder in bytes.
MOST_BYTES = 2 * 10**6
# The network of MNIST is narrower than that of its preset, to fit in float16.
_NARROW = {"width": 448, "code_dim": 128, "decoder_width": 32, "decoder_blocks": 0}
# Name of the folder -> the preset, its arguments and settings.
SMALL: dict[str, dict[str, Any]] = {
    **{name: {"name": "toy", "dataset": name} for name in TOYS},
    "digits": {"name": "digits"},
    "mnist": {"name": "mnist-pixel", **{f"generator.{name}": size for name, size in _NARROW.items()}},
}
# Name -> preset of the classifier that evaluates it.
_CLASSIFIERS = {"mnist": "mnist-classifier"}


def make_weights(folder: str | Path, names: Iterable[str] = tuple(SMALL)) -> list[Path]:
    """Train generators, evaluate them, and write them to share in float16; return their folders.

    Args:
        folder: folder of the shared folders; the runs go to its folder runs/, where earlier ones are replaced.
        names: which of `SMALL`.

    Raises:
        InputError: for an unknown name, before anything is trained; if a folder holds other files, or is too large.
    """
    names = list(names)
    for name in names:
        if name not in SMALL:
            known = ", ".join(SMALL)
            raise InputError(f"name is '{name}': did you mean '{nearest_name(name, SMALL)}'? There are {known}")
    return [_make(Path(folder), name) for name in names]


def _make(folder: Path, name: str) -> Path:
    classifier = None
    if name in _CLASSIFIERS:
        classifier = train(presets.preset(_CLASSIFIERS[name]), folder / "runs" / _CLASSIFIERS[name], overwrite=True).folder
    run = train(presets.preset(**SMALL[name]), folder / "runs" / name, overwrite=True)
    run.evaluate(extractor=None if classifier is None else str(classifier))
    files = save_pretrained(run, folder / name, half=True, overwrite=True)
    size = sum(path.stat().st_size for path in files)
    if size > MOST_BYTES:
        raise InputError(f"folder is '{folder / name}' of {size / 1e6:.2f} MB, more than {MOST_BYTES / 1e6:g}: narrow the network")
    return folder / name
