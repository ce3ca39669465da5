"""Runs that are bounded in memory, or compiled: they learn what others do, by whatever settings they go on."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from drifting import presets, runs
from drifting.checkpoint import load_tensors
from drifting.config import DiTConfig, RunConfig, resolve
from drifting.errors import InputError

pytestmark = pytest.mark.usefixtures("no_pictures")
DIT = DiTConfig(patch=4, width=8, depth=2, heads=2, cond_dim=8, num_context_tokens=2, num_styles=2, style_classes=3)


@pytest.fixture
def config(tiny_images) -> RunConfig:
    schedule = dataclasses.replace(tiny_images.schedule, guidance_scale=1.0, guidance_exponent=1.0)
    return resolve(dataclasses.replace(tiny_images, generator=DIT, schedule=schedule))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_tensors(folder / "generator.safetensors")


@pytest.mark.parametrize("change", [{"checkpointing": True}, {"labels_per_pass": 1}, {"micro_batch": 5}], ids=str)
def test_run_may_go_on_in_less_memory(config, tmp_path, change):
    whole = runs.train(config, tmp_path / "whole").folder
    runs.train(presets.adjust(config, steps=3), tmp_path / "halves")
    halves = runs.train(presets.adjust(config, **change), tmp_path / "halves", resume=True).folder
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(halves)[name], value, rtol=1e-3, atol=1e-4)
    saved = json.loads((halves / "config.json").read_text())
    assert {**saved["schedule"], **saved["generator"]}.items() >= change.items()


def test_run_may_not_go_on_with_another_network(config, tmp_path):
    runs.train(presets.adjust(config, steps=1), tmp_path / "run")
    wider = dataclasses.replace(config, generator=dataclasses.replace(DIT, width=16, checkpointing=True))
    with pytest.raises(InputError, match=r"generator\.width is 16, but the run to resume has 8: only .* checkpointing, .* change"):
        runs.train(wider, tmp_path / "run", resume=True)
