"""Files of a run that are damaged end in success or in one sentence: a small part of what `tests.support.fuzz` does on its own."""

import pytest

from tests.support.fuzz import fuzz


@pytest.mark.parametrize(("count", "seed"), [(60, 0), pytest.param(400, 1, marks=pytest.mark.slow)])
def test_no_damage_ends_in_a_traceback(count, seed):
    table = fuzz(count, seed=seed)
    assert not table.faults, table.faults[0]
    endings = {ending for _, _, ending in table.counts}
    assert {"accepted", "refused"} <= endings
