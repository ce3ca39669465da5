"""Examples of parts of your own run, and the notebook runs from its first cell to its last."""

import functools
import re
import runpy

import pytest
import torch

import drifting
from tests.support.processes import ROOT

EXAMPLES = ROOT / "examples"


def test_ladder_names_every_example():
    named = re.findall(r"^\| \[(\S+)\]\(\1\)", (EXAMPLES / "README.md").read_text(), re.M)
    assert named == sorted(path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb"))


def test_own_field_is_antisymmetric_and_trains(capsys):
    example = runpy.run_path(str(EXAMPLES / "08_own_field.py"))
    rng = torch.Generator().manual_seed(0)
    x, a, b = (torch.randn(1, count, 2, generator=rng, dtype=torch.float64) for count in (5, 6, 6))
    field = functools.partial(example["two_mean_shifts"], temperatures=torch.tensor([0.3, 1.0], dtype=torch.float64))
    torch.testing.assert_close(field(x, a, b), -field(x, b, a))
    assert field(x, a, b).abs().max() > 0.1
    torch.testing.assert_close(
        field(x, a, torch.cat([x, b], 1), num_self=5)[:, :, :1], field(x[:, :1], a, torch.cat([x[:, 1:], b], 1))
    )
    assert example["main"](steps=100, n=32).shape == (1000, 2)
    assert "step 100" in capsys.readouterr().out


def test_own_encoder_trains(capsys):
    assert runpy.run_path(str(EXAMPLES / "07_own_encoder.py"))["main"](steps=100, n=16).shape == (200, 1, 8, 8)
    assert "step 100: raw drift norms {'pixels'" in capsys.readouterr().out


def test_own_data_trains_a_run(tmp_path, capsys, monkeypatch):
    whole = drifting.preset
    small = {"generator.code_dim": 8, "generator.decoder_width": 4, "encoder.width": 4, "schedule.warmup_steps": 0}
    monkeypatch.setattr(drifting, "preset", lambda name, **settings: whole(name, **settings, **small))
    run = runpy.run_path(str(EXAMPLES / "09_own_data.py"))["main"](save_dir=str(tmp_path / "run"), steps=2, n=16)
    assert "180 training images and 20 test images, 10 classes" in capsys.readouterr().out
    assert run.sample(2).shape == (2, 8, 8, 1)


@pytest.mark.slow
def test_notebook_runs():
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(EXAMPLES / "idea.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # outputs are not committed
    (settings,) = [cell for cell in notebook.cells if "STEPS = 1000" in cell.source]
    settings.source = settings.source.replace("STEPS = 1000", "STEPS = 30")
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    shown = [key for cell in notebook.cells for output in cell.get("outputs", ()) for key in output.get("data", ())]
    assert shown.count("image/png") == 4
    assert "image/gif" in shown
