"""The settings of a configuration by their dotted names, such as "encoder.width"; `adjust` changes them.

A setting is a flag of the command line and a named argument in Python. The drift field is chosen by the name of its class.
"""

import dataclasses
import difflib
import inspect
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

from drifting._checks import check_choice, nearest_name
from drifting._json import offered, read_value
from drifting.config import RENAMED, AnyConfig
from drifting.data.dataset import FOUND
from drifting.errors import InputError
from drifting.fields import DriftField
from drifting.training.schedule import Schedule

Config = TypeVar("Config", bound=AnyConfig)

# Argument of a preset -> the setting that it decides.
CHOICES = {
    "data": "data.path",
    "dataset": "data.dataset",
    "name": "data.name",
    "image_size": "data.image_size",
    "channels": "data.channels",
    "unconditional": "data.conditional",
    "vae": "data.vae",
    "encoder_weights": "encoder.weights",
}


@dataclass(frozen=True)
class Setting:
    """A setting of a configuration, an argument of a preset, or an option of a command, and how it is written as a flag.

    Attributes:
        name: name, dotted inside a part, such as "encoder.width".
        kind: type of the value.
        value: value in the configuration, or default; dataclasses.MISSING if the option is required.
        help: description from a docstring.
        short: name without the part if it can be used alone; None otherwise.
        heading: heading of its section in `--help`.
        others: other names of the flag.
        former: names of earlier versions, which are read and not shown.
        shown: text shown instead of the default.
        switch: whether the flag takes no value, as in --NAME or --no-NAME.
    """

    name: str
    kind: Any
    value: Any
    help: str
    short: str | None = None
    heading: str = "Run"
    others: tuple[str, ...] = ()
    former: tuple[str, ...] = ()
    shown: str | None = None
    switch: bool = False


def settings(config: Any) -> list[Setting]:
    """Return all settings of a configuration and its parts that a user can set, in order."""
    named = ((setting, *setting.name.rpartition(".")) for setting in _settings(config, ""))
    return [dataclasses.replace(setting, short=last if part in config.short else None) for setting, part, _, last in named]


def choices_of(make: Callable[..., Any]) -> list[Setting]:
    """Return the arguments of a function that returns a configuration, without keyword-only and bound ones.

    Args:
        make: the function, such as that of a preset.
    """
    help_of = described(getattr(make, "func", make))
    arguments = inspect.signature(make).parameters.values()
    chosen = [argument for argument in arguments if argument.kind is argument.POSITIONAL_OR_KEYWORD]
    return [Setting(each.name, each.annotation, each.default, help_of.get(each.name, "")) for each in chosen]


def _settings(part: Any, prefix: str) -> Iterator[Setting]:
    # A setting that its class does not describe is described by the arguments of what the class builds.
    built = typing.get_type_hints(part.build).get("return") if hasattr(part, "build") else None
    kinds, help_of = typing.get_type_hints(type(part)), described(*type(part).__mro__, built)
    for field in dataclasses.fields(part):
        if field.metadata == FOUND:
            continue
        name, value = prefix + field.name, getattr(part, field.name)
        if dataclasses.is_dataclass(value):
            yield from _settings(value, f"{name}.")
        # Parts that may be None, such as a bank, are no settings themselves.
        elif not any(map(dataclasses.is_dataclass, typing.get_args(kinds[field.name]))):
            yield Setting(name, kinds[field.name], value, help_of.get(field.name, ""))


def described(*documented: Any) -> dict[str, str]:
    """Return the descriptions of arguments and attributes in docstrings; the first description of a name counts."""
    found: dict[str, str] = {}
    for one in documented:
        section = re.search(r"^(?:Args|Attributes):\n((?:[ ]+.*\n?|\n(?=[ ]))+)", inspect.getdoc(one) or "", re.M)
        for names, text in re.findall(r"^ {4}(\w[\w, ]*): (.*(?:\n {5,}.*)*)", section[1] if section else "", re.M):
            words = " ".join(text.split())
            found = {**{name: words[:1].upper() + words[1:] for name in names.split(", ")}, **found}
    return found


