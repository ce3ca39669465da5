"""A recipe of ImageNet in its tiny version, started by torchrun: two processes, with shares of the weights, begin as one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from drifting.checkpoint import load_tensors
from drifting.runs.smoke import try_preset

ROOT = Path(__file__).parents[2]


@pytest.mark.slow  # test_recipe.py compares the first step of a recipe
@pytest.mark.distributed
def test_two_processes_try_a_recipe_as_one_does(tmp_path):
    folder = tmp_path / "two"
    launched = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "drifting"]
    command = [*launched, "train", "imagenet256-latent-l", "--smoke", "--save-dir", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("imagenet256-latent-l works") == 1
    assert json.loads((folder / "config.json").read_text())["parallel"] == "fsdp"
    assert "frechet_distance" in json.loads((folder / "metrics.json").read_text())
    one = try_preset("imagenet256-latent-l", tmp_path / "one").folder
    weights = [load_tensors(run / "generator.safetensors") for run in (one, folder)]
    assert weights[0].keys() == weights[1].keys()
    assert all(value.isfinite().all() for value in weights[1].values())
    # Of so narrow an encoder some features are blank: their drift is rounding, divided by itself, and steers AdamW from the second
    # step on, with the number of threads already. The first step is that of one process; test_recipe.py compares its gradients.
    alone, together = (json.loads((run / "metrics.jsonl").read_text().splitlines()[0]) for run in (one, folder))
    assert alone["step"] == together["step"] == 1
    assert together["loss"] == pytest.approx(alone["loss"], rel=3e-3)
    norms = {name: value for name, value in alone.items() if name.startswith("drift_norm/")}
    assert len(norms) > 50
    assert {name: together[name] for name in norms} == pytest.approx(norms, rel=1e-2, abs=1e-7)
