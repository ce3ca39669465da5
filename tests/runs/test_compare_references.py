from pathlib import Path

import pytest

from drifting.runs.compare import Entry, comparison


@pytest.mark.parametrize("floor", [0.5, 0.75])
def test_references_that_differ_are_reported_in_one_line(tiny_toy, floor):
    known = {"a": {"reference": "images val"}, "b": {"reference": "statistics x.npz", "frechet_distance_floor": floor}, "c": {}}
    shared = {"extractor": "inception", "frechet_distance": 3.0, "frechet_distance_floor": 0.5}
    entries = [Entry(name, Path(name), tiny_toy, {**shared, **figures}) for name, figures in known.items()]
    assert comparison(entries).doubts == (
        "the runs were measured against different real images (images val 'a', statistics x.npz 'b'), "
        "so their figures cannot be compared: evaluate them with one --real",
    )
    assert comparison(entries[::2]).doubts == ()


def test_reference_is_a_column(tiny_toy):
    table = comparison([Entry("a", Path("a"), tiny_toy, {"extractor": "inception", "reference": "images val"})])
    assert dict(zip(table.columns, table.rows[0], strict=True))["reference"] == "images val"
