"""Files of a run that are damaged end in success or in one sentence: a small part of what `tests.support.fuzz` does on its own."""

from tests.support.fuzz import fuzz


def test_no_damage_ends_in_a_traceback():
    table = fuzz(250, seed=0)
    assert not table.faults, table.faults[0]
    endings = {ending for _, _, ending in table.counts}
    assert {"accepted", "refused"} <= endings
