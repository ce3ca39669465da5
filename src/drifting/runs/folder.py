"""The folder of a run: which files are a run's own, who may write there, what its configuration says, and how a training ends.

A training that does not reach its last step ends with a sentence that says what is safe and how to go on. One that ends before its
first checkpoint leaves nothing that is in the way of starting again.
"""

import dataclasses
import json
import os
import platform
import shlex
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from drifting import __version__
from drifting import config as configuration
from drifting._files import clear_scratch, remedy, storage_fault
from drifting._json import parse_json
from drifting.checkpoint import checkpoints, steps_done
from drifting.config import AnyConfig, RunConfig
from drifting.distributed import LostProcessError, Processes, is_lost_process
from drifting.errors import InputError, StorageError, reason
from drifting.evaluation.extractors import CLASSIFIER_WEIGHTS, TRAINED_ON
from drifting.hub.artifact import ReleasedConfig
from drifting.presets.encoders import CONFIG, ENCODER_WEIGHTS
from drifting.training.loop import Interrupted
from drifting.training.recorder import CHECKPOINTS, EARLIER_SNAPSHOTS, SNAPSHOTS
from drifting.training.state import DivergenceError

WEIGHTS, ENCODER_METRICS = "generator.safetensors", "encoder.json"
METRICS, LOG, REPORT = "metrics.json", "metrics.jsonl", "report.html"
STATISTICS, ENVIRONMENT = "statistics", "environment.jsonl"
RECONSTRUCTION = "ae_reconstruction.png"
# Files of a shared run, see `publish` -> largest size in bytes that is downloaded.
CARD, PICTURE = "README.md", "samples.png"
SHARED = {CONFIG: 10**6, WEIGHTS: 4 * 10**9, METRICS: 10**7, PICTURE: 10**8, CARD: 10**6}

# Checkpoints of the encoder that a generator's run trains first.
ENCODER_CHECKPOINTS = "encoder-checkpoints"
_LOGS = (LOG, METRICS, SNAPSHOTS, EARLIER_SNAPSHOTS, CHECKPOINTS, ENCODER_CHECKPOINTS, "features", STATISTICS)
_PICTURES = (
    "samples.png",
    "progress.png",
    "drift_field.png",
    "losses.png",
    "training.gif",
    "comparison.png",
    RECONSTRUCTION,
    REPORT,
)

# Folders of trackers.
_TRACKED = ("tensorboard", "wandb")
# Files of a run that has results.
_RESULTS = (WEIGHTS, CLASSIFIER_WEIGHTS, METRICS)
_OWN = (CONFIG, WEIGHTS, ENCODER_WEIGHTS, ENCODER_METRICS, CLASSIFIER_WEIGHTS, TRAINED_ON, *_LOGS, *_PICTURES, REPORT)

# Settings that may change when a run is resumed. How a step is cut, computed and shared changes nothing but memory and time.
_MUTABLE = ("steps", "microbatch_size", "labels_per_microbatch", "compile", "gradient_checkpointing", "parallel", "device", "keep")

# Facts about the data that runs of earlier versions did not save.
_FOUND_LATER = ("class_names", "counts", "count", "fingerprint")


def saved_config(folder: str | Path) -> AnyConfig:
    """Return the configuration of the run in a folder, finished or not, or raise InputError."""
    path = Path(folder) / CONFIG
    if not path.exists():
        raise InputError(f"save_dir is '{folder}', which holds no run to resume: leave out --resume, or name another folder")
    return _trained(path, f"save_dir is '{folder}'")


def read_saved(path: str | Path) -> AnyConfig:
    """Return the configuration of a training from its file, or from that in a folder, or raise InputError."""
    file = Path(path) / CONFIG if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise InputError(f"config is '{path}', where there is none: name the {CONFIG} of a run, or its folder")
    return _trained(file, f"config is '{path}'")


def _trained(file: Path, subject: str) -> AnyConfig:
    config = configuration.load_config(file)
    if isinstance(config, ReleasedConfig):
        raise InputError(f"{subject}, a converted artifact, which was not trained here: name another folder")
    return config


