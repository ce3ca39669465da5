"""Functions of the user in a training, and a run that shows itself in a notebook."""

import base64
import io
import re
import shutil

import pytest
import torch
from PIL import Image

import drifting
from drifting import presets, runs
from drifting.checkpoint import load_tensors
from drifting.errors import InputError
from tests.support.small_runs import shrunk


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("kind", ["toy", "digits"])
def test_functions_see_every_step_and_snapshot_and_change_nothing(kind, request, tmp_path):
    steps, shown = [], {}
    config = shrunk(presets.preset(kind))
    run = drifting.train(
        config, tmp_path / "run", on_step=lambda step: steps.append((step.number, float(step.loss))), on_snapshot=shown.__setitem__
    )
    assert [number for number, _ in steps] == [1, 2, 3, 4, 5, 6]
    export = run.config.data.exporter()
    assert {step: samples.tolist() for step, samples in shown.items()} == {
        step: export(samples).tolist() for step, samples in run.snapshots().items()
    }
    assert min(shown) == 0
    assert max(shown) == 6
    without = load_tensors(request.getfixturevalue(f"{kind}_run") / "generator.safetensors")
    weights = load_tensors(run.folder / "generator.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in without.items())


def test_networks_that_are_no_generators_take_no_functions(tmp_path, gray_folder):
    with pytest.raises(InputError, match="on_step or on_snapshot is given, but 'mnist-classifier' trains no generator"):
        drifting.train(presets.preset("mnist-classifier", data=str(gray_folder)), tmp_path / "run", on_step=print)  # pyright: ignore
    assert not (tmp_path / "run").exists()


@pytest.mark.painted
@pytest.mark.parametrize("kind", ["toy_run", "digits_run"])
def test_run_shows_itself_in_a_notebook(kind, request, tmp_path):
    folder = shutil.copytree(request.getfixturevalue(kind), tmp_path / "a <b>")
    run = runs.load_run(folder)
    name = "moons" if kind == "toy_run" else "digits"
    assert re.fullmatch(rf"Run\('.*a <b>': {name}, (Decoder)?MLP of [\d,]+ weights, 6 steps\)", repr(run))
    shown = run._repr_html_()
    assert "a &lt;b&gt;" in shown
    (data,) = re.findall(r'src="data:image/png;base64,([^"]+)"', shown)
    assert base64.b64decode(data) == run._repr_png_()
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        assert min(picture.size) > 30
        assert len(picture.convert("L").getcolors(1000) or [0] * 3) > 2


def test_run_whose_samples_cannot_be_drawn_shows_its_line(toy_run, monkeypatch):
    run = runs.load_run(toy_run)

    def missing(*_: object, **__: object) -> torch.Tensor:
        raise InputError("vae is missing")

    monkeypatch.setattr(runs.Run, "sample", missing)
    assert "<img" not in run._repr_html_()
    monkeypatch.setattr(runs.Run, "sample", lambda *_, **__: torch.zeros(3, 5))
    assert run._repr_png_() is None
    assert run._repr_html_().startswith("<code>Run(")
