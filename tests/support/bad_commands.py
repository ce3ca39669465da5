"""Command lines that cannot work: a command, a flag and a value that it cannot have, among flags that are right."""

import random

RUN, FILE = "RUN", "FILE"

_COUNT = ("0", "-1", "-9999999999", "1.5", "x", "nan", "[red]2[/red]", "1e3", "0x10", "")
_POSITIVE = ("0", "-1", "nan", "inf", "-inf", "x", "1e300", "1,5", "")
_SEED = ("-1", "2147483648", "99999999999999999999", "1.0", "x", "")
_DEVICE = ("tpu", "cuda:99", "cpu:7", "cpu:-2", "[red]", "CPU 1", "")
_CHOICE = ("nope", "7", "None-of-these", "[/bold]", "")
_SWITCH = ("maybe", "2", "")
_FOLDER = (f"{FILE}/x", "/proc/none/x", "")
_UNKNOWN = {"--lr": ("1",), "--color": ("red",), "-q": ("",), "--steps=": ("",), "--": ("more",)}

_TRAINING = {
    "--steps": _COUNT,
    "--batch-size": _COUNT,
    "--keep": _COUNT,
    "--microbatch-size": _COUNT,
    "--labels-per-microbatch": _COUNT,
    "--encoder-steps": (*_COUNT, "5"),
    "--learning-rate": _POSITIVE,
    "--temperatures": (*_POSITIVE, "0.1 0", "0.1 nan", "1e-320"),
    "--seed": _SEED,
    "--device": _DEVICE,
    "--optimizer": _CHOICE,
    "--precision": _CHOICE,
    "--parallel": _CHOICE,
    "--compile": _SWITCH,
    "--gradient-checkpointing": _SWITCH,
    "--save-dir": _FOLDER,
    "--data": ("nowhere", "nowhere.npy", FILE, ""),
    "--vae": ("nowhere",),
    "--image-size": ("8",),
    "--encoder-weights": ("nowhere",),
}
# What is right before it -> flag -> values that are wrong.
_COMMANDS = {
    "train toy": _TRAINING | {"--dataset": _CHOICE},
    "train digits": _TRAINING | {"--dataset": ("moons",), "--unconditional": ("x",)},
    "train-encoder supervised --data IMAGES": {
        **{flag: _COUNT for flag in ("--steps", "--batch-size", "--width")},
        "--image-size": _COUNT,
        "--channels": ("2", "0", "-1", "x"),
        "--learning-rate": _POSITIVE,
        "--seed": _SEED,
        "--device": _DEVICE,
        "--arch": _CHOICE,
        "--flip": ("-0.1", "1.5", "nan", "x"),
        "--crop": ("-0.1", "1.5", "nan", "x"),
        "--save-dir": _FOLDER,
        "--patch": ("2",),
        "--temperature": ("0.1",),
    },
    f"sample {RUN}": {
        "--num-samples": (*_COUNT, "2147483648", "12946"),
        "--seed": _SEED,
        "--labels": ("10", "-1", "x", "3 10"),
        "--guidance-scale": ("0.5", "nan", "inf", "2", "x"),
        "--vae": ("nowhere",),
        "--out": ("s.jpg", "s", f"{FILE}/s.png", FILE, ""),
    },
    f"evaluate {RUN}": {
        "--num-samples": _COUNT,
        "--batch-size": _COUNT,
        "--seed": _SEED,
        "--device": _DEVICE,
        "--guidance-scale": ("0.5", "nan", "inf", "2", "x"),
        "--extractor": ("nowhere", "pixels", ""),
        "--real": ("nowhere", ""),
    },
    "latents --data IMAGES --out cache": {
        **{flag: _COUNT for flag in ("--image-size", "--batch-size", "--shard-size")},
        "--device": _DEVICE,
        "--split": ("nope", ""),
        "--vae": ("./nowhere", ""),
        "--out": _FOLDER,
    },
    f"convert {RUN}": {"--out": (*_FOLDER, RUN)},
    "doctor": {"nowhere": ("",), FILE: ("",), "--out": ("x",)},
    "compare": {"nowhere": ("",), f"{RUN} nowhere": ("",), "--out": ("x",)},
}
# Flags that are right for their command, and change nothing about what is wrong.
_RIGHT = {"train": "--overwrite", "sample": "--overwrite", "latents": "--overwrite", "train-encoder": "--name photos"}


def bad_commands(count: int, seed: int = 0) -> list[tuple[str, ...]]:
    """Return so many different command lines in words; RUN, FILE and IMAGES stand for a run of digits, a file and images."""
    rng, found = random.Random(seed), dict[tuple[str, ...], None]()
    while len(found) < count:
        command = rng.choice(list(_COMMANDS))
        flags = _COMMANDS[command] | _UNKNOWN
        flag = rng.choice(list(flags))
        value = rng.choice(flags[flag])
        wrong = [flag, *value.split()] if value or not flag.startswith("--") else [f"{flag.rstrip('=')}="]
        right = rng.choice(["", _RIGHT.get(command.split()[0], "")]).split()
        found[(*command.split(), *right, *" ".join(wrong).split())] = None
    return list(found)
