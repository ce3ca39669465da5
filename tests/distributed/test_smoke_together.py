"""A recipe of ImageNet in its tiny version, started by torchrun: two processes, with shares of the weights, learn what one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from drifting.checkpoint import load_tensors
from drifting.smoke import try_preset

ROOT = Path(__file__).parents[2]


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
    one = load_tensors(try_preset("imagenet256-latent-l", tmp_path / "one").folder / "generator.safetensors")
    two = load_tensors(folder / "generator.safetensors")
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)