def read_config(path: Path) -> RunConfig:
    """Return the configuration of a generator's run from its file, or raise InputError."""
    config = configuration.load_config(path)
    if isinstance(config, ReleasedConfig):
        raise InputError(f"run is '{path.parent}', a converted artifact, which can only be sampled: name the folder of a training")
    if not isinstance(config, RunConfig):
        kind = f"{'an' if config.noun == 'encoder' else 'a'} {config.noun}"
        raise InputError(f"run is '{path.parent}', {kind}, not a generator: name the folder of a generator")
    return config


def claim(folder: Path, config: AnyConfig, *, resume: bool, overwrite: bool) -> None:
    """Prepare the folder for a training, or raise InputError if it holds another run."""
    if not resume:
        make_room(folder, overwrite=overwrite, fix="pass --resume or --overwrite", config=config)
        return
    saved = saved_config(folder)
    if saved.noun != config.noun:
        raise InputError(f"save_dir is '{folder}', which holds no {config.noun} to resume: name another folder")
    if getattr(saved.data, "path", None) == getattr(config.data, "path", None):
        saved.data.check()
    _check_same(saved, config)
    for newest in checkpoints(folder / CHECKPOINTS)[-1:]:
        steps_done(newest, config.optimization.steps)
    clear_writers(folder)


def note_environment(folder: Path, config: AnyConfig, step: int) -> None:
    """Write down with what a generator's training starts or goes on from a step: versions, machine, device, threads, processes."""
    facts = {
        "step": step,
        "started": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "drifting": __version__,
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(config.device),
        "device": config.device,
        "threads": torch.get_num_threads(),
        "processes": int(os.environ.get("WORLD_SIZE") or 1),
    }
    with (folder / ENVIRONMENT).open("a") as file:
        file.write(json.dumps(facts) + "\n")


def _processor(device: str) -> str:
    """Return the name of a GPU, or else of the processor; empty if it is not known."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor()


def read_environments(folder: Path) -> list[dict[str, Any]]:
    """Return what `note_environment` wrote, one entry for each start; none for a run of an earlier version.

    Raises:
        InputError: if the file is damaged.
    """
    path = folder / ENVIRONMENT
    try:
        *lines, _ = path.read_text().split("\n") if path.exists() else [""]
        found = [parse_json(line) for line in lines]
        if not all(isinstance(each, dict) and isinstance(each.get("step"), int) for each in found):
            raise ValueError("a line has no step")
    except (OSError, ValueError) as error:
        raise InputError(f"environment is '{path}', which is damaged ({reason(error)}): delete it") from None
    return found


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint of the generator, else of its encoder, in the folder of a run; None if there is none."""
    saved = [*checkpoints(folder / ENCODER_CHECKPOINTS), *checkpoints(folder / CHECKPOINTS)]
    return saved[-1] if saved else None


def unstarted(folder: Path) -> AnyConfig | None:
    """Return the configuration of a run that ended before its first checkpoint; None if the folder holds no such run."""
    there = [name for name in (CONFIG, *_RESULTS) if (folder / name).exists()]
    if there != [CONFIG] or newest_checkpoint(folder) is not None:
        return None
    try:
        config = saved_config(folder)
    except InputError:  # no training's, or damaged
        return None
    return config if config.noun == "generator" or not (folder / ENCODER_WEIGHTS).exists() else None


def clear_unstarted(folder: Path, config: AnyConfig) -> None:
    """Delete the files of a run that ended before its first checkpoint, except an encoder that `config` would train too."""
    saved = unstarted(folder)
    if saved is None:
        return
    own = [LOG, ENVIRONMENT, SNAPSHOTS, EARLIER_SNAPSHOTS, CHECKPOINTS, "features"]
    alike = saved.noun == config.noun == "generator"
    alike = alike and all(getattr(saved, part) == getattr(config, part) for part in ("preset", "data", "encoder", "seed"))
    if not alike or not (folder / ENCODER_WEIGHTS).exists():
        own += [CONFIG, ENCODER_WEIGHTS, ENCODER_METRICS, RECONSTRUCTION]
    for name in own:
        _delete(folder / name)


