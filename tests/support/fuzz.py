"""Damage the files of finished runs, one at a time, and use them: python -m tests.support.fuzz COUNT SEED prints what came of it.

The runs are those of `tests/earlier_runs`: a toy, digits, and images in an auto-encoder with a memory bank; of the digits every
file of tensors is written anew, with its checksum, which those runs did not have yet. Beside them are a cache of latents, features,
and statistics. Every mutant is loaded, sampled from, resumed or evaluated, whatever reads the file. It must
work, or end in an InputError of one line of at most 300 characters, or in another of the endings that the command line has
a sentence for: a training that diverges from absurd weights, or a memory that is too small.
"""

import contextlib
import faulthandler
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from drifting import runs
from drifting.checkpoint import load_tensors, save_tensors
from drifting.cli import _message_and_status
from drifting.config import RunConfig
from drifting.data.latents import LatentCache
from drifting.errors import MOST_CHARACTERS, InputError
from drifting.evaluation.statistics import ImageStatistics, cached_statistics, read_statistics, save_statistics
from drifting.metrics.frechet import gaussian_of
from drifting.plotting.figures import losses_figure
from drifting.runs import pictures as drawing
from drifting.runs.compare import read_entry
from drifting.runs.folder import saved_config
from drifting.training.positives import FeatureCache
from drifting.training.recorder import EARLIER_SNAPSHOTS, MetricsLog
from tests.support.image_folders import write_images
from tests.support.latent_caches import told_apart, write_cache

EARLIER = Path(__file__).parents[1] / "earlier_runs"
STATE = "checkpoints/step-00000004"
# The run whose files have checksums; numbers of it that were changed are refused, however sound they look.
SEALED = "digits"
# Beside what the process takes already, for one mutant.
_MEMORY, _SECONDS = 4 * 2**30, 60
_DTYPES = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64)
_NUMBERS = (float("nan"), float("inf"), -1.0, 1e38, -1e38, 0.0)
# As JSON text, so that they may be what Python would not write.
_VALUES = (
    *("null", "true", "false", "-1", "0", "1", "1000000000000", str(2**63), "9" * 5000, "0.5", "-0.5", "1e308", "1e999", "NaN"),
    *("-Infinity", '""', '"x"', json.dumps("x" * 5000), '"a\\u0000b"', '"\\ud800"', '"\\u001b[31m"', "[]", "{}", "[1, 2, 3]"),
    *('{"type": "MLPConfig"}', "[" * 5000 + "]" * 5000, "[null]", '["a", 1]', json.dumps(["y"] * 1000)),
)


class Hang(BaseException):
    """A mutant took too long."""


