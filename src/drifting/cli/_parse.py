"""Parse the words of a command line into values, or raise an error of one sentence about the word that does not fit."""

import contextlib
import dataclasses
import difflib
import functools
import inspect
import io
import re
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import FlagConversionOff, arg

from drifting.errors import InputError

if TYPE_CHECKING:
    from drifting.presets.settings import Setting

# Name of a flag in other programs -> its name here.
_SYNONYMS = {
    **dict.fromkeys(("epochs", "iterations", "max-steps"), "steps"),
    **dict.fromkeys(("n", "num", "count"), "num-samples"),
    **dict.fromkeys(("output-dir", "out-dir", "outdir", "dir"), "save-dir"),
    **dict.fromkeys(("tau", "bandwidth"), "temperatures"),
    **dict.fromkeys(("gpu", "cuda"), "device"),
    **dict.fromkeys(("class", "classes"), "labels"),
    **dict.fromkeys(("resolution", "size"), "image-size"),
    **dict.fromkeys(("amp", "dtype"), "precision"),
    **{"lr": "learning-rate", "bs": "batch-size", "opt": "optimizer", "cfg": "guidance-scale"},
    **{"output": "out", "force": "overwrite", "continue": "resume"},
}
# Smallest similarity of names at which one is suggested in place of the other.
_MIN_SIMILARITY = 0.5
_KINDS = {"INT|int": "a whole number", "FLOAT|float": "a number", "PATH": "a path", "STR": "a name", "True": "True or False"}
Command = Callable[..., Any]
HELP = frozenset({"-h", "--help"})


def flags_of(option: "Setting") -> list[str]:
    """Return all names of an option on a command line, with hyphens."""
    names = [_hyphened(f"--{name}") for name in (*option.others, option.name)]
    return [*names, *(f"--no-{name[2:]}" for name in names if option.switch)]