def check_room(folder: Path, *, overwrite: bool, fix: str = "pass --overwrite") -> list[Path]:
    """Return the files of a run in the folder, or raise InputError with the fix if they may not be deleted."""
    own = [folder / name for name in _OWN if (folder / name).exists()]
    if own and not overwrite and unstarted(folder) is None:
        raise InputError(f"save_dir is '{folder}', which already holds a run: {fix}, or choose another folder")
    return own


def make_room(folder: Path, *, overwrite: bool, fix: str = "pass --overwrite", config: AnyConfig | None = None) -> None:
    """Create the folder and delete an earlier run, or raise InputError as `check_room` does; see `clear_unstarted` for `config`."""
    own = check_room(folder, overwrite=overwrite, fix=fix)
    if overwrite or config is None:
        for path in own:
            _delete(path)
    else:
        clear_unstarted(folder, config)
    # Alone, it makes no run: a training that was killed at its start leaves it.
    for name in (ENVIRONMENT, *_TRACKED):
        _delete(folder / name)
    clear_writers(folder)
    folder.mkdir(parents=True, exist_ok=True)


def clear_writers(folder: Path) -> None:
    """Remove the temporary files of killed writers in the folder of a run; the caller must hold the folder."""
    clear_scratch(folder, *(folder / name for name in (CHECKPOINTS, ENCODER_CHECKPOINTS, "features", STATISTICS)))


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _check_same(saved: AnyConfig, config: AnyConfig) -> None:
    """Raise InputError naming the first setting in which a resumed run would differ from the saved one."""
    may_change = tuple(name for name in _MUTABLE if not (saved.plans_all_steps and name == "steps"))
    changed = {part: _with_settings_of(getattr(saved, part), getattr(config, part), may_change) for part in saved.changeable}
    fields = vars(config.data)
    known = {name: fields[name] for name in _FOUND_LATER if name in fields and vars(saved.data).get(name, 0) is None}
    saved = _with_settings_of(dataclasses.replace(saved, **changed, data=saved.data.changed(**known)), config, may_change)
    if saved == config:
        return
    before, after = (_flat(configuration.to_json(each)) for each in (saved, config))
    name = next(name for name in {**before, **after} if before.get(name) != after.get(name))
    raise InputError(
        f"{name} is {after.get(name)}, but the run to resume has {before.get(name)}: "
        f"only {', '.join(may_change[:-1])} and {may_change[-1]} may change; "
        "use --overwrite or another --save-dir for a new run"
    )


def _with_settings_of(saved: Any, config: Any, may_change: Sequence[str]) -> Any:
    """Return a saved configuration, or a part of it, with the settings that may change as in another configuration."""
    names = [name for name in may_change if hasattr(saved, name) and hasattr(config, name)]
    return dataclasses.replace(saved, **{name: getattr(config, name) for name in names})


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return flat


def check_default(folder: Path, config: AnyConfig) -> None:
    """Raise InputError if the default folder of a run holds a run of another preset or on other data."""
    if not (folder / CONFIG).exists() or unstarted(folder) is not None:
        return
    saved = saved_config(folder)
    if (saved.title, _origin(saved)) == (config.title, _origin(config)) or _is_on_latents_of(config, saved, folder):
        return
    whose = f"the run '{saved.title}' on {_origin(saved)}"
    raise InputError(f"save_dir is '{folder}' by default, which holds {whose}: pass --save-dir with another folder")


def _origin(config: AnyConfig) -> str:
    """Return the origin of the data: a path, the id of a data set, or a name."""
    path = getattr(config.data, "path", None)
    if path is not None:
        return str(Path(path).expanduser().resolve()) if Path(path).expanduser().exists() else path
    return str(getattr(config.data, "dataset", getattr(config.data, "name", config.preset)))


