"""From the words of a command line to a call of a command, or to one sentence that says which word does not fit."""

import contextlib
import dataclasses
import difflib
import functools
import inspect
import io
import re
import typing
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from drifting._checks import nearest_name
from drifting.errors import InputError

# What people call a flag elsewhere -> what it is called here.
_ELSEWHERE = {
    "lr": "learning-rate",
    "epochs": "steps",
    "iterations": "steps",
    "max-steps": "steps",
    "bs": "batch-size",
    "tau": "temperatures",
    "bandwidth": "temperatures",
    "opt": "optimizer",
    "gpu": "device",
    "cuda": "device",
    "n": "num-samples",
    "num": "num-samples",
    "count": "num-samples",
    "cfg": "guidance-scale",
    "class": "labels",
    "classes": "labels",
    "resolution": "image-size",
    "size": "image-size",
    "output": "out",
    "output-dir": "save-dir",
    "out-dir": "save-dir",
    "outdir": "save-dir",
    "dir": "save-dir",
    "force": "overwrite",
    "continue": "resume",
    "amp": "precision",
    "dtype": "precision",
}
# How alike names must be for one to be meant by the other.
_ALIKE = 0.5
_KINDS = {"INT": "a whole number", "FLOAT": "a number", "PATH": "a path", "STR": "a name", "True": "True or False"}


def parse(commands: Sequence[Callable[..., None]], arguments: Sequence[str]) -> Callable[[], None]:
    """Return the call that is asked for; shows help and leaves by SystemExit where that is asked for.

    Args:
        commands: what can be called, each parsed by its signature.
        arguments: the words.

    Raises:
        InputError: if they are no call of a command.
    """
    _check_not_empty(arguments)
    app = tyro.extras.SubcommandApp()
    for command in commands:
        app.command(_deferred(command))
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return app.cli(prog="drifting", args=list(arguments))
    except SystemExit as leaving:
        if not leaving.code:
            raise
    by_name = {_hyphened(command.__name__): command for command in commands}
    raise InputError(_sentence(_first_paragraph(said.getvalue()), arguments, by_name))


