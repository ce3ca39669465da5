"""The folder of a run: which files are a run's own, who may write there, and what its configuration says."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from drifting import config as configuration
from drifting.checkpoint import checkpoints, load_json, steps_done
from drifting.config import AnyConfig, ClassifierConfig, EncoderRunConfig, ImagesData, ReleasedConfig, RunConfig
from drifting.errors import InputError
from drifting.training.recorder import CHECKPOINTS, FRAMES

CONFIG, WEIGHTS, CLASSIFIER_WEIGHTS = "config.json", "generator.safetensors", "classifier.safetensors"
ENCODER_WEIGHTS, ENCODER_METRICS = "encoder.safetensors", "encoder.json"
TRAINED_ON = "trained_on.safetensors"
METRICS, LOG = "metrics.json", "metrics.jsonl"
STATISTICS = "statistics"
RECONSTRUCTION = "ae_reconstruction.png"
_LOGS = (LOG, METRICS, FRAMES, CHECKPOINTS, "features", STATISTICS)
_PICTURES = ("samples.png", "progress.png", "drift_field.png", "losses.png", "training.gif", "comparison.png", RECONSTRUCTION)
_OWN = (CONFIG, WEIGHTS, ENCODER_WEIGHTS, ENCODER_METRICS, CLASSIFIER_WEIGHTS, TRAINED_ON, *_LOGS, *_PICTURES)

# How a step is cut, computed and shared changes nothing but memory and time: a run that ran out of either may go on otherwise.
_FREE = ("steps", "micro_batch", "labels_per_pass", "compile", "checkpointing", "parallel", "device", "keep")


def saved_config(folder: str | Path) -> AnyConfig:
    """Return the configuration of the run in a folder, finished or not, or raise InputError."""
    path = Path(folder) / CONFIG
    if not path.exists():
        raise InputError(f"save_dir is '{folder}', which holds no run to resume: leave out --resume, or name another folder")
    config = configuration.from_json(load_json(path), str(path))
    if isinstance(config, ReleasedConfig):
        raise InputError(f"save_dir is '{folder}', a converted artifact, which was not trained here: name another folder")
    if isinstance(config, EncoderRunConfig) and isinstance(config.data, ImagesData):
        raise InputError(f"save_dir is '{folder}', an encoder, which is trained in one go: name the folder of another run")
    return config


def read_config(path: Path) -> RunConfig:
    """Return the configuration of a generator's run from its file, or raise InputError."""
    config = configuration.from_json(load_json(path), str(path))
    if isinstance(config, ReleasedConfig):
        raise InputError(f"run is '{path.parent}', a converted artifact, which can only be sampled: name the folder of a training")
    if not isinstance(config, RunConfig):
        kind = "a classifier" if isinstance(config, ClassifierConfig) else "an encoder"
        raise InputError(f"run is '{path.parent}', {kind}, not a generator: name the folder of a generator")
    return config


def claim(folder: Path, config: RunConfig | EncoderRunConfig, *, resume: bool, overwrite: bool) -> None:
    """Make the folder ready for the training, or raise InputError if another run is in it."""
    if not resume:
        in_one_go = isinstance(config, EncoderRunConfig) and isinstance(config.data, ImagesData)
        return make_room(folder, overwrite=overwrite, mend="pass --overwrite" if in_one_go else "pass --resume or --overwrite")
    saved = saved_config(folder)
    if isinstance(config, RunConfig):
        _check_same(read_config(folder / CONFIG), config)
    elif isinstance(saved, EncoderRunConfig):
        _check_same(saved, config)
    else:
        raise InputError(f"save_dir is '{folder}', which holds no encoder to resume: name another folder")
    for newest in checkpoints(folder / CHECKPOINTS)[-1:]:
        steps_done(newest, config.schedule.steps if isinstance(config, RunConfig) else config.encoder.steps)


def check_room(folder: Path, *, overwrite: bool, mend: str = "pass --overwrite") -> list[Path]:
    """Return what a run left in the folder, or raise InputError with the mend if there is some that may not be deleted."""
    own = [folder / name for name in _OWN if (folder / name).exists()]
    if own and not overwrite:
        raise InputError(f"save_dir is '{folder}', which already holds a run: {mend}, or choose another folder")
    return own


def make_room(folder: Path, *, overwrite: bool, mend: str = "pass --overwrite") -> None:
    """Make the folder, empty of runs, or raise InputError as `check_room` does."""
    for path in check_room(folder, overwrite=overwrite, mend=mend):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    folder.mkdir(parents=True, exist_ok=True)


def _check_same(saved: AnyConfig, asked: AnyConfig) -> None:
    """Raise InputError naming the first setting in which a resumed run would differ from the saved one."""
    parts = ("schedule", "generator") if isinstance(saved, RunConfig) else ("encoder",)
    free = {part: _as_in(getattr(saved, part), getattr(asked, part)) for part in parts}
    saved = _as_in(dataclasses.replace(saved, **free), asked)
    if saved == asked:
        return
    before, after = (_flat(configuration.to_json(config)) for config in (saved, asked))
    name = next(name for name in {**before, **after} if before.get(name) != after.get(name))
    raise InputError(
        f"{name} is {after.get(name)}, but the run to resume has {before.get(name)}: "
        f"only {', '.join(_FREE[:-1])} and {_FREE[-1]} may change; "
        "use --overwrite or another --save-dir for a new run"
    )


def _as_in(saved: Any, asked: Any) -> Any:
    """Return a saved configuration, or a part of it, with what may change as it is asked for."""
    names = [name for name in _FREE if hasattr(saved, name) and hasattr(asked, name)]
    return dataclasses.replace(saved, **{name: getattr(asked, name) for name in names})


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return flat
