import json

import pytest

from drifting.errors import InputError
from drifting.training.recorder import MetricsLog


@pytest.fixture
def log(tmp_path) -> MetricsLog:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in (2, 4, 6):
        log.append(step=step, loss=step / 7)
    return log


def test_lines_are_json_and_read_back_exactly(log):
    assert [json.loads(line) for line in log.path.read_text().splitlines()] == log.read()
    assert log.read() == [{"step": step, "loss": step / 7} for step in (2, 4, 6)]


def test_file_is_made_with_the_first_line(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    assert log.read() == []
    assert not log.path.exists()


def test_last_line_cut_off_by_a_crash_is_ignored(log):
    with log.path.open("a") as file:
        file.write('{"step": 8, "lo')
    assert [line["step"] for line in log.read()] == [2, 4, 6]


@pytest.mark.parametrize(("step", "kept"), [(6, [2, 4, 6]), (5, [2, 4]), (2, [2]), (0, [])])
def test_winding_back_drops_every_later_line(log, step, kept):
    log.wind_back(step)
    assert [line["step"] for line in log.read()] == kept


def test_log_goes_on_after_winding_back_over_a_cut_off_line(log):
    with log.path.open("a") as file:
        file.write('{"step": 8, "lo')
    log.wind_back(4)
    log.append(step=5, loss=0.0)
    assert [line["step"] for line in log.read()] == [2, 4, 5]


def test_winding_back_keeps_the_bytes_of_the_lines_it_keeps(log):
    before = log.path.read_text().splitlines()
    log.wind_back(4)
    assert log.path.read_text().splitlines() == before[:2]


@pytest.mark.parametrize("name", ["drift_norm/sample", "noise_floor/sample"])
def test_figure_without_its_temperature_is_damaged(log, name):
    log.append(**{"step": 8, name: 1.0})
    with pytest.raises(InputError, match=rf"line 4 is damaged \({name} is not a number of a known name\): delete that line"):
        log.read()


def test_damaged_line_is_reported_with_the_file(log):
    log.path.write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl"):
        log.read()
