import io
import re

import pytest
from rich.console import Console

from drifting import _progress
from drifting._progress import CountProgress, TrainingProgress, print_lines


def _shown(terminal: bool, steps: int = 3, done: int = 0, norms=(0.5, None, None)) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100)
    with TrainingProgress(steps, done, 10, console=console) as shown:
        for step, norm in zip(range(done + 1, steps + 1), norms, strict=False):
            shown.advance(step, norm)
    return out.getvalue()


def test_only_the_last_step_is_reported_of_a_short_run_without_a_terminal():
    (line,) = _shown(terminal=False).splitlines()
    assert line.startswith("step 3/3  ")
    for part in ("steps/s", "samples/s", "raw drift norm 0.5", "0 s left"):
        assert part in line


def test_lines_without_a_terminal_hold_no_control_characters():
    assert all(character.isprintable() for character in _shown(terminal=False).replace("\n", ""))


def test_lines_come_again_after_a_while(monkeypatch):
    monkeypatch.setattr(_progress, "_QUIET_SECONDS", -1.0)
    assert [line.split()[1] for line in _shown(terminal=False).splitlines()] == ["1/3", "2/3", "3/3"]


def test_terminal_gets_a_bar():
    shown = _shown(terminal=True)
    assert "training" in shown
    assert "3/3" in shown
    assert "\x1b[" in shown


def test_speed_of_a_resumed_run_counts_from_where_it_began(monkeypatch):
    clock = iter([0.0, *[2.0] * 20])
    monkeypatch.setattr(_progress.time, "perf_counter", lambda: next(clock))
    assert "0.5 steps/s  5 samples/s" in _shown(terminal=False, steps=101, done=100)


def test_time_left_counts_steps_and_snapshots_each_by_their_own_time(monkeypatch):
    monkeypatch.setattr(_progress, "_QUIET_SECONDS", -1.0)
    now = [0.0]
    monkeypatch.setattr(_progress.time, "perf_counter", lambda: now[0])
    out = io.StringIO()
    with TrainingProgress(100, 0, 10, console=Console(file=out, width=100)) as shown:
        for step, left in ((1, 4), (2, 3)):
            now[0] += 0.5
            with shown.pause(left):
                now[0] += 6.0
            shown.advance(step)
        now[0] += 1.5
        shown.advance(3)
    first, second, third = out.getvalue().splitlines()
    assert "step 1/100  2.0 steps/s" in first
    assert first.endswith(f"  {99 * 0.5 + 4 * 6:.0f} s left")
    assert second.endswith(f"  {98 * 0.5 + 3 * 6:.0f} s left")
    assert third.endswith(f"  {97 * 2.5 / 3 + 3 * 6:.0f} s left")


def test_bar_shows_the_time_left(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(_progress.time, "perf_counter", lambda: now[0])
    out = io.StringIO()
    with TrainingProgress(5000, 0, 10, console=Console(file=out, force_terminal=True, width=120)) as shown:
        now[0] += 1.0
        shown.advance(1)
    assert "1:23:19" in out.getvalue()


def test_unknown_drift_norm_is_shown_as_such():
    assert "raw drift norm not read yet" in _shown(terminal=False, norms=(None, None, None))


def test_bar_stops_when_training_fails():
    out = io.StringIO()
    shown = TrainingProgress(3, 0, 10, console=Console(file=out, force_terminal=True))

    def fail():
        with shown:
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        fail()
    assert shown._bar.live.is_started is False


@pytest.mark.parametrize("terminal", [False, True])
def test_images_are_passed_on_and_counted(monkeypatch, terminal):
    monkeypatch.setattr(_progress, "_QUIET_SECONDS", 0.0)
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100)
    batches = [([1, 2, 3], "a"), ([4, 5], "b")]
    assert list(_progress.show_images(iter(batches), 5, what="samples", console=console)) == batches
    if terminal:
        assert "5/5" in out.getvalue()
    else:
        first, last = out.getvalue().splitlines()
        assert re.fullmatch(r"samples 3/5  [\d,.]+ images/s  \d+ s left", first)
        assert last.startswith("samples 5/5 ")


def test_counts_begin_behind_what_is_done_already():
    out = io.StringIO()
    with CountProgress("writing", 12, done=10, console=Console(file=out, width=100)) as shown:
        shown.advance(11)
        shown.advance(12)
    (line,) = out.getvalue().splitlines()
    assert line.startswith("writing 12/12  ")
    assert line.endswith("images/s  0 s left")


def test_lines_are_reported_beside_whatever_else_is_shown(monkeypatch, capsys):
    tell = print_lines("reading", unit="rows")
    for done in range(1, 4):
        tell(done, 3)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("reading 3/3  ")
    assert "rows/s" in line
    monkeypatch.setattr(_progress, "_QUIET_SECONDS", -1.0)
    tell(2, 3)
    assert capsys.readouterr().out.startswith("reading 2/3")


@pytest.mark.parametrize("name", ["[red]x[/red]", "[/bold]", ":smile:", "{task}", "{"])
@pytest.mark.parametrize("terminal", [False, True])
def test_names_are_shown_as_they_are(name, terminal):
    out = io.StringIO()
    with CountProgress(name, 2, console=Console(file=out, force_terminal=terminal, width=100)) as shown:
        shown.advance(2)
    assert name in out.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("seconds", [1.0, 5.0])
def test_nothing_is_shown_of_short_work(monkeypatch, terminal, seconds):
    clock = iter([0.0, *[seconds] * 20])
    monkeypatch.setattr(_progress.time, "perf_counter", lambda: next(clock))
    out = io.StringIO()
    with CountProgress("x", 2, console=Console(file=out, force_terminal=terminal, width=100), patience=3.0) as shown:
        for done in (1, 2):
            shown.advance(done)
    assert ("2/2" in out.getvalue()) == (seconds > 3)
    assert seconds > 3 or out.getvalue() == ""