def _is_on_latents_of(config: AnyConfig, saved: AnyConfig, folder: Path) -> bool:
    """Return whether a saved run uses the latents of the images of a configuration; see `latents.with_latents`."""
    path = getattr(config.data, "path", None)
    if not config.data.latent or path is None or config.title != saved.title:
        return False
    images = Path(path).expanduser().resolve()
    return getattr(saved.data, "path", None) == str(folder.resolve().parent / f"{images.name}-latents")


LESS_MEMORY = (
    "pass a smaller --batch-size or, for a generator, --microbatch-size, --labels-per-microbatch or --gradient-checkpointing True"
)


class Stopped(Interrupted, KeyboardInterrupt):
    """Training was stopped in the middle of a step or of other work; only the last checkpoint is saved."""

    def __init__(self, message: str) -> None:
        Exception.__init__(self, message)


class OutOfMemoryError(MemoryError):
    """There is not enough memory. The message says how to need less, and how to go on."""


def command_to_go_on(config: AnyConfig, folder: Path, processes: int = 1) -> str:
    """Return the command that continues a training on this number of processes."""
    launched = f"torchrun --nproc-per-node {processes} -m " if processes > 1 else ""
    return f"{launched}drifting {config.command} --save-dir {shlex.quote(str(folder))} --resume"


@contextmanager
def ending(folder: Path, config: AnyConfig, processes: Processes, *, resume: bool) -> Iterator[None]:
    """Turn any error that ends a training into one that says what is safe and how to go on.

    Args:
        folder: folder of the run.
        config: configuration of the run.
        processes: the processes that train it; the first one clears up.
        resume: whether the run was resumed.

    Raises:
        Interrupted: if it is stopped by Ctrl-C while nothing waits for that.
        StorageError: if a file cannot be written or read.
        OutOfMemoryError: if the memory does not suffice.
        DivergenceError: if the loss becomes NaN or infinite.
        LostProcessError: if another process is gone.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if processes.is_main_process and not resume:
            with suppress(OSError, InputError):  # the disk that made it end
                clear_unstarted(folder, config)
        explained = _explained(error, folder, command_to_go_on(config, folder, processes.size))
        if explained is None:
            raise
        raise explained from error


def _explained(error: BaseException, folder: Path, command: str) -> BaseException | None:
    """Return the error to raise in place of another; None for an error that stays as it is."""
    if isinstance(error, Interrupted | InputError | StorageError | OutOfMemoryError):
        return None
    newest = newest_checkpoint(folder)
    if newest is None:
        safe, go_on = "nothing is saved before the first checkpoint", "start the same command again"
    else:
        safe, go_on = f"its checkpoint {newest.name} is whole", f"go on with: {command}"
    following = f"{go_on[0].upper()}{go_on[1:]}"
    explained: BaseException | None = None
    if isinstance(error, KeyboardInterrupt):
        explained = Stopped(f"Stopped; {safe}. {following}")
    elif (lack := out_of_memory(error)) is not None:
        explained = OutOfMemoryError(f"{lack}: {LESS_MEMORY}" + ("" if newest is None else f"; {safe}, {go_on}"))
    elif isinstance(error, DivergenceError):
        again = "start again" if newest is None else f"start again with --overwrite or in another --save-dir; {safe}"
        explained = DivergenceError(f"{error}, and {again}")
    elif is_lost_process(error):
        explained = LostProcessError(f"a process of this run was lost; {safe}. {following}")
    elif (fault := storage_fault(error)) is not None:
        explained = StorageError(f"{fault}; {safe}. {remedy(error)}, then {go_on}")
        if not folder.is_dir():
            explained = StorageError(f"the run folder '{folder}' is gone, with all that was in it: start again")
    return explained


def out_of_memory(error: BaseException) -> str | None:
    """Return a message about missing memory; None for an error of another kind."""
    # On a CPU, torch has no error class of its own for it.
    if not (isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate" in str(error)):
        return None
    return f"out of memory ({' '.join(str(error).partition(chr(10))[0].split())[:90]})"