def _field_of(option: "Setting") -> tuple[str, Any, Any]:
    """Return an option as a field of a dataclass that tyro parses."""
    *short, longest = sorted((*option.others, option.name), key=len)
    about = arg(
        name=longest,
        metavar=_metavar(option.kind),
        prefix_name=False,
        help=option.help,
        aliases=[_hyphened(f"--{name}") for name in short],
        help_behavior_hint=None if option.shown is None else f"({option.shown})",
    )
    kind = Annotated[option.kind, about] if option.switch else Annotated[option.kind, about, FlagConversionOff]
    return option.name.replace(".", "__"), kind, dataclasses.field(default=option.value)


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Reads the words of one command.

    Attributes:
        command: the words before the options, such as "train toy".
        description: description of the command.
        subject: subject of error messages, such as "the preset 'toy'".
        other_options: names of options of other subjects.
        headings: headings in order.
    """

    command: str
    description: str
    subject: str = ""
    other_options: Collection[str] = ()
    headings: Sequence[str] = ()

    def read(self, options: "Sequence[Setting]", words: Sequence[str], *, partial: bool = False) -> dict[str, Any]:
        """Return the values of the options on the command line, or show the help and raise SystemExit if that is requested.

        Args:
            options: all options.
            words: words of the command line.
            partial: whether to ignore unknown words and missing options.

        Raises:
            InputError: if a word does not fit.
        """
        if partial and not set(words) - HELP:
            return {}
        words = with_present_names(words, {f"--{old}": f"--{option.name}" for option in options for old in option.former})
        groups: dict[str, "list[Setting]"] = {
            heading: [] for heading in self.headings if any(one.heading == heading for one in options)
        }
        for option in options:
            optional = partial and option.value is dataclasses.MISSING
            groups.setdefault(option.heading, []).append(dataclasses.replace(option, value=None) if optional else option)
        fields: list[Any] = []
        for index, (heading, group) in enumerate(groups.items()):
            required = [option for option in group if option.value is dataclasses.MISSING]
            ordered = [*required, *(option for option in group if option.value is not dataclasses.MISSING)]
            kind = dataclasses.make_dataclass(f"_Group{index}", [_field_of(option) for option in ordered])
            default = dataclasses.field() if required else dataclasses.field(default_factory=kind)
            # Without a help text, tyro would search the source of the class for one, which there is none of.
            fields.append((f"group{index}", Annotated[kind, arg(name=heading, help="")], default))
        parser = dataclasses.make_dataclass("_Options", fields, kw_only=True, namespace={"__doc__": self.description})
        prog = f"drifting {self.command}"

        def run() -> Any:
            if partial:
                kept = [word for word in words if word not in HELP]
                return tyro.cli(parser, prog=prog, args=kept, return_unknown_args=True)[0]
            return tyro.cli(parser, prog=prog, args=list(words))

        parsed = with_one_sentence_errors(run, lambda message: self._sentence(message, options, words))
        values = {name: value for part in vars(parsed).values() for name, value in vars(part).items()}
        named = {_hyphened(word) for word in words if word.startswith("--")}
        return {option.name: values[option.name.replace(".", "__")] for option in options if named & set(flags_of(option))}

    def _sentence(self, message: str, options: "Sequence[Setting]", words: Sequence[str]) -> str:
        flags = ["--help", *(flag for option in options for flag in flags_of(option))]
        see = f"see drifting {self.command} --help"
        if "Unrecognized options" in message and (first := _first_unknown(words, flags)) is not None:
            name = _name_of(_hyphened(first))
            if name in self.other_options:
                return f"{name} is {_quoted(_value_of(first, words))}, which {self.subject} does not take: leave it out"
        # The message of tyro about a list does not name the option.
        parsing = (option for option in options if re.search(rf"Error parsing (--\S*/)?{flags_of(option)[0]}[/:]", message))
        return _sentence(" ".join([message, *(str(option.kind) for option in parsing)]), words, flags, see)


def with_present_names(words: Sequence[str], former: Mapping[str, str]) -> list[str]:
    """Return the words of a command line with flags of earlier versions renamed; `former` is earlier flag -> present flag."""
    present = {_hyphened(old): _hyphened(new) for old, new in former.items()}
    parts = (word.partition("=") if word.startswith("--") else (word, "", "") for word in words)
    return [present.get(_hyphened(flag), flag) + sign + value for flag, sign, value in parts]


def _metavar(kind: Any) -> str | None:
    """Return the placeholder of a value in `--help`; None for one of a few choices."""
    parts = [each for each in typing.get_args(kind) if each is not type(None)] if typing.get_origin(kind) is not tuple else [kind]
    one = parts[0] if parts else kind
    if typing.get_origin(one) is tuple:
        return " ".join("..." if each is Ellipsis else each.__name__.upper() for each in typing.get_args(one))
    return None if one is bool else getattr(one, "__name__", str(one)).upper()


def with_one_sentence_errors(run: Callable[[], Any], sentence: Callable[[str], str]) -> Any:
    """Run the parser and turn its error message into an InputError of one sentence."""
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            return run()
    except SystemExit as leaving:
        if not leaving.code:
            raise
    raise InputError(sentence(_first_paragraph(message.getvalue())))


def parse(
    commands: Sequence[Command],
    arguments: Sequence[str],
    readers: Mapping[str, Command] | None = None,
    former: Mapping[str, str] | None = None,
) -> Callable[[], int | None]:
    """Return the call of a command and its exit status (None for 0), or show the help and raise SystemExit if that is requested.

    Args:
        commands: commands that are parsed by their signatures.
        arguments: words of the command line.
        readers: commands that read their words themselves and return the call.
        former: flag of an earlier version -> present flag, of `commands`.

    Raises:
        InputError: if the words do not call a command.
    """
    _check_not_empty(arguments)
    if readers and arguments and arguments[0] in readers:
        return readers[arguments[0]](tuple(arguments[1:]))
    arguments = with_present_names(arguments, former or {})
    app = tyro.extras.SubcommandApp()
    for command in commands:
        app.command(_deferred(command))
    by_name = {_hyphened(command.__name__): command for command in commands}
    return with_one_sentence_errors(
        lambda: app.cli(prog="drifting", args=list(arguments)), lambda message: _sentence_of_command(message, arguments, by_name)
    )


def _deferred(command: Command) -> Callable[..., Callable[[], None]]:
    """Return a function that returns the call of a command instead of making it."""

    @functools.wraps(command)
    def call(*positional: Any, **named: Any) -> Callable[[], None]:
        return functools.partial(command, *positional, **named)

    return call


def subject_of(words: Sequence[str], known: Collection[str], switches: Collection[str]) -> tuple[str | None, list[str]]:
    """Return the subject of a command, such as a preset, and the other words.

    The subject is the first word, or a known word that is not the value of an option.

    Args:
        words: words of the command line.
        known: known subjects.
        switches: flags without a value.
    """
    for index, word in enumerate(words):
        before = words[index - 1] if index else ""
        follows = before.startswith("-") and "=" not in before and _hyphened(before) not in switches
        if not word.startswith("-") and (index == 0 or (word in known and not follows)):
            return word, [*words[:index], *words[index + 1 :]]
    return None, list(words)


def _check_not_empty(arguments: Sequence[str]) -> None:
    """Raise InputError for an empty word, which as a path would be the current folder."""
    flag = "an argument"
    for word in arguments:
        name, sign, value = word.partition("=")
        if not word or (word.startswith("--") and sign and not value):
            raise InputError(f"{_name_of(name) if sign else flag} is '': name something, or leave it out")
        flag = _name_of(word) if word.startswith("--") else "an argument"


def _first_paragraph(text: str) -> str:
    """Return the first part of the message of the parser, without its frame."""
    # Without characters for a frame, there is a line below the title.
    lines = [line.strip("│ ") for line in text.splitlines() if not line.startswith(("╭", "╰"))]
    parts, framed = [list[str]()], "╭" in text
    for line in lines:
        if line and set(line) <= {"─", "-"}:
            parts.append([])
        else:
            parts[-1].append(line)
    return " ".join(" ".join(parts[0 if framed or len(parts) < 2 else 1]).split())


def _sentence_of_command(message: str, arguments: Sequence[str], commands: Mapping[str, Command]) -> str:
    name = next((word for word in arguments if not word.startswith("-")), None)
    known = f"there are {', '.join(commands)}"
    if name is None:
        return f"the command is missing: {known}"
    if name not in commands:
        suggestion = max(commands, key=lambda each: _similarity(name.lower(), each))
        return f"command is '{name}': " + (
            f"did you mean '{suggestion}'? T{known[1:]}" if _similarity(name, suggestion) >= _MIN_SIMILARITY else known
        )
    parameters = inspect.signature(commands[name]).parameters.values()
    flags = ["--help", *(_hyphened(f"--{flag}") for one in parameters for flag in _names_of(one))]
    positional = next((one.name for one in parameters if one.kind is one.POSITIONAL_ONLY), "")
    return _sentence(message, arguments, flags, f"see drifting {name} --help", positional)


def _names_of(parameter: inspect.Parameter) -> list[str]:
    """Return the names of the flags of a parameter of a command: those of the fields, if it is a dataclass of settings."""
    settings = next(iter(typing.get_args(parameter.annotation)), None)
    if isinstance(settings, type) and dataclasses.is_dataclass(settings):
        return [field.name for field in dataclasses.fields(settings)]
    return [] if parameter.kind is parameter.POSITIONAL_ONLY else [parameter.name]


def _sentence(message: str, words: Sequence[str], flags: Sequence[str], see: str, positional: str = "") -> str:
    for pattern, sentence in (
        (r"Unrecognized (?:or misplaced )?options()", lambda _: _unknown(message, words, flags, see)),
        (r"Missing from()", lambda _: _missing(message, words, flags, see, positional)),
        (r"Missing value for argument '([^']+)'. Expected (\d+)", lambda found: _without_value(found[1], int(found[2]), words)),
        (r"invalid choice '(.*)' for argument '([^']+)'. Expected one of \((.*)\)", lambda found: _wrong_choice(found, words)),
        (r"Error parsing (--[\w/.-]+|\S+):", lambda found: _wrong_type(found[1], message, words, see)),
    ):
        if found := re.search(pattern, message):
            return sentence(found)
    return f"{message.rstrip('.')}: {see}"


def _without_value(names: str, count: int, words: Sequence[str]) -> str:
    has, needed = ("no value", "one") if count == 1 else ("too few values", str(count))
    return f"{_argument(names, words)} has {has}: name {needed} after {_flag_on_line(names, words)}, or leave that out"


def _wrong_choice(found: re.Match, words: Sequence[str]) -> str:
    choices = sorted(choice for choice in re.findall(r"'([^']*)'", found[3]) if choice != "None")
    return f"{_argument(found[2], words)} is '{found[1]}': pass {' or '.join(choices)}"


def _first_unknown(words: Sequence[str], flags: Collection[str]) -> str | None:
    return next((word.partition("=")[0] for word in words if re.match("--?[A-Za-z]", word) and _hyphened(word) not in flags), None)


def _unknown(message: str, words: Sequence[str], flags: Sequence[str], see: str) -> str:
    """Return the message about an unknown flag, with similar flags, or about a word that belongs to no flag."""
    unknown = _first_unknown(words, flags)
    if unknown is None:
        word = message.partition(":")[2].split(",")[0].strip()
        return f"argument is '{word}', which belongs to no flag: leave it out, or {see}"
    name = _hyphened(unknown).strip("-")
    suggestion = [flag for flag in flags if flag.rpartition(".")[2] == name or flag == f"--{_SYNONYMS.get(name, '')}"]
    if not suggestion:
        nearest = max(flags, key=lambda flag: _similarity(name, flag))
        suggestion = [nearest] if _similarity(name, nearest) >= _MIN_SIMILARITY else []
    if not suggestion:
        return f"option '{unknown}' does not exist: {see}"
    return f"option '{unknown}' does not exist: did you mean {' or '.join(suggestion)}? Else {see}"


def _similarity(name: str, other: str) -> float:
    """Return the similarity of two names from 0 to 1; the last part of a dotted name counts alone too, with a smaller weight."""
    last = other.rpartition(".")[2]
    whole = difflib.SequenceMatcher(None, name.strip("-"), other.strip("-")).ratio()
    return whole if last == other else max(whole, 0.9 * difflib.SequenceMatcher(None, name.strip("-"), last).ratio())


def _missing(message: str, words: Sequence[str], flags: Sequence[str], see: str, positional: str) -> str:
    """Return the message about missing flags; one that is misspelled is the cause, and is named instead."""
    if _first_unknown(words, flags) is not None:
        return _unknown(message, words, flags, see)
    missing = re.findall(r"(--[\w-]+) [A-Z\[{]", message)
    return f"{' and '.join(missing) or positional} {'are' if len(missing) > 1 else 'is'} missing: {see}"


def _wrong_type(name: str, message: str, words: Sequence[str], see: str) -> str:
    """Return the message about a value of the wrong type."""
    value = _value_of(_flag_on_line(name, words), words)
    kinds = [word for kind, word in _KINDS.items() if re.search(rf"\b(?:{kind})\b", message)]
    shown = f"{_argument(name, words)} is '{value}'"
    return f"{shown}: pass {kinds[0]}" if kinds else f"{shown}, which does not fit: {see}"


def _value_of(flag: str, words: Sequence[str]) -> str:
    """Return the words after a flag, up to the next flag."""
    if flag not in words:
        return next((word.partition("=")[2] for word in words if word.startswith(f"{flag}=")), "")
    values: list[str] = []
    for word in words[list(words).index(flag) + 1 :]:
        if word.startswith("--"):
            break
        values.append(word)
    return " ".join(values)


def _quoted(value: str) -> str:
    """Return a value in quotes, unless it is a number or empty."""
    if not value:
        return "True"
    with contextlib.suppress(ValueError):
        float(value)
        return value
    return f"'{value}'"


def _flag_on_line(names: str, words: Sequence[str]) -> str:
    """Return the one of the names of a flag, "--a/--b", that is on the command line, as written there."""
    known = names.split("/")
    return next((word.partition("=")[0] for word in words if _hyphened(word) in known), min(known, key=len))


def _hyphened(word: str) -> str:
    return word.partition("=")[0].replace("_", "-")


def _name_of(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _argument(flags: str, words: Sequence[str]) -> str:
    """Return the name of an argument in errors: as written on the command line, but steps for --drift-steps."""
    name = _name_of(_flag_on_line(flags, words))
    return "steps" if name == "drift_steps" else name
