"""The transformer against outputs of the authors' release, with the release's own weights."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from drifting.generators.dit import DiT
from drifting.hub import load_generator

FOLDER = os.environ.get("DRIFTING_REFERENCE")

pytestmark = pytest.mark.skipif(FOLDER is None, reason="DRIFTING_REFERENCE names no folder with outputs of the release")


def _released(case: str) -> tuple[DiT, dict[str, torch.Tensor]]:
    with np.load(Path(FOLDER) / case / "expected.npz") as arrays:
        values = {name: torch.tensor(arrays[name]) for name in arrays}
    expected = {name: value.movedim(-1, 1) if name.endswith("_nhwc") else value for name, value in values.items()}
    return load_generator(Path(FOLDER) / case), expected


@pytest.mark.parametrize("case", ["generator_latent", "generator_pixel"])
def test_outputs_are_those_of_the_release(case):
    network, expected = _released(case)
    given = [expected[name] for name in ("noise_nhwc", "labels", "cfg_scale", "style_indices")]
    with torch.no_grad():
        condition, samples = network.condition(*given), network(*given)
    torch.testing.assert_close(condition, expected["condition"], rtol=0, atol=1e-6)
    torch.testing.assert_close(samples, expected["output_nhwc"], rtol=0, atol=3e-6)
