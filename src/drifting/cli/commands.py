"""The commands: each parses by its signature, calls the library and prints."""

import shutil
import sys
import textwrap
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text
from tyro.conf import OmitArgPrefixes, Positional

from drifting.cli.options import AS_KIND, AS_PRESET, AS_USUAL, DEFAULT, Choices, EncoderSettings, LatentSettings, Settings
from drifting.errors import InputError


def train(
    preset: Positional[str],
    /,
    *,
    choices: OmitArgPrefixes[Choices] = DEFAULT,
    settings: OmitArgPrefixes[Settings] = AS_PRESET,
    save_dir: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    smoke: bool = False,
) -> None:
    """Train a preset into a run folder, with its pictures. `torchrun -m drifting train ...` trains it on several devices.

    Args:
        preset: see `drifting presets`.
        choices: what to train on.
        settings: what may differ from the preset.
        save_dir: the run folder; runs/PRESET, runs/DATASET or, of your own points or images, runs/NAME by default.
        resume: go on with the run in the folder.
        overwrite: delete the run in the folder first.
        smoke: try a tiny version, with data of its own where none are given: two steps, a checkpoint, an evaluation; by default in
            runs/smoke/PRESET, where it replaces what is there.
    """
    from drifting import presets, runs
    from drifting.runs.folder import check_default, saved_config

    given = choices.given()
    if smoke:
        return _try(preset, save_dir, resume=resume, overwrite=overwrite, settings=vars(settings), **given)
    folder = save_dir or presets.default_folder(preset, **given)
    config = saved_config(folder) if resume else presets.preset(preset, **given)
    if resume:
        presets.check_choices(config, preset, **given)
    elif save_dir is None:
        check_default(folder, config)
    trained = runs.start(presets.adjust(config, **vars(settings)), folder, resume=resume, overwrite=overwrite)
    print(*trained.summary(), sep="\n")


def _try(name: str, save_dir: Path | None, *, resume: bool, **given: Any) -> None:
    from drifting.runs.smoke import try_preset

    if resume:
        raise InputError("resume is given with smoke, which begins anew: leave one of them out")
    trained = try_preset(name, save_dir, **given)
    print(*trained.summary(), f"{name} works: two steps, a checkpoint and an evaluation are in {trained.folder}", sep="\n")


