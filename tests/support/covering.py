"""Choose few cases out of the product of many parameters.

    @pytest.mark.parametrize(*pairwise(split=(by_groups, by_samples), size=(1, 2, 3), options=OPTIONS))
    def test_...(split, size, options): ...

A fault shows for one value of a parameter, or for two values of two parameters that meet; that three must meet is rare. `pairwise`
returns cases in which every two values of two parameters meet at least once, `each_once` cases that hold every value once.
"""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

Values = Mapping[str, Any] | Iterable[Any]


def pairwise(**parameters: Values) -> tuple[list[str], list]:
    """Return the arguments of `parametrize` for cases in which every pair of values of two parameters occurs.

    The choice is greedy and depends on the order of the values alone: the next case is the first of those with the most new pairs.

    Args:
        parameters: name -> values, or a mapping of ids to values.
    """
    named = {name: _named(values) for name, values in parameters.items()}
    cases = list(itertools.product(*(range(len(values)) for values in named.values())))
    pairs = {case: set(itertools.combinations(enumerate(case), 2)) for case in cases}
    missing, chosen = set().union(*pairs.values()), []
    while missing:
        best = max(cases, key=lambda case: len(pairs[case] & missing))
        chosen.append(best)
        missing -= pairs[best]
    return _arguments(named, chosen)


def each_once(**parameters: Values) -> tuple[list[str], list]:
    """Return the arguments of `parametrize` for as many cases as the longest parameter has values; shorter ones begin again."""
    named = {name: _named(values) for name, values in parameters.items()}
    length = max(len(values) for values in named.values())
    return _arguments(named, [tuple(index % len(values) for values in named.values()) for index in range(length)])


def _named(values: Values) -> list[tuple[str, Any]]:
    if isinstance(values, Mapping):
        return list(values.items())
    return [(getattr(value, "__name__", str(value)), value) for value in values]


def _arguments(named: dict[str, list[tuple[str, Any]]], cases: list[tuple[int, ...]]) -> tuple[list[str], list]:
    params = []
    for case in cases:
        items = [values[index] for values, index in zip(named.values(), case, strict=True)]
        params.append(pytest.param(*(value for _, value in items), id="-".join(name for name, _ in items)))
    return list(named), params
