"""Words of a command line that fit no command: one sentence, status 2, nothing written."""

import io
import re
import sys

import pytest

from drifting.cli import main
from drifting.cli._parse import parse

WORDS = {
    "train toy --lr 3": "option '--lr' does not exist: did you mean --learning-rate? Else see drifting train toy --help",
    "train toy -lr 3": "option '-lr' does not exist: did you mean --learning-rate? Else see drifting train toy --help",
    "train toy --step 3": "option '--step' does not exist: did you mean --steps? Else see drifting train toy --help",
    "train toy --steps many": "steps is 'many': pass a whole number",
    "train toy --steps": "steps has no value: name one after --steps, or leave that out",
    "train toy --temperatures 0.1 x": "temperatures is '0.1 x': pass a number",
    "train toy --compile maybe": "compile is 'maybe': pass False or True",
    "train toy more": "argument is 'more', which belongs to no flag: leave it out, or see drifting train toy --help",
    "train": "preset is missing: see drifting train --help",
    "latents": "--data and --out are missing: see drifting latents --help",
    "compare-fields": "--fields and --presets are missing: see drifting compare-fields --help",
    "compare-fields --presets moons": "--fields is missing: see drifting compare-fields --help",
    "compare-fields --preset moons --fields x": "option '--preset' does not exist: did you mean --presets? Else see drifting ",
    "sample x --device cpu": "option '--device' does not exist: see drifting sample --help",
    "calibrate images --image-size 16": "option '--image-size' does not exist: did you mean --batch-size? Else see drifting ",
    "share x --too y": "option '--too' does not exist: did you mean --to? Else see drifting share --help",
    "evalute x": "command is 'evalute': did you mean 'evaluate'? There are train, ",
    "": "the command is missing: there are train, ",
    "train toy --dataset=": "dataset is '': name something, or leave it out",
}


@pytest.mark.parametrize("arguments", WORDS)
def test_words_that_fit_no_command_are_named(here, command, arguments):
    result = command(*arguments.split())
    assert result.status == 2
    assert result.err.startswith(f"drifting: {WORDS[arguments]}")
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(("arguments", "name"), [(["train", "toy", "--save-dir", ""], "save_dir"), (["sample", ""], "an argument")])
def test_empty_words_are_refused(here, command, arguments, name):
    result = command(*arguments)
    assert (result.status, result.err) == (2, f"drifting: {name} is '': name something, or leave it out\n")
    assert list(here.iterdir()) == []


def test_version_is_reported(command):
    result = command("--version")
    assert result.status == 0
    assert re.fullmatch(r"drifting \d+\.\d+\.\d+\n", result.out)


def test_parsing_calls_nothing():
    called = []

    def greet(name: str) -> None:
        """Greet."""
        called.append(name)

    def part() -> None:
        """Part."""

    call = parse([greet, part], ["greet", "--name", "you"])
    assert called == []
    call()
    assert called == ["you"]


def test_terminal_of_ascii_gets_the_same_sentence(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stderr", terminal)
    with pytest.raises(SystemExit) as left:
        main(["train", "toy", "\u2022", "more"])
    assert left.value.code == 2
    terminal.flush()
    message = b"drifting: argument is '\\u2022', which belongs to no flag: leave it out, or see drifting train toy --help\n"
    assert terminal.buffer.getvalue() == message
