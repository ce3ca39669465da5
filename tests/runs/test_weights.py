"""The small weights of a release: made by one command, loaded again, and small enough in full size."""

import runpy
import sys
from pathlib import Path

import pytest

import drifting
from drifting import presets
from drifting.errors import InputError
from drifting.runs import weights
from drifting.runs.weights import MOST_BYTES, SMALL, make_weights

SCRIPT = Path(__file__).parents[2] / "experiments" / "make_weights.py"


@pytest.mark.usefixtures("small_presets")
def test_script_trains_evaluates_and_writes_what_can_be_loaded(here, monkeypatch, capsys):
    evaluate = drifting.Run.evaluate
    monkeypatch.setattr(drifting.Run, "evaluate", lambda run, **options: evaluate(run, **options, count=60))
    monkeypatch.setattr(sys, "argv", ["make_weights.py", "moons", "circles", "--save-dir", "released"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert capsys.readouterr().out.split()[-2:] == ["released/moons", "released/circles"]
    for name in ("moons", "circles"):
        folder = here / "released" / name
        assert len(drifting.load(folder).sample(3)) == 3
        assert "| energy distance |" in (folder / "README.md").read_text()
    monkeypatch.setattr(weights, "MOST_BYTES", 1)
    with pytest.raises(InputError, match="more than 1e-06: narrow the network"):
        make_weights("released", ["moons"])


def test_unknown_name_is_refused_before_anything_is_trained(here):
    with pytest.raises(InputError, match=r"name is 'mnst': did you mean 'mnist'\?"):
        make_weights("weights", ["moons", "mnst"])
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("name", ["moons", "digits", "mnist"])
def test_weights_of_full_size_leave_room_for_the_picture_and_the_card(name):
    config = presets.preset(**SMALL[name])
    shape, classes = ((1, 28, 28), 10) if name == "mnist" else (config.data.sample_shape, config.data.num_classes)
    generator = config.generator.build(sample_shape=shape, num_classes=classes, guided=False)
    assert 2 * sum(value.numel() for value in generator.state_dict().values()) < MOST_BYTES - 150_000