def _deferred(command: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """Return a command that, when it is called, returns its call."""

    @functools.wraps(command)
    def call(*positional: Any, **named: Any) -> Callable[[], None]:
        return functools.partial(command, *positional, **named)

    return call


def _check_not_empty(arguments: Sequence[str]) -> None:
    """Raise InputError for a word without letters: as a path it would be the folder that the command runs in."""
    flag = "an argument"
    for word in arguments:
        name, given, value = word.partition("=")
        if not word or (word.startswith("--") and given and not value):
            raise InputError(f"{_shown(name) if given else flag} is '': name something, or leave it out")
        flag = _shown(word) if word.startswith("--") else "an argument"


def _first_paragraph(text: str) -> str:
    """Return the first part of the parser's message, without its frame."""
    # Without letters for a frame, which holds the title, there is a line below that.
    lines = [line.strip("│ ") for line in text.splitlines() if not line.startswith(("╭", "╰"))]
    parts, framed = [list[str]()], "╭" in text
    for line in lines:
        if line and set(line) <= {"─", "-"}:
            parts.append([])
        else:
            parts[-1].append(line)
    return " ".join(" ".join(parts[0 if framed or len(parts) < 2 else 1]).split())


def _sentence(said: str, arguments: Sequence[str], commands: dict[str, Callable[..., None]]) -> str:
    asked = next((word for word in arguments if not word.startswith("-")), None)
    if asked not in commands:
        there = f"there are {', '.join(commands)}"
        if asked is None:
            return f"the command is missing: {there}"
        meant = nearest_name(asked, commands)
        return f"command is '{asked}': " + (f"did you mean '{meant}'? T{there[1:]}" if _likeness(asked, meant) >= _ALIKE else there)
    see = f"see drifting {asked} --help"
    for pattern, sentence in (
        (r"Unrecognized options()", lambda _: _unknown(said, arguments, _flags(commands[asked]), see)),
        (r"Missing from()", lambda _: f"{_missing(said, commands[asked])} missing: {see}"),
        (r"Missing value for argument '([^']+)'", lambda found: _valueless(found[1], arguments)),
        (r"invalid choice '(.*)' for argument '([^']+)'. Expected one of \((.*)\)", _no_choice),
        (r"Error parsing (--[\w/-]+|\S+):", lambda found: _unfit(found[1], said, arguments, see)),
    ):
        if found := re.search(pattern, said):
            return sentence(found)
    return f"{said.rstrip('.')}: {see}"


def _valueless(names: str, arguments: Sequence[str]) -> str:
    return f"{_argument(names)} has no value: name one after {_flag_given(names, arguments)}, or leave that out"


def _no_choice(found: re.Match) -> str:
    choices = sorted(choice for choice in re.findall(r"'([^']*)'", found[3]) if choice != "None")
    return f"{_argument(found[2])} is '{found[1]}': pass {' or '.join(choices)}"


def _unknown(said: str, arguments: Sequence[str], flags: Sequence[str], see: str) -> str:
    """Tell of a flag that there is not, with the one that may be meant, or of a word that belongs to none."""
    unknown = [word.partition("=")[0] for word in arguments if re.match("--?[A-Za-z]", word) and _hyphened(word) not in flags]
    if not unknown:
        word = said.partition(":")[2].split(",")[0].strip()
        return f"argument is '{word}', which belongs to no flag: leave it out, or {see}"
    name = _hyphened(unknown[0]).strip("-")
    meant = f"--{_ELSEWHERE.get(name, '')}"
    nearest = meant if meant in flags else max(flags, key=lambda flag: _likeness(name, flag))
    if nearest != meant and _likeness(name, nearest) < _ALIKE:
        return f"option '{unknown[0]}' does not exist: {see}"
    return f"option '{unknown[0]}' does not exist: did you mean {nearest}? Else {see}"


def _likeness(name: str, other: str) -> float:
    return difflib.SequenceMatcher(None, name.strip("-"), other.strip("-")).ratio()


def _missing(said: str, command: Callable[..., None]) -> str:
    if flags := re.findall(r"(--[\w-]+) [A-Z]", said):
        return f"{' and '.join(flags)} {'is' if len(flags) == 1 else 'are'}"
    positional = [p.name for p in inspect.signature(command).parameters.values() if p.kind is p.POSITIONAL_ONLY]
    return f"{(positional or list(inspect.signature(command).parameters))[0]} is"


def _unfit(name: str, said: str, arguments: Sequence[str], see: str) -> str:
    """Tell of a value of another kind than that of its argument."""
    flag = _flag_given(name, arguments)
    after = list(arguments[arguments.index(flag) + 1 :]) if flag in arguments else []
    values = []
    for word in after:
        if word.startswith("--"):
            break
        values.append(word)
    value = " ".join(values) if values else next((w.partition("=")[2] for w in arguments if w.startswith(f"{flag}=")), "")
    kinds = [word for kind, word in _KINDS.items() if re.search(rf"\b{kind}\b", said)]
    return (
        f"{_argument(name)} is '{value}': pass {kinds[0]}"
        if kinds
        else f"{_argument(name)} is '{value}', which does not fit: {see}"
    )


def _flag_given(names: str, arguments: Sequence[str]) -> str:
    """Return which of the names of a flag, "--a/--b", stands on the command line, as it is written there."""
    known = names.split("/")
    return next((word.partition("=")[0] for word in arguments if _hyphened(word.partition("=")[0]) in known), known[-1])


def _flags(command: Callable[..., None]) -> list[str]:
    """Return the flags of a command."""
    names, hints = list[str](), typing.get_type_hints(command)
    for name, parameter in inspect.signature(command).parameters.items():
        if dataclasses.is_dataclass(hints.get(name)):
            names += [field.name for field in dataclasses.fields(hints[name])]
        elif parameter.kind is not parameter.POSITIONAL_ONLY:
            names.append(name)
    return ["--help", *(_hyphened(f"--{name}") for name in names), *(["--drift-steps"] if "steps" in names else [])]


def _hyphened(word: str) -> str:
    return word.partition("=")[0].replace("_", "-")


def _shown(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _argument(flags: str) -> str:
    """Return an argument as errors name it."""
    return _shown(flags.rsplit("/", maxsplit=1)[-1])
