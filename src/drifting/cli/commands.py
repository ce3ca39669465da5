"""The commands: each calls the library and prints.

The options of the commands that train are the settings of a configuration. It is found first, from the name of the preset and the
arguments of the preset. Then each of its settings is an option whose default is the value in the configuration. The other commands
are parsed by their signatures.
"""

import dataclasses
import functools
import inspect as introspection
import shutil
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from drifting.cli._parse import HELP, Reader, flags_of, subject_of
from drifting.cli.doctor import doctor
from drifting.cli.export import export
from drifting.cli.inspect import inspect
from drifting.cli.samples import evaluate, sample
from drifting.cli.serve import serve
from drifting.cli.share import share
from drifting.cli.studies import calibrate, compare_fields, print_table, report
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
        track: send figures, snapshots and the configuration to tensorboard or wandb (offline with WANDB_MODE=offline) too.
    """

    save_dir: Path | None = None
    config: Path | None = None
    resume: bool = False
    overwrite: bool = False
    smoke: bool = False
    track: Literal["tensorboard", "wandb"] | None = None


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


_SWITCHES = frozenset({"--resume", "--overwrite", "--smoke", "--unconditional", "--no-unconditional", *HELP})


def train(words: Positional[tuple[str, ...]], /) -> Callable[[], None]:
    """Train a preset into a run folder, with its pictures. `torchrun -m drifting train ...` trains it on several devices.

    Args:
        words: the name of a preset, and its options.
    """
    from drifting.presets import PRESETS, adjust, choices, default_folder
    from drifting.presets.settings import CHOICES, HEADINGS, SHORT, options_of, options_of_fields

    name, rest = subject_of(words, PRESETS, _SWITCHES)
    helping = bool(HELP & set(words))
    if name is None and helping and not any(word.startswith("--config") for word in words):
        return _list_presets
    offered = [] if name is None else choices(name)
    reader = Reader(
        command="train" if name is None else f"train {name}",
        description=_summary(train),
        subject=f"the preset '{name}'",
        other_options=SHORT | CHOICES.keys(),
        headings=tuple(HEADINGS.values()),
    )
    first = reader.read(options_of(_Run, offered), rest, partial=True)
    run, arguments = _Run(**_part(first, _Run)), {key: value for key, value in first.items() if key in CHOICES}
    folder = Path() if name is None else run.save_dir or default_folder(name, **arguments)
    config = _begin(name, run, arguments, folder, only_shape=helping or run.smoke)
    if not hasattr(getattr(config, "encoder", None), "weights"):
        offered = [each for each in offered if each.name != "encoder_weights"]
    for flag in ("--loss.field", "--loss.field.field"):  # A field decides which settings there are, and may hold another one.
        if any(word.partition("=")[0] == flag for word in rest):
            config = adjust(config, **reader.read(options_of_fields(config), rest, partial=True))
    changes = reader.read(options_of(_Run, offered, config), rest)
    changes = {key: value for key, value in changes.items() if key not in (*first, *CHOICES)}
    if name is not None and run.smoke:
        return functools.partial(_try, name, run, arguments, changes)
    return functools.partial(_train, run, run.save_dir or folder, config, changes)


def _begin(name: str | None, run: _Run, arguments: dict[str, Any], folder: Path, *, only_shape: bool) -> Any:
    """Return the configuration to start from: that of a preset, of the run to resume, or a saved one."""
    from drifting.presets import check_choices, choices, preset

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
        check_choices(config, name, **arguments)
        return config
    needed = [each.name for each in choices(name) if each.value is introspection.Parameter.empty] if only_shape else []
    return preset(name, **{**dict.fromkeys(needed, "FOLDER"), **arguments})


def _try(name: str, run: _Run, arguments: dict[str, Any], changes: dict[str, Any]) -> None:
    from drifting.runs.smoke import try_preset

    for name_of, given in (("resume", run.resume), ("track", run.track)):
        if given:
            raise InputError(f"{name_of} is given with smoke, which begins anew and keeps little: leave one of them out")
    trained = try_preset(name, run.save_dir, overwrite=run.overwrite, settings=changes, **arguments)
    print(*trained.summary(), f"{name} works: two steps, a checkpoint and an evaluation are in {trained.folder}", sep="\n")


def _train(run: _Run | _EncoderRun, folder: Path, config: Any, changes: dict[str, Any]) -> None:
    from drifting.presets import adjust
    from drifting.runs import train as train_run
    from drifting.runs.folder import check_default

    config = adjust(config, **changes) if changes else config
    if run.save_dir is None and not run.resume:
        check_default(folder, config)
    options = {} if isinstance(run, _EncoderRun) else {"track": run.track}
    print(*train_run(config, folder, resume=run.resume, overwrite=run.overwrite, **options).summary(), sep="\n")


def train_encoder(words: Positional[tuple[str, ...]], /) -> Callable[[], None]:
    """Train a feature encoder on its own and print the accuracy of a linear classifier in its features.

    Args:
        words: supervised, simclr or mae, and its options.
    """
    from drifting.presets import PRESETS, encoders, folder_of_data
    from drifting.presets.settings import CHOICES, HEADINGS, options_of, settings

    kind, rest = subject_of(words, encoders.KINDS, _SWITCHES)
    choices = encoders.choices(kind or "supervised")
    every = (setting.short for each in encoders.KINDS for setting in settings(encoders.encoder(each)))
    reader = Reader(
        command=f"train-encoder {kind or 'KIND'}",
        description=f"{_summary(train_encoder)} --help after {', '.join(encoders.KINDS)} shows the settings of each.",
        subject=f"'{kind}'",
        other_options={name for name in every if name is not None},
        headings=tuple(HEADINGS.values()),
    )
    if kind is None:
        if HELP & set(words):
            reader.read(options_of(_EncoderRun, choices), ["--help"])
        raise InputError("kind is missing: see drifting train-encoder --help")
    first = reader.read(options_of(_EncoderRun, choices), rest, partial=True)
    run = _EncoderRun(**_part(first, _EncoderRun))
    arguments = {key: value for key, value in first.items() if key not in vars(run)}
    called = encoders.called(arguments.get("name"), arguments.get("data"))
    folder = run.save_dir or folder_of_data(f"{called}-{kind}", "encoder", PRESETS)
    if run.resume:
        from drifting.runs.folder import saved_config

        config = encoders.resumed_encoder(saved_config(folder), kind, **arguments)
    else:
        config = encoders.encoder(kind, **arguments)
    changes = reader.read(options_of(_EncoderRun, choices, config, every=True), rest)
    changes = {key: value for key, value in changes.items() if key not in (*first, *CHOICES)}
    return functools.partial(_train, run, folder, config, changes)


def latents(words: Positional[tuple[str, ...]], /) -> Callable[[], None]:
    """Write the latents of a folder of images and their mirror images, to train on. Run it again to complete an interrupted cache.

    Args:
        words: the options.
    """
    from drifting.data.latents_writer import CacheSettings
    from drifting.presets.settings import fields_as_options

    reader = Reader(command="latents", description=_summary(latents))
    read = reader.read([*fields_as_options(_Cache), *fields_as_options(CacheSettings, "Latents")], words)
    return functools.partial(_latents, _Cache(**_part(read, _Cache)), CacheSettings(**_part(read, CacheSettings)))


def _latents(cache: _Cache, settings: Any) -> None:
    from drifting.data.latents_writer import write_latents

    index = write_latents(cache.data, cache.vae, cache.out, settings, overwrite=cache.overwrite)
    print(f"{index.count} images, latents {index.latent_shape}", cache.out, sep="\n")


def _list_presets() -> None:
    """Print the presets of `drifting train`."""
    from drifting.presets import GROUPS, PRESETS
    from drifting.presets.settings import fields_as_options

    print("usage: drifting train PRESET [OPTIONS]", "", wrapped(_summary(train), 0), sep="\n")
    print("", wrapped("drifting train PRESET --help shows all settings of a preset, with its own values.", 0), sep="\n")
    for heading, names in GROUPS.items():
        print("", heading, *(wrapped(f"{name}: {PRESETS[name].what}", 2, hanging=4) for name in names), sep="\n")
    print("", "Options of all presets", sep="\n")
    for option in fields_as_options(_Run):
        print(wrapped(f"{flags_of(option)[0]}: {option.help}", 2, hanging=4))


def _summary(command: Callable[..., Any]) -> str:
    return (command.__doc__ or "").partition("\n")[0]


def _part(values: dict[str, Any], kind: type) -> dict[str, Any]:
    return {field.name: values[field.name] for field in dataclasses.fields(kind) if field.name in values}


def wrapped(text: str, indent: int, *, hanging: int | None = None) -> str:
    """Return a text wrapped to the width of the terminal."""
    width = max(40, shutil.get_terminal_size().columns)
    rest = " " * (indent if hanging is None else hanging)
    wrapper = textwrap.TextWrapper(width, " " * indent, rest, break_long_words=False, break_on_hyphens=False)
    return wrapper.fill(text)


def convert(source: Positional[str], /, *, out: Path, overwrite: bool = False) -> None:
    """Convert an artifact of the authors' release into a folder of this library, or back, without changing a bit.

    Args:
        source: folder of an artifact, of an earlier conversion or of a training, or hub:NAME for a published artifact.
        out: the folder to write.
        overwrite: replace an earlier conversion in the folder.
    """
    from drifting.runs import share as sharing

    print(*sharing.convert(source, out, overwrite=overwrite), sep="\n")


def compare(runs: Positional[tuple[Path, ...]], /, *, out: Path = Path("runs/comparison"), overwrite: bool = False) -> None:
    """Compare trained runs of images: a table of their figures in comparison.md, samples of the same seed in compare.png.

    Args:
        runs: the run folders.
        out: the folder for the two files.
        overwrite: replace existing files.
    """
    from drifting.runs.compare import write_comparison

    compared, files = write_comparison(runs, out, overwrite=overwrite)
    # Transposed, because a terminal is seldom wide enough for all figures of a run.
    figures, *columns = zip(compared.columns, *compared.rows, strict=True)
    print_table(figures, columns, title=str(out))
    print(*files, sep="\n")
    for doubt in compared.doubts:
        print(f"drifting: {doubt}", file=sys.stderr)


def presets() -> None:
    """List the presets that can be trained."""
    from drifting.presets import GROUPS, PRESETS

    print(wrapped("Minutes are those of 2 CPU cores. Train one with: drifting train NAME", 0))
    for heading, names in GROUPS.items():
        print(f"\n{heading}")
        for name in names:
            preset = PRESETS[name]
            facts = f"data: {preset.data}; minutes: {preset.minutes}; expected: {preset.expected}"
            print(wrapped(f"{name}: {preset.what}", 2, hanging=4), wrapped(facts, 6), sep="\n")


ALL = (
    *(train, train_encoder, inspect, latents, sample, export, convert, calibrate),
    *(evaluate, report, compare, compare_fields, doctor, serve, share, presets),
)
# These commands read their words themselves, because their options depend on what is trained.
READERS = {"train": train, "train-encoder": train_encoder, "latents": latents}
# Flags of version 0.1 -> the present ones, of the commands that are parsed by signature.
FORMER = {"--judge": "--extractor"}
