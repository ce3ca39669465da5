"""Where a run goes that is given no folder: a place by the name of its data, which no run of other data has taken."""

from collections.abc import Collection
from pathlib import Path

from drifting.config import AnyConfig, EncoderRunConfig, LatentsData
from drifting.errors import InputError
from drifting.run_folder import CONFIG, saved_config, unstarted

_RUNS = Path("runs")


def folder_of_data(name: str, kind: str, taken: Collection[str]) -> Path:
    """Return runs/NAME for a run of one's own data, or runs/KIND-NAME where the name is that of something else, one of `taken`."""
    return _RUNS / (f"{kind}-{name}" if name in taken or not name else name)


def check_default(folder: Path, config: AnyConfig) -> None:
    """Raise InputError if the folder that a run has by default holds one of another preset or of other data, which says whose."""
    if not (folder / CONFIG).exists() or unstarted(folder) is not None:
        return
    saved = saved_config(folder)
    if (_kind(saved), _origin(saved)) == (_kind(config), _origin(config)) or _made_of(config, saved, folder):
        return
    whose = f"the run '{_kind(saved)}' on {_origin(saved)}"
    raise InputError(f"save_dir is '{folder}' by default, which holds {whose}: pass --save-dir with another folder")


def _kind(config: AnyConfig) -> str:
    return f"{config.preset} {config.kind}" if isinstance(config, EncoderRunConfig) else config.preset


def _origin(config: AnyConfig) -> str:
    """Return what a run is trained on: a path, the id of a data set, or a name."""
    path = getattr(config.data, "path", None)
    if path is not None:
        return str(Path(path).expanduser().resolve()) if Path(path).expanduser().exists() else path
    return str(getattr(config.data, "dataset", getattr(config.data, "name", config.preset)))


def _made_of(config: AnyConfig, saved: AnyConfig, folder: Path) -> bool:
    """Return whether a run is on the latents that are made of the images of a configuration, see `own_latents`."""
    if not isinstance(config.data, LatentsData) or config.data.path is None or _kind(config) != _kind(saved):
        return False
    images = Path(config.data.path).expanduser().resolve()
    return getattr(saved.data, "path", None) == str(folder.resolve().parent / f"{images.name}-latents")