def train_encoder(
    kind: Positional[str],
    /,
    *,
    name: str | None = None,
    data: str | None = None,
    settings: OmitArgPrefixes[EncoderSettings] = AS_KIND,
    save_dir: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Train a feature encoder on its own and tell how much of the classes a linear classifier finds in its features.

    Args:
        kind: supervised, simclr or mae.
        name: which data set, of those that are found by name: cifar10 by default.
        data: your own images: a folder or a Hub id.
        settings: what may differ from the defaults of the kind.
        save_dir: the folder of the encoder; runs/NAME-KIND by default, or runs/encoder-NAME-KIND where a preset is called so.
        resume: go on with the training in the folder.
        overwrite: delete what is in the folder first.
    """
    from drifting import runs
    from drifting.presets import PRESETS, folder_of_data
    from drifting.presets.encoders import called, encoder, resumed_encoder
    from drifting.runs.folder import check_default, saved_config

    given = {setting: value for setting, value in vars(settings).items() if value is not None}
    folder = save_dir or folder_of_data(f"{called(name, data)}-{kind}", "encoder", PRESETS)
    if resume:
        config = resumed_encoder(saved_config(folder), kind, name=name, data=data, **given)
    else:
        config = encoder(kind, name=name, data=data, **given)
        if save_dir is None:
            check_default(folder, config)
    trained = runs.train_encoder(config, folder, resume=resume, overwrite=overwrite)
    print(*trained.summary(), sep="\n")


def latents(
    *,
    data: Path,
    out: Path,
    vae: str = "stabilityai/sd-vae-ft-mse",
    settings: OmitArgPrefixes[LatentSettings] = AS_USUAL,
    overwrite: bool = False,
) -> None:
    """Write the latents of a folder of images and of their mirror images, to train on; started again, it makes what is missing.

    Args:
        data: a folder with a sub-folder for each class, or with train/ and val/ above those.
        out: the folder of the cache.
        vae: name or folder of the auto-encoder.
        settings: of images, files and device.
        overwrite: delete the cache that is there.
    """
    from drifting.data.latents_writer import CacheSettings, write_latents

    index = write_latents(data, vae, out, CacheSettings(**vars(settings)), overwrite=overwrite)
    print(f"{index.count} images, latents {index.latent_shape}", out, sep="\n")


def sample(
    run: Positional[str],
    /,
    *,
    num_samples: int = 64,
    seed: int = 0,
    labels: tuple[str, ...] | None = None,
    guidance_scale: float | None = None,
    vae: str | None = None,
    out: Path = Path("samples.png"),
    overwrite: bool = False,
) -> None:
    """Make samples with a trained run, one forward pass each.

    Args:
        run: the run folder, one of the authors' artifacts, converted or not, or hub:NAME for one that they published.
        num_samples: how many.
        seed: which ones; sample i of a seed is always the same.
        labels: classes to cycle through, by name or number, as training tells them first; all of them by default. Where classes are
            called by whole numbers, such as folders 1, 2 and 3, a number is a name.
        guidance_scale: how strongly a class is set apart from the others, from 1, which is not at all; that of the run by default.
        vae: Hub id or folder of the auto-encoder that decodes latents of an artifact; that of the paper by default.
        out: a picture (.png), or the numbers (.npy): points in their own coordinates, or uint8 images [n, h, w, c].
        overwrite: replace the file if it is there.
    """
    from drifting.runs import share

    options = {"seed": seed, "labels": labels, "guidance_scale": guidance_scale, "overwrite": overwrite}
    share.write_samples(run, out, num_samples, vae=vae, **options)
    print(out)


def convert(source: Positional[str], /, *, out: Path, overwrite: bool = False) -> None:
    """Turn an artifact of the authors' release into a folder of ours, or a folder of ours into an artifact; every bit is kept.

    Args:
        source: the folder of an artifact, of an earlier conversion or of a training; or hub:NAME for what the authors published.
        out: the folder to write.
        overwrite: replace an earlier conversion in it.
    """
    from drifting.runs import share

    print(*share.convert(source, out, overwrite=overwrite), sep="\n")


def evaluate(
    run: Positional[Path],
    /,
    *,
    judge: str | None = None,
    real: str | None = None,
    num_samples: int | None = None,
    seed: int = 0,
    guidance_scale: float | None = None,
    batch_size: int | None = None,
    device: str = "cpu",
) -> None:
    """Measure a trained run against real data; the figures also go to metrics.json in its folder.

    Args:
        run: the run folder.
        judge: in whose features images are compared: the folder of a trained classifier (runs/NAME-classifier by default), a
            TorchScript Inception file (.pt), or pixels.
        real: what images are compared with: a folder of images, or statistics of them (.safetensors or .npz); the run's own by
            default. Figures of other real images beside them, the floors, hold none of these.
        num_samples: images to compare; 10,000 by default, and 50,000 of runs whose data are not held in memory.
        seed: which images.
        guidance_scale: of the samples, as in `drifting sample`.
        batch_size: images at a time: bounds memory, and changes nothing else.
        device: where generator, decoder and judge run: cpu, cuda, cuda:1 or mps.
    """
    from drifting import runs
    from drifting.evaluation import as_text

    with warnings.catch_warnings(record=True) as doubts:
        warnings.simplefilter("always", UserWarning)
        given = {"seed": seed, "guidance_scale": guidance_scale, "batch_size": batch_size, "device": device}
        metrics = runs.load(run).evaluate(judge=judge, real=real, count=num_samples, **given)
    rows = []
    for name, value in metrics.items():
        if not name.endswith("_floor"):
            floor = metrics.get(f"{name}_floor")
            rows.append((name, as_text(value), "" if floor is None else as_text(floor)))
    _print_table(("metric", "value", "real against real"), rows, title=str(run))
    for doubt in doubts:
        print(f"drifting: {doubt.message}", file=sys.stderr)


def compare(runs: Positional[tuple[Path, ...]], /, *, out: Path = Path("runs/comparison"), overwrite: bool = False) -> None:
    """Set trained runs of images side by side: their figures in comparison.md, samples of the same seed in compare.png.

    Args:
        runs: the run folders.
        out: the folder for the two files.
        overwrite: replace them if they are there.
    """
    from drifting.runs.compare import write_comparison

    compared, files = write_comparison(runs, out, overwrite=overwrite)
    # Turned, for a terminal is seldom as wide as all figures of a run.
    figures, *columns = zip(compared.columns, *compared.rows, strict=True)
    _print_table(figures, columns, title=str(out))
    print(*files, sep="\n")
    for doubt in compared.doubts:
        print(f"drifting: {doubt}", file=sys.stderr)


def presets() -> None:
    """List what can be trained."""
    from drifting.presets import GROUPS, PRESETS

    print(_wrapped("Minutes are those of 2 CPU cores. Train one with: drifting train NAME", 0))
    for heading, names in GROUPS.items():
        print(f"\n{heading}")
        for name in names:
            preset = PRESETS[name]
            facts = f"data: {preset.data}; minutes: {preset.minutes}; expected: {preset.expected}"
            print(_wrapped(f"{name}: {preset.what}", 2, hanging=4), _wrapped(facts, 6), sep="\n")


def _print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str) -> None:
    """Print a table of plain text, in which no name is read as markup; its first column is not wrapped."""
    headers = [Column(Text(column), no_wrap=index == 0) for index, column in enumerate(columns)]
    table = Table(*headers, title=Text(title, style="table.title"))
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)


def _wrapped(text: str, indent: int, *, hanging: int | None = None) -> str:
    """Return a text in lines as wide as the terminal, whole words each."""
    width = max(40, shutil.get_terminal_size().columns)
    rest = " " * (indent if hanging is None else hanging)
    wrapper = textwrap.TextWrapper(width, " " * indent, rest, break_long_words=False, break_on_hyphens=False)
    return wrapper.fill(text)


ALL = (train, train_encoder, latents, sample, convert, evaluate, compare, presets)