@dataclass
class Table:
    """What came of the mutants: (kind of file, kind of damage, ending) -> how many; and every fault."""

    counts: Counter = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Return a Markdown table."""
        endings = ("accepted", "refused", "diverged", "memory", "fault")
        rows = sorted({key[:2] for key in self.counts})
        lines = [f"| file | damage | {' | '.join(endings)} |", "|---|---|" + "---:|" * len(endings)]
        lines += [
            f"| {file} | {damage} | {' | '.join(str(self.counts[file, damage, end]) for end in endings)} |" for file, damage in rows
        ]
        totals = [sum(count for key, count in self.counts.items() if key[2] == end) for end in endings]
        return "\n".join([*lines, f"| all | {self.counts.total()} mutants | {' | '.join(map(str, totals))} |"])


def _flip(data: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def _overwrite(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + rng.randbytes(rng.randint(1, 24)) + data[start + rng.randint(0, 24) :]


def _in_header(data: bytes, rng: random.Random) -> bytes:
    end = min(len(data), 8 + int.from_bytes(data[:8], "little") if data[:1] != b"\x93" else 128)
    return _flip(data[:end], rng) + data[end:]


BYTES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "bits flipped": _flip,
    "truncated": lambda data, rng: data[: rng.randrange(len(data))],
    "overwritten": _overwrite,
    "header": _in_header,
}


def _damage_tensors(path: Path, damage: str, rng: random.Random) -> None:
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    name = rng.choice(sorted(tensors))
    value = tensors[name]
    if damage == "dropped":
        del tensors[name]
    elif damage == "renamed":
        odd = (name + "x", name[::-1], name.upper(), "", "\n", "9" * 30, "-1", f"{name}.{name}", "optimizer.99.exp_avg", "x" * 3000)
        tensors[rng.choice(odd)] = tensors.pop(name)
    elif damage == "retyped":
        tensors[name] = value.to(rng.choice([dtype for dtype in _DTYPES if dtype != value.dtype]))
    elif damage == "reshaped":
        shapes = (value.reshape(-1), value[None], value.reshape(-1)[:1], value.reshape(-1)[:0], torch.cat([value.reshape(-1)] * 3))
        tensors[name] = rng.choice([shape for shape in shapes if shape.shape != value.shape] or [value[None]]).clone()
    elif value.is_floating_point() and value.numel():
        flat = value.clone().reshape(-1)
        flat[rng.randrange(len(flat))] = rng.choice(_NUMBERS)
        tensors[name] = flat.reshape(value.shape)
    else:
        number = rng.choice((-1, 0, 1, 7, 2**31 - 1, 2**62))
        tensors[name] = torch.full_like(value, number % 256 if value.dtype == torch.uint8 else number)
    with contextlib.suppress(OSError):
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata=metadata)


TENSORS = ("dropped", "renamed", "retyped", "reshaped", "numbers")


def _damage_json(text: str, damage: str, rng: random.Random) -> str:
    """Replace, drop, add or double one value of a JSON text, or of one of its lines."""
    lines = text.splitlines() if text.count("\n{") else [text]
    number = rng.randrange(len(lines))
    values = json.loads(lines[number])
    places: list[tuple[Any, Any]] = []

    def walk(part: Any) -> None:
        for key in part if isinstance(part, dict) else range(len(part)):
            places.append((part, key))
            if isinstance(part[key], dict | list):
                walk(part[key])

    walk(values)
    holder, key = rng.choice(places)
    mark = "@damaged@"
    if damage == "dropped":
        del holder[key]
    elif damage == "added":
        (holder if isinstance(holder, dict) else values)[rng.choice(("x", "type", "steps", "", "\n", "é" * 400))] = 1
    elif damage == "doubled" and isinstance(holder, dict):
        holder[key] = mark
    else:
        holder[key] = mark
    damaged = json.dumps(values)
    again = f"1, {json.dumps(str(key))}: 2" if damage == "doubled" and isinstance(holder, dict) else rng.choice(_VALUES)
    lines[number] = damaged.replace(json.dumps(mark), again)
    return "\n".join(lines) + "\n"


JSON = ("dropped", "added", "doubled", "replaced")


def _damage_place(path: Path, rng: random.Random) -> None:
    """Put something else where a file is, or a second thing beside it."""
    kind = rng.choice(("gone", "folder", "empty", "link to itself", "of another"))
    if kind == "of another":
        others = [other for other in path.parent.iterdir() if other.is_file() and other != path]
        path.write_bytes(rng.choice(others).read_bytes() if others else b"\0")
        return
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "link to itself":
        path.symlink_to(path.name)


def _damage_checkpoints(path: Path, rng: random.Random) -> None:
    names = (
        "step-00000400.bak",
        "step-00000005",
        "step-",
        "step-x",
        "step-00000001",
        "step-99999999",
        "step-4",
        "step-\u0661" * 2,
        "new\nline",
    )
    other = path.parent / rng.choice(names)
    rng.choice((lambda: path.rename(other), lambda: shutil.copytree(path, other), other.mkdir, other.touch))()


class Fuzz:
    """Runs to damage, and what uses them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.current = folder, folder / "current.txt"
        images = write_images(folder / "images", {"a": 30, "b": 30, "c": 30})
        self.sources: dict[str, Path] = {}
        self.configs: dict[str, RunConfig] = {}
        for name in ("toy", "digits", "images"):
            source = self.sources[name] = Path(shutil.copytree(EARLIER / name, folder / f"source-{name}"))
            for path in source.rglob("*.json"):
                path.write_text(path.read_text().replace('"path": "images"', f'"path": "{images}"'))
            config = saved_config(source)
            assert isinstance(config, RunConfig)
            self.configs[name] = config
            for path in source.rglob("*.safetensors") if name == SEALED else ():
                save_tensors(path, load_tensors(path))
            (source / "encoder.json").write_text('{"linear_probe_accuracy": 0.5, "num_train_images": 60}')
            (source / "metrics.json").write_text('{"extractor": "pixels", "frechet_distance": 2.5, "recall": 0.5}')
        stored = self.sources["stored"] = folder / "source-stored"
        write_cache(stored / "latents", told_apart(12), torch.arange(12) % 3)
        self.rows = torch.arange(60.0).reshape(20, 3)
        self._features(stored)
        save_statistics(stored / "seen.safetensors", self._seen(), fingerprint="f")
        self.files = self._files()

    def _seen(self) -> ImageStatistics:
        return ImageStatistics(gaussian_of(self.rows.cos()), self.rows.cos(), accuracy=0.5, inception_score=1.5)

    def _features(self, folder: Path) -> FeatureCache:
        return FeatureCache(lambda rows: {"a": rows[:, None]}, self.rows, folder=folder / "features", byte_budget=1)

    def _files(self) -> list[tuple[str, str, str, Callable[[Path, str], None]]]:
        """Return kind of file, run, file and use; those that hold more appear more often."""
        found = []
        for run in ("toy", "digits", "images"):
            state = f"{STATE}/state.safetensors"
            found += [("config.json", run, "config.json", self.use_config)] * 3
            found += [("generator.safetensors", run, "generator.safetensors", self.use_generator)]
            found += [("state.safetensors", run, state, self.use_resumed)] * 4
            found += [("state.json", run, f"{STATE}/state.json", self.use_resumed)]
            found += [("metrics.jsonl", run, "metrics.jsonl", self.use_log)]
            found += [("snapshots", run, EARLIER_SNAPSHOTS, self.use_snapshots)]
            found += [("figures", run, name, self.use_entry) for name in ("metrics.json", "encoder.json")]
            found += [("checkpoint folder", run, STATE, self.use_resumed)]
        array = next(self.sources["stored"].rglob("0.npy")).relative_to(self.sources["stored"]).as_posix()
        found += [("encoder.safetensors", "images", "encoder.safetensors", self.use_resumed)] * 3
        found += [("latents", "stored", "latents/index.json", self.use_latents)] * 2
        found += [("latents", "stored", "latents/shard-00000.safetensors", self.use_latents)]
        found += [("features", "stored", array, self.use_features)]
        found += [("statistics", "stored", "seen.safetensors", self.use_statistics)]
        return found

    def use_config(self, folder: Path, run: str) -> None:
        """Load, sample, now and then evaluate, and resume."""
        loaded = runs.load(folder)
        loaded.sample(2)
        if hash(str(folder)) % 4 == 0:
            loaded.evaluate(extractor="pixels" if run == "images" else None, count=30)
        self.use_resumed(folder, run)

    def use_generator(self, folder: Path, run: str) -> None:
        del run
        runs.load(folder).sample(3)

    def use_resumed(self, folder: Path, run: str) -> None:
        runs.train(self.configs[run], folder, resume=True)

    def use_log(self, folder: Path, run: str) -> None:
        self.use_resumed(folder, run)
        losses_figure("x", MetricsLog(folder / "metrics.jsonl").read(), None)
        read_entry(runs.load(folder), "x")

    def use_snapshots(self, folder: Path, run: str) -> None:
        runs.load(folder).snapshots()
        self.use_resumed(folder, run)

    def use_entry(self, folder: Path, run: str) -> None:
        del run
        read_entry(runs.load(folder), "x")

    def use_latents(self, folder: Path, run: str) -> None:
        del run
        cache = LatentCache(folder / "latents")
        cache.read(torch.tensor([0, 1]), torch.tensor([0, 1]))

    def use_features(self, folder: Path, run: str) -> None:
        del run
        self._features(folder).lookup(torch.tensor([[0, 3]]))

    def use_statistics(self, folder: Path, run: str) -> None:
        del run
        cached_statistics(folder / "seen.safetensors", "f", self._seen)
        read_statistics(folder / "seen.safetensors")

    def one(self, seed: int, table: Table) -> None:
        """Make one mutant and use it."""
        rng = random.Random(seed)
        kind, run, name, use = rng.choice(self.files)
        target = self.folder / f"run-{seed}"
        shutil.copytree(self.sources[run], target)
        path = target / name
        sealed, changed = path.read_bytes() if run == SEALED and path.suffix == ".safetensors" else None, False
        try:
            damage = self._damage(path, rng)
            changed = sealed is not None and path.is_file() and path.read_bytes() != sealed
            self.current.write_text(f"{seed} {run} {name} {damage}")
            ending, sentence = _ending(lambda: use(target, run))
        finally:
            shutil.rmtree(target, ignore_errors=True)
        if sealed is not None and damage in TENSORS and changed and ending != "refused":
            ending, sentence = "fault", f"{ending}, where the checksum differs"
        table.counts[kind, damage, ending] += 1
        if ending == "fault":
            table.faults.append(f"seed {seed}: {run} {name} {damage}: {sentence}")

    def _damage(self, path: Path, rng: random.Random) -> str:
        if path.is_dir():
            _damage_checkpoints(path, rng)
            return "names"
        ways = [*BYTES, "place"]
        ways += list(TENSORS) * 2 if path.suffix == ".safetensors" else list(JSON) * 3 if path.suffix in (".json", ".jsonl") else []
        damage = rng.choice(ways)
        if damage == "place":
            _damage_place(path, rng)
        elif damage in BYTES:
            path.write_bytes(BYTES[damage](path.read_bytes(), rng))
        elif path.suffix == ".safetensors":
            _damage_tensors(path, damage, rng)
        else:
            path.write_text(_damage_json(path.read_text(), damage, rng))
        return damage


