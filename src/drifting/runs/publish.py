"""Share a trained run: a folder of its configuration, weights, figures, picture and model card, and a repository on the Hub.

The folder holds safetensors and JSON alone, and is a run folder for `load_run`, `drifting sample` and `drifting evaluate`. It holds
no real data: the picture shows samples, and paths of this machine are left out.
"""

import re
import tempfile
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch

from drifting import config as configuration
from drifting._files import atomic_path, check_writable
from drifting._json import save_json
from drifting.checkpoint import check_finite, save_tensors
from drifting.errors import InputError
from drifting.evaluation.tables import read_figures
from drifting.hub.repository import check_repository_id, upload_folder
from drifting.runs.card import model_card
from drifting.runs.folder import CARD, CONFIG, METRICS, PICTURE, SHARED, WEIGHTS
from drifting.runs.samples import TrainedGenerator, write_samples

# What `hf download` adds to a folder. The history of a clone, in .git, is not there to be replaced.
_OF_THE_HUB = (".gitattributes", ".cache")
# Points and images in the picture.
_POINTS, _IMAGES, _PER_CLASS = 2000, 64, 8
# A path of this machine inside a text, up to its last name.
_PLACE = re.compile(r"(?<![\w.:/\\])(?:~|[A-Za-z]:)?[/\\](?:[^\s'\"/\\]+[/\\])+")


def save_pretrained(
    run: TrainedGenerator, folder: str | Path, *, name: str | None = None, half: bool = False, overwrite: bool = False
) -> list[Path]:
    """Write a run into a folder to share, completely or not at all, and return its files.

    Args:
        run: the run.
        folder: the folder.
        name: what the example of the model card loads; the name of the folder by default.
        half: store the weights in float16, in half the space. They are float32 again when they are loaded, but rounded.
        overwrite: replace an earlier shared run in the folder.

    Raises:
        InputError: if the folder holds anything else or cannot be written, or a weight does not fit float16.
    """
    folder = Path(folder)
    _check_folder(run, folder, overwrite=overwrite)
    metrics = read_figures(run.folder / METRICS, "evaluate the run again")
    weights = dict(run.generator.state_dict())
    if half:
        weights = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
        check_finite(weights.items(), f"{run.folder} in float16")
    facts = _without_places({CONFIG: configuration.to_json(run.config), METRICS: metrics})
    with atomic_path(folder) as scratch:
        scratch.mkdir()
        save_json(scratch / CONFIG, facts[CONFIG])
        save_tensors(scratch / WEIGHTS, weights)
        if metrics:
            save_json(scratch / METRICS, facts[METRICS])
        drawn = _draw(run, scratch / PICTURE)
        dtype = str(torch.float16 if half else next(run.generator.parameters()).dtype).removeprefix("torch.")
        card = model_card(run, name or folder.resolve().name, facts[METRICS], picture=PICTURE if drawn else None, dtype=dtype)
        (scratch / CARD).write_text(card, encoding="utf-8")
    return [folder / file for file in SHARED if (folder / file).exists()]


def push_to_hub(run: TrainedGenerator, repository: str, *, private: bool | None = None, half: bool = False) -> str:
    """Upload a run to a repository of the Hugging Face Hub and return its address; arguments as of `save_pretrained`.

    Args:
        run: the run.
        repository: owner/name; made if it does not exist. You must be logged in, with `hf auth login`.
        private: whether only the owner sees a new repository; None for the default of the owner.
        half: as in `save_pretrained`.

    Raises:
        InputError: if the repository cannot be written to.
    """
    name = check_repository_id("repository", repository)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "shared"
        save_pretrained(run, folder, name=name, half=half)
        return upload_folder(folder, name, private=private, message=f"Share a generator of {run.config.data.title}")


def _check_folder(run: TrainedGenerator, folder: Path, *, overwrite: bool) -> None:
    if folder.exists() and folder.resolve() == run.folder.resolve():
        raise InputError(f"folder is '{folder}', the run itself: name another")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"folder is '{folder}', a file: name another")
    there = sorted(path.name for path in folder.glob("*"))
    if other := [name for name in there if name not in (*SHARED, *_OF_THE_HUB)]:
        raise InputError(f"folder is '{folder}', which holds other files, such as '{other[0]}': name another")
    if there and not overwrite:
        raise InputError(f"folder is '{folder}', which holds a shared run: pass --overwrite, or name another")
    check_writable(folder.parent, "folder")


def _draw(run: TrainedGenerator, picture: Path) -> bool:
    """Draw samples and return whether a picture can show them, and what it needs is here."""
    shape, classes = run.generator.sample_shape, run.generator.num_classes
    if shape != (2,) and len(shape) != 3:
        return False
    images = _IMAGES if classes is None or classes > _IMAGES else _PER_CLASS * classes
    try:
        write_samples(run, picture, _POINTS if shape == (2,) else images)
    except InputError:
        return False
    return True


def _without_places(values: Any) -> Any:
    """Return JSON values in which paths of this machine are their last names."""
    if isinstance(values, str):
        paths = (kind(values) for kind in (PurePosixPath, PureWindowsPath))
        return next((path.name for path in paths if path.is_absolute()), _PLACE.sub("", values))
    if isinstance(values, dict):
        # A class may be named like a path.
        return {key: value if key == "class_names" else _without_places(value) for key, value in values.items()}
    return [_without_places(value) for value in values] if isinstance(values, list | tuple) else values
