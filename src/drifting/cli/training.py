"""The commands that train. Their options are the settings of a configuration.

The configuration is found first, from the name of the preset and the arguments of the preset. Then each of its settings is an
option whose default is the value in the configuration.
"""

import dataclasses
import functools
import inspect
import shutil
import textwrap
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tyro.conf import Positional

from drifting.cli._parse import HELP, Option, Reader, subject_of
from drifting.errors import InputError


@dataclass(frozen=True, kw_only=True)
class _Run:
    """The folder of a run, and how the run begins.

    Attributes:
        save_dir: folder of the run; by default runs/PRESET, runs/DATASET or, for your own points or images, runs/NAME.
        config: a saved configuration to train again instead of a preset, such as runs/NAME/config.json.
        resume: continue the run in the folder.
        overwrite: delete the run in the folder first.
        smoke: try a tiny version (two steps, a checkpoint, an evaluation) on synthetic data unless --data is given; by default in
            runs/smoke/PRESET, which it replaces.
    """

    save_dir: Path | None = None
    config: Path | None = None
    resume: bool = False
    overwrite: bool = False
    smoke: bool = False


@dataclass(frozen=True, kw_only=True)
class _EncoderRun:
    """The folder of an encoder, and how its training begins.

    Attributes:
        save_dir: folder of the encoder; runs/NAME-KIND by default, or runs/encoder-NAME-KIND if that is the name of a preset.
        resume: continue the training in the folder.
        overwrite: delete the content of the folder first.
    """

    save_dir: Path | None = None
    resume: bool = False
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class _Cache:
    """The images of a cache of latents.

    Attributes:
        data: a folder with one sub-folder per class, optionally inside train/ and val/.
        out: the folder of the cache.
        vae: name or folder of the auto-encoder.
        overwrite: delete an existing cache.
    """

    data: Path
    out: Path
    vae: str = "stabilityai/sd-vae-ft-mse"
    overwrite: bool = False


# Settings of a run that also have a short name.
_SHORT = {
    *("steps", "encoder_steps", "batch_size", "learning_rate", "optimizer", "temperatures", "seed", "device", "parallel"),
    *("precision", "keep", "microbatch_size", "labels_per_microbatch", "gradient_checkpointing", "compile"),
}
# Part of a configuration -> heading of its settings.
_HEADINGS = {
    "": "Run",
    "data": "Data",
    "generator": "Generator",
    "encoder": "Feature encoder",
    "loss": "Loss",
    "schedule": "Schedule",
    "bank": "Memory bank",
}
_SWITCHES = frozenset({"--resume", "--overwrite", "--smoke", "--unconditional", "--no-unconditional", *HELP})


def train(words: Positional[tuple[str, ...]], /) -> Callable[[], None]:
    """Train a preset into a run folder, with its pictures. `torchrun -m drifting train ...` trains it on several devices.

    Args:
        words: the name of a preset, and its options.
    """
    from drifting import presets
    from drifting.presets.settings import CHOICES

    name, rest = subject_of(words, presets.PRESETS, _SWITCHES)
    helping = bool(HELP & set(words))
    if name is None and helping and not any(word.startswith("--config") for word in words):
        return _list_presets
    choices = [] if name is None else presets.choices(name)
    reader = Reader(
        command="train" if name is None else f"train {name}",
        description=_summary(train),
        subject=f"the preset '{name}'",
        other_options=_SHORT | CHOICES.keys(),
        headings=tuple(_HEADINGS.values()),
    )
    own = _fields(_Run)
    first = reader.read([*own, *_choices(choices)], rest, partial=True)
    run, arguments = _Run(**_part(first, _Run)), {key: value for key, value in first.items() if key in CHOICES}
    folder = Path() if name is None else run.save_dir or presets.default_folder(name, **arguments)
    config = _begin(name, run, arguments, folder, only_shape=helping or run.smoke)
    chosen = [each for each in choices if each.name != "encoder_weights" or hasattr(getattr(config, "encoder", None), "weights")]
    changes = reader.read([*own, *_config_options(config, chosen)], rest)
    changes = {key: value for key, value in changes.items() if key not in (*first, *CHOICES)}
    if name is not None and run.smoke:
        return functools.partial(_try, name, run, arguments, changes)
    return functools.partial(_train, run, run.save_dir or folder, config, changes)


