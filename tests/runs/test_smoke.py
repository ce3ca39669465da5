"""The tiny version of every preset: trained, kept, evaluated, in a second or so."""

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from drifting.checkpoint import checkpoints, load_tensors
from drifting.config import ClassifierConfig, EncoderRunConfig, RunConfig, from_json
from drifting.data.latents_writer import CacheSettings
from drifting.encoders import MAEFeaturesConfig
from drifting.presets import PRESETS, preset
from drifting.presets.variants import smoke
from drifting.runs.smoke import write_images, write_vae

SMALL = CacheSettings(image_size=16)
# One preset of each kind, but for recipes, which the commands of the documents train; the others are slow.
TRIED = ("toy", "digits", "mnist-classifier", "cifar10-resnet18", "images", "mae-latent-256")
# What is measured of runs of each kind of data.
FIGURES = {"ToyData": "energy_distance", "DigitsData": "logistic_accuracy"}


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """Work in an empty folder, without data or libraries that reach for the network."""
    monkeypatch.chdir(tmp_path)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.delenv("DRIFTING_DATA", raising=False)
    return tmp_path


def _config(folder: Path):
    return from_json(json.loads((folder / "config.json").read_text()), str(folder))


@pytest.mark.parametrize("name", [name if name in TRIED else pytest.param(name, marks=pytest.mark.slow) for name in PRESETS])
def test_every_preset_can_be_tried(name, here, command):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    result = command("train", name, "--smoke")
    assert torch.equal(torch.rand(1), expected)  # the random stream of the process is left alone
    assert result.status == 0, result.err
    folder = Path("runs/smoke") / name
    works = f"{name} works: two steps, a checkpoint and an evaluation are in {folder}"
    assert result.out.splitlines()[-1] == works
    config = _config(folder)
    assert config.preset == name
    if isinstance(config, RunConfig):
        assert [path.name for path in checkpoints(folder / "checkpoints")] == ["step-00000002"]
        figures = json.loads((folder / "metrics.json").read_text())
        assert FIGURES.get(type(config.data).__name__, "frechet_distance") in figures
        assert all(weight.isfinite().all() for weight in load_tensors(folder / "generator.safetensors").values())
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    elif isinstance(config, EncoderRunConfig):
        assert [path.name for path in checkpoints(folder / "checkpoints")] == ["step-00000002"]
        assert json.loads((folder / "encoder.json").read_text())["masked_error"] > 0
    else:
        assert json.loads((folder / "metrics.json").read_text())["test_accuracy"] >= 0
    assert [path.name for path in here.iterdir()] == ["runs"]


@pytest.mark.parametrize("name", PRESETS)
def test_tiny_version_is_of_the_same_kinds(name):
    config = preset(name, **({"data": "x"} if name.startswith("images") else {}))
    tiny = smoke(config)
    assert smoke(tiny) == tiny
    assert tiny.device == "cpu"
    assert (type(tiny), tiny.preset, type(tiny.data)) == (type(config), config.preset, type(config.data))
    if isinstance(config, ClassifierConfig):
        assert (tiny.steps, tiny.augmentation()) == (2, config.augmentation())
        return
    assert type(tiny.encoder) is type(config.encoder)
    if isinstance(config, EncoderRunConfig):
        assert (tiny.encoder.steps, tiny.encoder.precision, tiny.learns_classes) == (2, "float32", config.learns_classes)
        return
    assert type(tiny.generator) is type(config.generator)
    assert (tiny.bank is None) == (config.bank is None)
    assert (tiny.schedule.steps, tiny.schedule.precision) == (2, "float32")
    same = ("guidance_scale", "guidance_exponent", "unguided_prob", "optimizer", "learning_rate", "betas", "ema_decay")
    assert [getattr(tiny.schedule, field) for field in same] == [getattr(config.schedule, field) for field in same]
    assert tiny.loss == config.loss
    if not isinstance(config.encoder, MAEFeaturesConfig):
        assert getattr(tiny.encoder, "features", None) == getattr(config.encoder, "features", None)


def test_settings_and_choices_reach_the_tiny_version(here, command, gray_folder):
    settings = ("--data", gray_folder, "--seed", 3, "--steps", 3, "--unconditional")
    assert command("train", "mnist-pixel", "--smoke", *settings, "--save-dir", "x").status == 0
    config = _config(here / "x")
    assert isinstance(config, RunConfig)
    assert (config.data.path, config.data.conditional, config.seed, config.schedule.steps) == (str(gray_folder), False, 3, 3)
    assert json.loads((here / "x" / "metrics.json").read_text())["extractor"] == "pixels"


