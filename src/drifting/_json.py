"""Write JSON files, and read them strictly: no repeated names, no numbers out of range, and only fields of the annotated types.

A dataclass is an object. If several classes are possible, its entry "type" names the class, see `config.from_json`; an abstract
class allows all of its subclasses that its package exports.
"""

import dataclasses
import importlib
import inspect
import json
import numbers
import types
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from drifting._files import atomic_path
from drifting.errors import InputError, one_line, reason

T = TypeVar("T")

# Largest integer: 64 bits.
_LARGEST = 2**63 - 1
# Largest length of a file name in bytes.
_LONGEST_NAME = 255
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


def save_json(path: Path, facts: Any) -> None:
    """Write JSON, atomically."""
    with atomic_path(path) as scratch:
        scratch.write_text(json.dumps(facts, indent=1) + "\n")


def load_json(path: Path, *, fix: str = "restore it or train again") -> Any:
    """Read JSON; raises InputError if it is missing, or damaged, with a message that ends in `fix`."""
    try:
        return parse_json(path.read_text())
    except FileNotFoundError:
        raise InputError(f"file is '{path}', which does not exist: name the folder of a finished or interrupted run") from None
    except (ValueError, OSError) as error:
        raise InputError(f"file is '{path}', which is corrupted ({reason(error)}): {fix}") from None


def parse_json(text: str, *, finite: bool = True) -> Any:
    """Return the values of a JSON text.

    Args:
        text: the text of one value.
        finite: whether to refuse NaN and infinity, which Python can write.

    Raises:
        ValueError: if it is not JSON, an object has a name twice, a number exceeds 64 bits, or it is nested too deeply.
    """
    kinds: dict[str, Any] = {"parse_float": _finite, "parse_constant": _finite} if finite else {}
    try:
        return json.loads(text, parse_int=_whole, object_pairs_hook=_object, **kinds)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _finite(text: str) -> float:
    value = float(text)
    if value - value != 0:
        raise ValueError(f"{text[:20]} is not a finite number")
    return value


def _whole(text: str) -> int:
    # int() of very many digits would be slow.
    if len(text) > 20 or abs(int(text)) > _LARGEST:
        raise ValueError(f"{text[:20]}{'...' * (len(text) > 20)} is too large")
    return int(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"'{twice[:40]}' stands twice")
    return values


def read_dataclass(kind: Callable[..., T], values: Any, name: str = "") -> T:
    """Return a dataclass from JSON values that match its annotations; lists become tuples.

    Args:
        kind: the dataclass; missing fields take their defaults.
        values: an object; its entry "type" is ignored.
        name: name of the field that holds it, for messages.

    Raises:
        InputError: naming the first field that is unknown, missing, or of another type.
    """
    type_name = getattr(kind, "__name__", "")
    if not isinstance(values, Mapping):
        raise InputError(f"{name or type_name} is {_shown(values)}, not an object of {type_name}")
    prefix, hints = f"{name}." if name else "", get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    entries = {key: value for key, value in values.items() if key != "type"}
    for key in entries:
        if key not in fields:
            raise InputError(f"{prefix}{one_line(key, 60)} is unknown to {type_name}")
    for key, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and key not in entries:
            raise InputError(f"{prefix}{key} is missing")
    return kind(**{key: read_value(hints[key], value, prefix + key) for key, value in entries.items()})


def read_value(kind: Any, value: Any, name: str) -> Any:
    """Return a value of JSON or numpy that matches an annotation, or raise InputError naming the field; see `read_dataclass`."""
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _read_one_of(parts, value, name)
    if inspect.isabstract(kind) or dataclasses.is_dataclass(kind):
        return _read_one_of(offered(kind) if inspect.isabstract(kind) else (kind,), value, name)
    if origin is tuple:
        return _read_tuple(parts, value, name)
    if origin is dict:
        if isinstance(value, dict):
            return value
    elif type(plain := _plain(value)) is kind or (kind is float and type(plain) is int):
        if isinstance(value, str) and not _is_text(value):
            raise InputError(f"{name} is {_shown(value)}, which can name nothing")
        return plain
    raise InputError(f"{name} is {_shown(value)}, not {_WORDS.get(kind, 'an object')}")


def _plain(value: Any) -> Any:
    """Return a number of numpy as one of Python, and any other value as it is."""
    return getattr(value, "item", lambda: value)() if isinstance(value, numbers.Real) else value


def offered(base: Any) -> tuple[Any, ...]:
    """Return the subclasses of an abstract class that the package of its module exports."""
    package = importlib.import_module(base.__module__.rpartition(".")[0])
    offered = [getattr(package, name) for name in sorted(dir(package))]
    return tuple(each for each in offered if isinstance(each, type) and issubclass(each, base) and not inspect.isabstract(each))


def _read_one_of(kinds: Sequence[Any], value: Any, name: str) -> Any:
    by_name: dict[str, Any] = {kind.__name__: kind for kind in kinds if dataclasses.is_dataclass(kind)}  # pyright: ignore
    if isinstance(value, dict) and by_name:
        found = value.get("type")
        if not isinstance(found, str) or found not in by_name:
            raise InputError(f"{name}.type is {_shown(found)}, not {' or '.join(by_name)}".lstrip("."))
        return read_dataclass(by_name[found], value, name)
    others = [kind for kind in kinds if not dataclasses.is_dataclass(kind)]
    for kind in others:
        with suppress(InputError):
            return read_value(kind, value, name)
    wanted = [*by_name, *(_WORDS.get(kind, "a list") for kind in others)]
    raise InputError(f"{name} is {_shown(value)}, not {' or '.join(wanted)}")


def _read_tuple(parts: Sequence[Any], value: Any, name: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise InputError(f"{name} is {_shown(value)}, not a list")
    kinds = [parts[0]] * len(value) if parts[-1] is Ellipsis else parts
    if len(kinds) != len(value):
        raise InputError(f"{name} has {len(value)} entries, not {len(kinds)}")
    return tuple(read_value(kind, each, f"{name}[{index}]") for index, (kind, each) in enumerate(zip(kinds, value, strict=True)))


def _is_text(value: str) -> bool:
    """Return whether text could be a name, a path or an address."""
    try:
        parts = value.encode().split(b"/")
    except UnicodeEncodeError:
        return False
    return "\0" not in value and all(len(part) <= _LONGEST_NAME for part in parts)


def _shown(value: Any) -> str:
    return one_line(repr(value), 60)