def _begin(name: str | None, run: _Run, arguments: dict[str, Any], folder: Path, *, only_shape: bool) -> Any:
    """Return the configuration to start from: that of a preset, of the run to resume, or a saved one."""
    from drifting import presets

    if run.config is not None:
        from drifting.runs.folder import read_saved

        if name is not None:
            raise InputError(f"config is '{run.config}', but the preset '{name}' is named too: leave one of them out")
        if run.resume or run.smoke:
            raise InputError(f"config is '{run.config}', which starts a run anew: leave out --resume and --smoke")
        if run.save_dir is None and not only_shape:
            raise InputError("save_dir is missing: pass --save-dir with a folder for the run of --config")
        return read_saved(run.config)
    if name is None:
        raise InputError("preset is missing: see drifting train --help")
    if run.resume and not only_shape:
        from drifting.runs.folder import saved_config

        config = saved_config(folder)
        presets.check_choices(config, name, **arguments)
        return config
    needed = [each.name for each in presets.choices(name) if each.value is inspect.Parameter.empty] if only_shape else []
    return presets.preset(name, **{**dict.fromkeys(needed, "FOLDER"), **arguments})


def _try(name: str, run: _Run, arguments: dict[str, Any], changes: dict[str, Any]) -> None:
    from drifting.runs.smoke import try_preset

    if run.resume:
        raise InputError("resume is given with smoke, which begins anew: leave one of them out")
    trained = try_preset(name, run.save_dir, overwrite=run.overwrite, settings=changes, **arguments)
    print(*trained.summary(), f"{name} works: two steps, a checkpoint and an evaluation are in {trained.folder}", sep="\n")


def _train(run: _Run | _EncoderRun, folder: Path, config: Any, changes: dict[str, Any]) -> None:
    from drifting import presets, runs
    from drifting.runs.folder import check_default

    config = presets.adjust(config, **changes) if changes else config
    if run.save_dir is None and not run.resume:
        check_default(folder, config)
    print(*runs.train(config, folder, resume=run.resume, overwrite=run.overwrite).summary(), sep="\n")


def train_encoder(words: Positional[tuple[str, ...]], /) -> Callable[[], None]:
    """Train a feature encoder on its own and print the accuracy of a linear classifier in its features.

    Args:
        words: supervised, simclr or mae, and its options.
    """
    from drifting.presets import PRESETS, encoders, folder_of_data
    from drifting.presets.settings import CHOICES, settings

    kind, rest = subject_of(words, encoders.KINDS, _SWITCHES)
    choices = encoders.choices(kind or "supervised")
    every = (setting.short for each in encoders.KINDS for setting in settings(encoders.encoder(each)))
    reader = Reader(
        command=f"train-encoder {kind or 'KIND'}",
        description=f"{_summary(train_encoder)} --help after {', '.join(encoders.KINDS)} shows the settings of each.",
        subject=f"'{kind}'",
        other_options={name for name in every if name is not None},
        headings=tuple(_HEADINGS.values()),
    )
    own = _fields(_EncoderRun)
    if kind is None:
        if HELP & set(words):
            reader.read([*own, *_choices(choices)], ["--help"])
        raise InputError("kind is missing: see drifting train-encoder --help")
    first = reader.read([*own, *_choices(choices)], rest, partial=True)
    run = _EncoderRun(**_part(first, _EncoderRun))
    arguments = {key: value for key, value in first.items() if key not in vars(run)}
    called = encoders.called(arguments.get("name"), arguments.get("data"))
    folder = run.save_dir or folder_of_data(f"{called}-{kind}", "encoder", PRESETS)
    if run.resume:
        from drifting.runs.folder import saved_config

        config = encoders.resumed_encoder(saved_config(folder), kind, **arguments)
    else:
        config = encoders.encoder(kind, **arguments)
    changes = reader.read([*own, *_config_options(config, choices, every=True)], rest)
    changes = {key: value for key, value in changes.items() if key not in (*first, *CHOICES)}
    return functools.partial(_train, run, folder, config, changes)


def latents(words: Positional[tuple[str, ...]], /) -> Callable[[], None]:
    """Write the latents of a folder of images and their mirror images, to train on. Run it again to complete an interrupted cache.

    Args:
        words: the options.
    """
    from drifting.data.latents_writer import CacheSettings

    reader = Reader(command="latents", description=_summary(latents))
    read = reader.read([*_fields(_Cache), *_fields(CacheSettings, "Latents")], words)
    return functools.partial(_latents, _Cache(**_part(read, _Cache)), CacheSettings(**_part(read, CacheSettings)))


def _latents(cache: _Cache, settings: Any) -> None:
    from drifting.data.latents_writer import write_latents

    index = write_latents(cache.data, cache.vae, cache.out, settings, overwrite=cache.overwrite)
    print(f"{index.count} images, latents {index.latent_shape}", cache.out, sep="\n")