@pytest.mark.filterwarnings("ignore:.*singular covariance")
def test_commands_of_the_documents_follow_each_other(here, command, assert_same_tensors):
    write_images(here / "images", image_size=16, channels=3)
    write_vae(here / "vae")
    for arguments in (
        "latents --data images --vae vae --out cache --image-size 16",
        "train mae-latent-256 --data cache --smoke --save-dir mae",
        "train imagenet256-ablation --data cache --encoder-weights mae/encoder.safetensors --smoke --save-dir run",
        "sample run --labels 2 0 1 --num-samples 6 --out grid.png",
        "evaluate run --extractor pixels --real images --num-samples 16",
    ):
        result = command(*arguments.split())
        assert result.status == 0, result.err
    with Image.open(here / "grid.png") as picture:
        assert picture.width > picture.height
    assert json.loads((here / "run" / "metrics.json").read_text())["reference"] == "images images/test"
    trained, used = (load_tensors(here / name / "encoder.safetensors") for name in ("mae", "run"))
    assert_same_tensors(used, {name: value for name, value in trained.items() if name.startswith(("stem.", "stages."))})
    assert not (here / "run" / "smoke").exists()


def test_named_folder_is_replaced_only_when_asked(here, command):
    for _ in range(2):
        assert command("train", "mnist-classifier", "--smoke").status == 0
    assert command("train", "mnist-classifier", "--smoke", "--save-dir", "x").status == 0
    refused = command("train", "mnist-classifier", "--smoke", "--save-dir", "x")
    assert (refused.status, "save_dir is 'x', which already holds a run" in refused.err) == (2, True)
    assert command("train", "mnist-classifier", "--smoke", "--save-dir", "x", "--overwrite").status == 0
    resumed = command("train", "mnist-classifier", "--smoke", "--resume")
    assert (resumed.status, "resume is given with smoke" in resumed.err) == (2, True)
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    elsewhere = command("train", "mnist-classifier", "--smoke", "--device", "tpu")
    assert (elsewhere.status, "device is 'tpu': pass cpu" in elsewhere.err) == (2, True)
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*")} == before
    unknown = command("train", "mnist", "--smoke")
    assert (unknown.status, "did you mean 'mnist-" in unknown.err) == (2, True)


def test_folder_of_the_same_name_as_what_is_made_is_left_alone(here, command):
    """Such as the default folder of quick tries, seen from the folder above it."""
    notes = here / "runs" / "smoke" / "toy" / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")
    for options in ((), ("--overwrite",)):
        result = command("train", "toy", "--smoke", "--save-dir", "runs", *options)
        assert notes.exists()
        refusal = "save_dir is 'runs', whose folder 'smoke' is not of a quick try: name another"
        assert (result.status, result.err) == (2, f"drifting: {refusal}\n")


def test_what_an_interrupted_try_made_is_replaced_only_when_asked(here, command):
    write_images(here / "x" / "smoke" / "images", image_size=16, channels=1)
    (here / "x" / "smoke" / "judge").mkdir()  # as the extractor was called before
    refused = command("train", "mnist-classifier", "--smoke", "--save-dir", "x")
    assert (refused.status, "save_dir is 'x', which already holds a run: pass --overwrite" in refused.err) == (2, True)
    assert command("train", "mnist-classifier", "--smoke", "--save-dir", "x", "--overwrite").status == 0


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("imagenet256-pixel-b", marks=pytest.mark.slow),
        pytest.param("imagenet256-latent-b", marks=pytest.mark.slow),
        "mae-pixel-640",
    ],
)
def test_half_precision_can_be_tried(here, command, name):
    result = command("train", name, "--smoke", "--precision", "bfloat16")
    assert result.status == 0, result.err
    config = _config(here / "runs" / "smoke" / name)
    assert getattr(config, "schedule", config.encoder).precision == "bfloat16"


@pytest.mark.parametrize(("name", "library"), [("mae-latent-256", "diffusers"), ("imagenet256-pixel-l", "transformers")])
def test_library_that_is_missing_is_named(here, command, monkeypatch, name, library):
    monkeypatch.setitem(sys.modules, library, None)
    result = command("train", name, "--smoke")
    assert result.status == 2
    assert f"smoke is given, which needs the library {library} here: pip install 'drifting-models[" in result.err