def _ending(use: Callable[[], None]) -> tuple[str, str]:
    """Return how a use ended, in a word, and what it said."""

    def hang(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, hang)
    signal.alarm(_SECONDS)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            use()
    except InputError as error:
        message = str(error)
        short = len(message) <= MOST_CHARACTERS and message.isprintable()
        return ("refused", message) if short else ("fault", message)
    except Hang:
        return "fault", f"more than {_SECONDS} s"
    except Exception as error:
        sentence, _ = _message_and_status(error, ["train"])
        if sentence is None or "\n" in sentence:
            return "fault", "".join(traceback.format_exception(error)[-3:])
        return "memory" if sentence.startswith("out of memory") else "diverged", sentence
    finally:
        signal.alarm(0)
    return "accepted", ""


def fuzz(count: int, seed: int, *, tell: Callable[[str], None] = lambda _: None) -> Table:
    """Return what came of `count` mutants."""
    table, pictures = Table(), drawing.draw_pictures
    drawing.draw_pictures = lambda config, folder, **_: []
    try:
        with tempfile.TemporaryDirectory() as folder, np.errstate(all="ignore"):
            mutants = Fuzz(Path(folder))
            for number in range(count):
                mutants.one(seed * 10**6 + number, table)
                if number % 500 == 499:
                    tell(f"{number + 1} mutants, {len(table.faults)} faults")
    finally:
        drawing.draw_pictures = pictures
    return table


def main() -> None:
    """Print the table of COUNT mutants from SEED on; leave with 1 where there are faults."""
    faulthandler.enable()
    torch.set_num_threads(1)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    table = fuzz(int(sys.argv[1]), int(sys.argv[2]), tell=lambda line: print(line, file=sys.stderr, flush=True))
    print(table)
    print(*table.faults, sep="\n")
    sys.exit(bool(table.faults))


if __name__ == "__main__":
    main()