def adjust(config: Config, *, batch_size: int | None = None, encoder_steps: int | None = None, **changes: Any) -> Config:
    """Return a configuration with some settings changed.

    Args:
        config: configuration to start from.
        batch_size: number of generated samples in a step, in equal shares of its labels (positives in proportion), or number of
            images in a step of a classifier or an encoder.
        encoder_steps: number of optimizer steps of the encoder that a run trains before its generator.
        changes: any setting by its dotted name, as in `adjust(config, **{"encoder.width": 32})`. Those of the run itself, of its
            schedule, its loss and its generator, and of an encoder that is trained on its own, need no dots: steps, learning_rate,
            temperatures, seed, device and so on; without dots, None leaves a setting as it is. The drift field is chosen by its
            name, as in `adjust(config, field="sinkhorn")`, and has its default parameters if it is another one.

    Raises:
        InputError: if a value does not fit, or there is no such setting.
    """
    config, changes = with_fields(config, changes)
    known = {setting.name: setting for setting in settings(config)}
    if encoder_steps is not None:
        if not config.trains_encoder:
            raise InputError(f"encoder_steps is {encoder_steps}, but no encoder is trained before a generator: leave it out")
        changes["encoder.steps"] = encoder_steps
    by_label = "schedule.labels_per_step" in known
    if batch_size is not None and not by_label:
        changes["batch_size"] = batch_size
    values: dict[str, Any] = {}
    for name, value in changes.items():
        if value is not None or "." in name:
            dotted = _dotted(name, value, known, config)
            values[dotted] = read_value(known[dotted].kind, value, name)
    if batch_size is not None and by_label:
        values |= _batch(config.optimization, read_value(int, batch_size, "batch_size"), values)
    for one, other in (("microbatch_size", "labels_per_microbatch"), ("labels_per_microbatch", "microbatch_size")):
        if values.get(f"schedule.{one}") is not None:
            values.setdefault(f"schedule.{other}", None)
    return _replaced(config, values)


def field_names() -> dict[str, type[DriftField]]:
    """Return the name of every drift field -> its class."""
    return {_words_of(kind): kind for kind in offered(DriftField)}


def chosen_fields(config: Any) -> dict[str, str]:
    """Return the setting that chooses each drift field of a configuration -> the name of the present one."""
    found, prefix = {}, "loss."
    part = getattr(config, "loss", None)
    while isinstance(inside := getattr(part, "field", None), DriftField):
        found[f"{prefix}field"] = _words_of(type(inside))
        part, prefix = inside, f"{prefix}field."
    return found


def with_fields(config: Config, changes: Mapping[str, Any]) -> tuple[Config, dict[str, Any]]:
    """Return a configuration with the drift fields that changes choose, and the other changes.

    Args:
        config: configuration to start from.
        changes: value of each setting by its name. "field" and "loss.field" choose the field, and "loss.field.field" the one inside
            of it, by a name or as an object. A field that is of this name already keeps its parameters.

    Raises:
        InputError: if there is no field of a name, or the configuration has no place for it.
    """
    full = {"loss.field" if name == "field" else name: value for name, value in changes.items() if (name, value) != ("field", None)}
    chosen = {name: value for name, value in full.items() if re.fullmatch(r"loss(\.field)+", name)}
    for name in sorted(chosen, key=len):
        config = _with_field(config, name, name.split("."), chosen[name])
    return config, {name: value for name, value in full.items() if name not in chosen}


def _with_field(part: Any, name: str, path: list[str], value: Any) -> Any:
    first, *rest = path
    if not any(field.name == first for field in dataclasses.fields(part)):
        shown = f"'{value}'" if isinstance(value, str) else value
        raise InputError(f"{name} is {shown}, but {type(part).__name__} holds no other field: leave it out")
    before = getattr(part, first)
    return dataclasses.replace(
        part, **{first: _with_field(before, name, rest, value) if rest else _field_named(value, before, name)}
    )


def _field_named(value: Any, before: Any, name: str) -> Any:
    if not isinstance(value, str):
        return value
    plain = {_plain_name(known): kind for known, kind in field_names().items()}
    if _plain_name(value) not in plain:
        check_choice(name, value, field_names())
    kind = plain[_plain_name(value)]
    return before if type(before) is kind else kind()


