"""Runs that are bounded in memory, or compiled: they learn what others do, by whatever settings they go on."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch

from drifting import presets, runs
from drifting.checkpoint import load_tensors
from drifting.config import RunConfig
from drifting.errors import InputError
from drifting.generators import DiTConfig
from drifting.runs.folder import saved_config
from drifting.runs.train import build_encoder, resolve

pytestmark = pytest.mark.usefixtures("no_pictures")
DIT = DiTConfig(patch=4, width=8, depth=2, heads=2, cond_dim=8, num_context_tokens=2, num_styles=2, style_classes=3)


@pytest.fixture
def config(tiny_images) -> RunConfig:
    schedule = dataclasses.replace(tiny_images.schedule, guidance_scale=1.0, guidance_exponent=1.0)
    return resolve(dataclasses.replace(tiny_images, generator=DIT, schedule=schedule))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_tensors(folder / "generator.safetensors")


@pytest.fixture(scope="module")
def wholes() -> dict[str, Path]:
    """Holds the folder of the run in one go, once it has been trained."""
    return {}


@pytest.fixture
def whole(config, wholes, tmp_path_factory) -> Path:
    """The folder of the run in one go."""
    if not wholes:
        wholes["whole"] = runs.train(config, tmp_path_factory.mktemp("whole") / "run").folder
    return wholes["whole"]


@pytest.mark.parametrize(
    "change", [{"gradient_checkpointing": True}, {"labels_per_microbatch": 1}, {"microbatch_size": 5}], ids=str
)
def test_run_may_go_on_in_less_memory(config, whole, tmp_path, change):
    runs.train(presets.adjust(config, steps=3), tmp_path / "halves")
    halves = runs.train(presets.adjust(config, **change), tmp_path / "halves", resume=True).folder
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(halves)[name], value, rtol=1e-3, atol=1e-4)
    saved = json.loads((halves / "config.json").read_text())
    assert {**saved["schedule"], **saved["generator"]}.items() >= change.items()


def test_run_may_not_go_on_with_another_network(config, tmp_path):
    runs.train(presets.adjust(config, steps=1), tmp_path / "run")
    wider = dataclasses.replace(config, generator=dataclasses.replace(DIT, width=16, gradient_checkpointing=True))
    with pytest.raises(
        InputError, match=r"generator\.width is 16, but the run to resume has 8: only .* gradient_checkpointing, .* change"
    ):
        runs.train(wider, tmp_path / "run", resume=True)


@pytest.fixture
def compiled(monkeypatch) -> list:
    """Compile to nothing but the graph itself, and tell what was."""
    compiled, real = [], torch.compile

    def to_graph(function):
        compiled.append(function)
        return real(function, backend="eager")

    monkeypatch.setattr(torch, "compile", to_graph)
    return compiled


@pytest.mark.slow  # the next test compiles a smaller run
@pytest.mark.parametrize("change", [{"labels_per_microbatch": 1, "gradient_checkpointing": True}, {"microbatch_size": 5}], ids=str)
def test_compiled_run_learns_the_same(config, whole, tmp_path, compiled, change):
    assert compiled == []
    run = runs.train(presets.adjust(config, compile=True, steps=3, **change), tmp_path / "compiled").folder
    assert {type(function).__name__ for function in compiled} == {"DiT", "AutoencoderFeatures"}
    run = runs.train(presets.adjust(config, compile=True, **change), run, resume=True).folder
    assert weights(run).keys() == weights(whole).keys()
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(run)[name], value, rtol=1e-3, atol=1e-4)


def test_flags_bound_a_run_and_change_nothing_else(command, tmp_path, monkeypatch, small_presets, compiled):
    monkeypatch.chdir(tmp_path)
    for folder, flags in {"whole": (), "parts": ("--labels-per-microbatch", 2, "--compile", True)}.items():
        result = command("train", "digits", "--save-dir", folder, *flags)
        assert result.status == 0, result.err
    assert compiled
    whole, parts = (weights(Path(name)) for name in ("whole", "parts"))
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-5)
    saved = json.loads(Path("parts/config.json").read_text())["schedule"]
    assert (saved["labels_per_microbatch"], saved["microbatch_size"], saved["compile"]) == (2, None, True)
    refused = command("train", "digits", "--save-dir", "x", "--gradient-checkpointing", True)
    assert refused.status == 2
    assert re.fullmatch(r"drifting: gradient_checkpointing is .*: leave it out\n", refused.err)
    assert not Path("x").exists()


def test_encoder_is_compiled_as_well(tiny_images, compiled):
    config = resolve(tiny_images)
    build_encoder(presets.adjust(config, compile=True), config.build_network())
    assert len(compiled) == 1
    build_encoder(config, config.build_network())
    assert len(compiled) == 1


@pytest.mark.parametrize("name", ["imagenet256-ablation", "imagenet256-latent-l", "cifar10-resnet18-gpu"])
@pytest.mark.parametrize("value", [True, False])
def test_checkpointing_is_of_the_generator(name, value):
    config = presets.preset(name)
    changed = presets.adjust(config, gradient_checkpointing=value)
    assert changed.generator.gradient_checkpointing is value
    generator = dataclasses.replace(changed.generator, gradient_checkpointing=config.generator.gradient_checkpointing)
    assert dataclasses.replace(changed, generator=generator) == config


@pytest.mark.parametrize(
    ("setting", "value", "preset"),
    [
        ("gradient_checkpointing", False, "digits"),
        ("gradient_checkpointing", True, "mae-latent-256"),
        ("labels_per_microbatch", 2, "mae-latent-256"),
        ("compile", True, "mnist-classifier"),
    ],
)
def test_what_a_preset_does_not_have_is_refused(setting, value, preset):
    with pytest.raises(InputError, match=f"^{setting} is {value}, which the preset '{preset}' does not take: leave it out$"):
        presets.adjust(presets.preset(preset), **{setting: value})


def test_bounds_of_labels_and_of_samples_replace_each_other():
    recipe = presets.preset("imagenet256-ablation")
    assert (recipe.schedule.labels_per_microbatch, recipe.schedule.microbatch_size) == (2, None)
    samples = presets.adjust(recipe, microbatch_size=256).schedule
    assert (samples.labels_per_microbatch, samples.microbatch_size) == (None, 256)
    labels = presets.adjust(presets.adjust(recipe, microbatch_size=256), labels_per_microbatch=4).schedule
    assert (labels.labels_per_microbatch, labels.microbatch_size) == (4, None)
    with pytest.raises(InputError, match="labels_per_microbatch is 4 and microbatch_size 256: pass one of them"):
        presets.adjust(recipe, microbatch_size=256, labels_per_microbatch=4)


# What configurations have had since runs were first written.
NEW = {
    "schedule": ("labels_per_microbatch", "compile"),
    "generator": ("gradient_checkpointing", "normalized", "rotary"),
    "bank": ("on_cpu",),
    "encoder": (),
    "loss": (),
    "data": ("files",),
}


def test_run_written_before_a_setting_was_there_is_read_and_gone_on_with(config, whole, tmp_path, assert_same_tensors):
    run = runs.train(presets.adjust(config, steps=3), tmp_path / "old").folder
    saved = json.loads((run / "config.json").read_text())
    del saved["parallel"]
    for part, names in NEW.items():
        for name in names if saved[part] else ():
            saved[part].pop(name, None)
    (run / "config.json").write_text(json.dumps(saved))
    assert runs.load(run).config == presets.adjust(config, steps=3)
    again = runs.train(presets.adjust(saved_config(run), steps=config.schedule.steps), run, resume=True).folder
    assert_same_tensors(weights(again), weights(whole))