def _list_presets() -> None:
    """Print the presets of `drifting train`."""
    from drifting.presets import GROUPS, PRESETS

    print("usage: drifting train PRESET [OPTIONS]", "", wrapped(_summary(train), 0), sep="\n")
    print("", wrapped("drifting train PRESET --help shows all settings of a preset, with its own values.", 0), sep="\n")
    for heading, names in GROUPS.items():
        print("", heading, *(wrapped(f"{name}: {PRESETS[name].what}", 2, hanging=4) for name in names), sep="\n")
    print("", "Options of all presets", sep="\n")
    for option in _fields(_Run):
        print(wrapped(f"{option.flags[0]}: {option.help}", 2, hanging=4))


def _summary(command: Callable[..., Any]) -> str:
    return (command.__doc__ or "").partition("\n")[0]


def _part(values: dict[str, Any], kind: type) -> dict[str, Any]:
    return {field.name: values[field.name] for field in dataclasses.fields(kind) if field.name in values}


def _fields(kind: Any, heading: str = "Run") -> list[Option]:
    """Return the fields of a dataclass as options."""
    from drifting.presets.settings import described

    kinds, help_of = typing.get_type_hints(kind), described(kind)
    return [
        Option(
            name=field.name,
            kind=kinds[field.name],
            default=field.default,
            help=help_of[field.name],
            heading=heading,
            switch=kinds[field.name] is bool,
        )
        for field in dataclasses.fields(kind)
    ]


def _choices(choices: Sequence[Any], values: Mapping[str, Any] = MappingProxyType({})) -> list[Option]:
    """Return the arguments of a preset or an encoder as options, each also with the dotted name of its setting.

    Args:
        choices: arguments of a preset or an encoder.
        values: value of each setting by its dotted name, shown as defaults.
    """
    from drifting.presets.settings import CHOICES

    options = []
    for each in choices:
        needed, switch, dotted = each.value is inspect.Parameter.empty, each.kind is bool, CHOICES.get(each.name, "encoder.")
        shown = "required" if needed else f"default: {values[dotted]}" if dotted in values and not switch else None
        options.append(
            Option(
                name=each.name,
                kind=each.kind | None if needed else each.kind,
                default=None if needed else each.value,
                help=each.help,
                heading=_HEADINGS[dotted.partition(".")[0]],
                others=() if switch or each.name not in CHOICES else (dotted,),
                shown=shown,
                switch=switch,
            )
        )
    return options


def _config_options(config: Any, choices: Sequence[Any], *, every: bool = False) -> list[Option]:
    """Return the choices and all other settings of a configuration as options; with `every`, all of them have short names."""
    from drifting.config import RENAMED
    from drifting.presets.settings import CHOICES, adjust, described, settings

    known, schedule = settings(config), getattr(config, "schedule", None)
    options = _choices(choices, {each.name: each.value for each in known})
    if schedule is not None:
        size, text = f"default: {schedule.labels_per_step * schedule.generated}", described(adjust)["batch_size"]
        heading = _HEADINGS["schedule"]
        options.append(Option(name="batch_size", kind=int | None, default=None, help=text, heading=heading, shown=size))
    decided, called = {CHOICES.get(each.name) for each in choices}, {dotted: (name,) for name, dotted in CHOICES.items()}
    for each in known:
        if each.name in decided:
            continue
        others = (each.short,) if each.short != each.name and each.short and (every or each.short in _SHORT) else ()
        others += () if choices or each.name == "data.conditional" else called.get(each.name, ())
        others += ("drift_steps",) if "steps" in (each.name, *others) else ()
        earlier = [old for old, new in RENAMED.items() if new == each.name.rpartition(".")[2]]
        former = tuple(f"{name.rpartition('.')[0]}.{old}".lstrip(".") for name in (each.name, *others) for old in earlier)
        others += ("encoder_steps",) if each.name == "encoder.steps" and schedule is not None else ()
        heading = _HEADINGS[each.name.rpartition(".")[0].partition(".")[0]]
        facts = {"kind": each.kind, "default": each.value, "help": each.help, "heading": heading}
        options.append(Option(name=each.name, **facts, others=others, former=former))
    return options


def wrapped(text: str, indent: int, *, hanging: int | None = None) -> str:
    """Return a text wrapped to the width of the terminal."""
    width = max(40, shutil.get_terminal_size().columns)
    rest = " " * (indent if hanging is None else hanging)
    wrapper = textwrap.TextWrapper(width, " " * indent, rest, break_long_words=False, break_on_hyphens=False)
    return wrapper.fill(text)