def _words_of(kind: type) -> str:
    """Return the words of the name of a class with hyphens."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", kind.__name__).lower()


def _plain_name(name: str) -> str:
    return re.sub(r"[-_]", "", name).lower()


def _dotted(name: str, value: Any, known: Mapping[str, Setting], config: AnyConfig) -> str:
    """Return the dotted name of a setting, or raise InputError if the configuration has none of that name."""
    names = [name] if "." in name else [f"{part}.{name}".lstrip(".") for part in config.short]
    for dotted in names:
        if dotted in known:
            return dotted
    shown = f"'{value}'" if isinstance(value, str) else value
    if "." in name:
        nearest = nearest_name(name, known)
        raise InputError(f"{name} is {shown}, which the preset '{config.preset}' does not take: did you mean {nearest}?")
    short = {setting.short for setting in known.values() if setting.short is not None}
    alike = difflib.get_close_matches(name, short | {"batch_size", "encoder_steps"} - {name}, n=1, cutoff=0.75)
    meant = f", or did you mean {alike[0]}?" if alike else ""
    raise InputError(f"{name} is {shown}, which the preset '{config.preset}' does not take: leave it out{meant}")


def _batch(before: Schedule, batch_size: int, values: Mapping[str, Any]) -> dict[str, int]:
    """Return the settings of the samples per label for a number of samples per step."""
    labels = values.get("schedule.labels_per_step", before.labels_per_step)
    if batch_size < labels:
        raise InputError(f"batch_size is {batch_size}: pass at least {labels}, one for each label in a step")
    generated = batch_size // labels
    positives = max(1, round(generated * before.positives / before.generated))
    return {"schedule.generated": generated, "schedule.positives": values.get("schedule.positives", positives)}


def _replaced(part: Any, values: Mapping[str, Any]) -> Any:
    """Return a configuration, or a part of it, with some values replaced. Facts about the data are dropped if the data change."""
    own = {name: value for name, value in values.items() if "." not in name}
    inside: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        if "." in name:
            outer, _, rest = name.partition(".")
            inside.setdefault(outer, {})[rest] = value
    for name, changes in inside.items():
        before = getattr(part, name)
        if name == "data" and any(getattr(before, key) != value for key, value in changes.items()):
            found = [field.name for field in dataclasses.fields(before) if field.metadata == FOUND]
            before = dataclasses.replace(before, **dict.fromkeys(found))
        own[name] = _replaced(before, changes)
    return dataclasses.replace(part, **own)


# Settings of a run that also have a short name.
SHORT = {
    *("steps", "encoder_steps", "batch_size", "learning_rate", "optimizer", "temperatures", "seed", "device", "parallel"),
    *("precision", "keep", "microbatch_size", "labels_per_microbatch", "gradient_checkpointing", "compile"),
}
# Part of a configuration -> heading of its settings.
HEADINGS = {
    "": "Run",
    "data": "Data",
    "generator": "Generator",
    "encoder": "Feature encoder",
    "loss": "Loss",
    "schedule": "Schedule",
    "bank": "Memory bank",
}


def fields_as_options(kind: Any, heading: str = "Run") -> list[Setting]:
    """Return the fields of a dataclass as options."""
    kinds, help_of = typing.get_type_hints(kind), described(kind)
    facts = ((field.name, kinds[field.name], field.default, help_of[field.name]) for field in dataclasses.fields(kind))
    return [Setting(*each, heading=heading, switch=each[1] is bool) for each in facts]


def options_of(kind: Any, choices: Sequence[Setting], config: Any = None, *, every: bool = False) -> list[Setting]:
    """Return the options of a command that trains.

    Args:
        kind: dataclass of the options of the command itself.
        choices: arguments of a preset or an encoder.
        config: configuration whose settings are options too; None while it is not known yet.
        every: whether all settings have short names.
    """
    return [*fields_as_options(kind), *(_of_choices(choices) if config is None else _of_settings(config, choices, every=every))]


def _of_choices(choices: Sequence[Setting], values: Mapping[str, Any] = MappingProxyType({})) -> list[Setting]:
    """Return the arguments of a preset or an encoder as options, each also with the dotted name of its setting.

    Args:
        choices: arguments of a preset or an encoder.
        values: value of each setting by its dotted name, shown as defaults.
    """
    options = []
    for each in choices:
        needed, switch, dotted = each.value is inspect.Parameter.empty, each.kind is bool, CHOICES.get(each.name, "encoder.")
        facts: dict[str, Any] = {"kind": each.kind | None, "value": None, "shown": "required"} if needed else {}
        if not needed and not switch and dotted in values:
            facts["shown"] = f"default: {values[dotted]}"
        others = () if switch or each.name not in CHOICES else (dotted,)
        heading = HEADINGS[dotted.partition(".")[0]]
        options.append(dataclasses.replace(each, **facts, heading=heading, others=others, switch=switch))
    return options


def options_of_fields(config: Any) -> list[Setting]:
    """Return the options that choose the drift fields of a configuration."""
    text, heading = f"Drift field, with its own settings: {', '.join(field_names())}.", HEADINGS["loss"]
    return [Setting(name, str, value, text, heading=heading) for name, value in chosen_fields(config).items()]


def _of_settings(config: Any, choices: Sequence[Setting], *, every: bool) -> list[Setting]:
    """Return the choices and all other settings of a configuration as options."""
    known, schedule = settings(config), getattr(config, "schedule", None)
    options = _of_choices(choices, {each.name: each.value for each in known})
    if schedule is not None:
        size, text = f"default: {schedule.labels_per_step * schedule.generated}", described(adjust)["batch_size"]
        options.append(Setting("batch_size", int | None, None, text, heading=HEADINGS["schedule"], shown=size))
    decided, called = {CHOICES.get(each.name) for each in choices}, {dotted: (name,) for name, dotted in CHOICES.items()}
    for each in known:
        if each.name in decided:
            continue
        others = (each.short,) if each.short != each.name and each.short and (every or each.short in SHORT) else ()
        others += () if choices or each.name == "data.conditional" else called.get(each.name, ())
        others += ("drift_steps",) if "steps" in (each.name, *others) else ()
        earlier = [old for old, new in RENAMED.items() if new == each.name.rpartition(".")[2]]
        former = tuple(f"{name.rpartition('.')[0]}.{old}".lstrip(".") for name in (each.name, *others) for old in earlier)
        others += ("encoder_steps",) if each.name == "encoder.steps" and schedule is not None else ()
        heading = HEADINGS[each.name.rpartition(".")[0].partition(".")[0]]
        options.append(dataclasses.replace(each, heading=heading, others=others, former=former))
    return [*options, *options_of_fields(config)]
