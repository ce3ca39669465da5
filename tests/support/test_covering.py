"""The chosen cases hold what they promise."""

import itertools

from tests.support.covering import each_once, pairwise


def test_every_two_values_meet_in_few_cases():
    axes = {"a": range(7), "b": {"x": "X", "y": "Y", "z": "Z", "w": "W"}, "c": (1, 2, 3), "d": (True, False)}
    names, params = pairwise(**axes)
    assert names == list(axes)
    values = [range(7), "XYZW", (1, 2, 3), (True, False)]
    for (i, first), (j, second) in itertools.combinations(enumerate(values), 2):
        assert {(param.values[i], param.values[j]) for param in params} == set(itertools.product(first, second))
    assert 28 <= len(params) <= 34
    assert len({param.id for param in params}) == len(params)
    assert params[0].id == "0-x-1-True"


def test_every_value_occurs_once():
    _, params = each_once(a=(1, 2, 3), b=(4, 5))
    assert [param.values for param in params] == [(1, 4), (2, 5), (3, 4)]
