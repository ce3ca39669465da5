"""The recipes of ImageNet against a table written out here, and the masked auto-encoders that they drift in."""

import dataclasses
import sys

import pytest
import torch

from drifting.data import ImageFilesData, LatentsData
from drifting.encoders.mae import MaskedAutoencoder
from drifting.errors import InputError
from drifting.fields import MeanShift
from drifting.generators.dit import DiT
from drifting.presets import PRESETS, adjust, check_choices, preset
from drifting.presets.imagenet256 import ENCODERS, RECIPES
from drifting.runs.train import find_weights, resolve
from tests.support.image_folders import write_images

#                learning rate, weight decay, warm-up, steps, labels, positives, unconditional, exponent, unguided, push
NUMBERS = {
    "ablation": (2e-4, 0.01, 5_000, 30_000, 64, 64, 16, 3, 0, 64),
    "latent-b": (4e-4, 0, 10_000, 200_000, 128, 64, 32, 5, 0, 128),
    "latent-l": (4e-4, 0.01, 10_000, 200_000, 128, 64, 32, 3, 0.5, 64),
    "pixel-b": (2e-4, 0.01, 10_000, 100_000, 128, 128, 32, 5, 0, 128),
    "pixel-l": (4e-4, 0.01, 10_000, 100_000, 128, 128, 32, 5, 0, 128),
}
#            patch, width, depth, heads, parameters in millions, encoder's width and patch, ConvNeXt-V2, scale of samples
NETWORKS = {
    "ablation": (2, 768, 12, 12, 133, 256, 1, None, 2.0),
    "latent-b": (2, 768, 12, 12, 133, 640, 1, None, 1.1),
    "latent-l": (2, 1024, 24, 16, 463, 640, 1, None, 1.0),
    "pixel-b": (16, 768, 12, 12, 134, 640, 8, "facebook/convnextv2-base-22k-224", 1.0),
    "pixel-l": (16, 1024, 24, 16, 464, 640, 8, "facebook/convnextv2-base-22k-224", 1.0),
}
#               width, patch, steps, share of the classes, in the last steps
MAES = {
    "latent-256": (256, 1, 30_000, 0, None),
    "latent-640": (640, 1, 200_000, 0.1, 3000),
    "pixel-640": (640, 8, 200_000, 0.1, 3000),
}
LATENT, PIXEL = (4, 32, 32), (3, 256, 256)


def test_there_are_no_others():
    assert [name for name in PRESETS if name.startswith("imagenet256-")] == [f"imagenet256-{name}" for name in NUMBERS]
    assert [name for name in PRESETS if name.startswith("mae-")] == [f"mae-{name}" for name in MAES]


@pytest.mark.parametrize("name", NUMBERS)
def test_training_of_the_release(name):
    config = preset(f"imagenet256-{name}", data="data", encoder_weights="file")
    schedule, bank, loss = config.schedule, config.bank, config.loss
    of_its_own = (schedule.learning_rate, schedule.weight_decay, schedule.warmup_steps, schedule.steps)
    batch = (schedule.labels_per_step, schedule.positives, schedule.unconditional)
    guidance = (schedule.guidance_exponent, schedule.unguided_prob)
    assert (*of_its_own, *batch, *guidance, bank.push_per_step) == NUMBERS[name]
    assert (schedule.generated, schedule.highest_guidance_scale, schedule.draws_guidance) == (64, 4, True)
    assert (schedule.optimizer, schedule.betas, schedule.max_grad_norm, schedule.ema_decay) == ("adamw", (0.9, 0.95), 2, 0.999)
    assert (schedule.decay_after, schedule.precision, schedule.other_ema_decays) == (None, "bfloat16", ())
    assert not schedule.independent_negatives
    assert (bank.capacity_per_class, bank.unconditional_capacity) == (128, 1000)
    assert (loss.temperatures, loss.field, loss.normalize_features, loss.normalize_drift) == (
        (0.02, 0.05, 0.2),
        MeanShift(affinity_floor=1e-6),
        True,
        True,
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_the_release(name):
    config = preset(f"imagenet256-{name}", data="data", encoder_weights="file")
    size, encoder = config.generator, config.encoder
    assert (size.patch, size.width, size.depth, size.heads) == NETWORKS[name][:4]
    assert (size.cond_dim, size.mlp_ratio, size.num_context_tokens, size.num_styles, size.style_classes) == (
        size.width,
        4,
        16,
        32,
        64,
    )
    assert (size.bounded, size.output_std) == (False, 0)
    assert (encoder.width, encoder.patch, encoder.convnext, config.schedule.guidance_scale) == NETWORKS[name][5:]
    assert (encoder.depths, encoder.features, encoder.every, encoder.resize) == ((3, 4, 6, 3), None, 2, 224)
    assert (config.data.path, encoder.weights) == ("data", "file")
    pixels = "pixel" in name
    assert (config.bank.on_cpu, config.parallel) == (pixels, "fsdp" if name.endswith("-l") else "ddp")
    assert config.data == (ImageFilesData(path="data", image_size=256) if pixels else LatentsData(path="data"))
    with torch.device("meta"):
        generator = DiT(sample_shape=PIXEL if pixels else LATENT, size=size, num_classes=1000, guided=True)
    millions = sum(parameter.numel() for parameter in generator.parameters()) / 1e6
    assert millions == pytest.approx(NETWORKS[name][4], rel=0.01)
    assert RECIPES[name].parameters == NETWORKS[name][4]


@pytest.mark.parametrize("name", MAES)
def test_encoders_of_the_release(name):
    config = preset(f"mae-{name}", data="data")
    settings = config.encoder
    assert (settings.width, settings.patch, settings.steps, settings.classification_weight, settings.classified_steps) == MAES[name]
    assert (settings.depths, settings.batch_size, settings.precision) == ((3, 4, 6, 3), 8192, "bfloat16")
    assert (settings.learning_rate, settings.betas, settings.weight_decay) == (4e-3, (0.9, 0.95), 0.01)
    assert (settings.warmup_steps, settings.max_grad_norm, settings.ema_decay) == (4000, 2, 0.9995)
    assert settings.batch_size % settings.microbatch_size == 0
    # The paper's 192 and 1280 epochs.
    assert settings.steps * settings.batch_size / 1_281_167 == pytest.approx(192 if name == "latent-256" else 1280, rel=2e-3)
    learns_classes = settings.classification_weight > 0
    kind = ImageFilesData if name.startswith("pixel") else LatentsData
    assert config.data == kind(path="data", conditional=learns_classes)
    with torch.device("meta"):
        shape = PIXEL if name.startswith("pixel") else LATENT
        network = MaskedAutoencoder(shape, width=settings.width, patch=settings.patch, depths=settings.depths)
    assert network.grid == (32, 32)


def test_recipes_drift_in_the_encoders_that_there_are():
    for name, recipe in RECIPES.items():
        encoder, network = preset(f"imagenet256-{name}").encoder, ENCODERS[recipe.encoder]
        assert (encoder.width, encoder.patch, encoder.depths) == (network.width, network.patch, network.depths)


@pytest.mark.parametrize(("name", "encoder"), [("ablation", "latent-256"), ("latent-l", "latent-640"), ("pixel-b", "pixel-640")])
def test_weights_of_the_encoder_are_the_authors_where_none_are_named(name, encoder, monkeypatch):
    asked, published = [], f"hub:mae_{encoder.replace('-', '_')}"
    monkeypatch.setattr(sys.modules["drifting.runs.pretrain"], "artifact_folder", asked.append)
    found = find_weights(preset(f"imagenet256-{name}", data="nowhere"))
    assert (found.encoder.weights, asked) == (published, [published])


@pytest.mark.parametrize(("name", "encoder"), [("ablation", "latent-256"), ("latent-l", "latent-640"), ("pixel-b", "pixel-640")])
def test_weights_of_the_encoder_are_asked_for_before_the_data_are_looked_at(name, encoder, monkeypatch):
    def missing(origin):
        raise InputError(f"'{origin}' cannot be downloaded (no network): check the network, or name a downloaded folder")

    monkeypatch.setattr(sys.modules["drifting.runs.pretrain"], "artifact_folder", missing)
    with pytest.raises(InputError) as caught:
        resolve(preset(f"imagenet256-{name}", data="nowhere"))
    assert str(caught.value) == (
        f"encoder_weights is missing, and the authors' 'hub:mae_{encoder.replace('-', '_')}' cannot be downloaded (no network): "
        "check the network, or name a downloaded folder; "
        f"or train an encoder by `drifting train mae-{encoder}`, and pass --encoder-weights FILE"
    )


def test_weights_that_are_not_there_are_reported_before_the_data_are_looked_at(tmp_path):
    for place in ("no/file", str(tmp_path)):
        with pytest.raises(InputError, match=rf"encoder_weights is '{place}', which is not a file: name the encoder\.safetensors"):
            resolve(preset("imagenet256-ablation", data="nowhere", encoder_weights=place))


@pytest.mark.parametrize("name", ["imagenet256-latent-b", "imagenet256-pixel-b", "mae-latent-256", "mae-pixel-640"])
def test_data_are_asked_for(name, tmp_path):
    (tmp_path / "encoder.safetensors").touch()
    choices = {"encoder_weights": str(tmp_path / "encoder.safetensors")} if name.startswith("imagenet") else {}
    with pytest.raises(InputError, match="data is missing: pass --data"):
        resolve(preset(name, **choices))


def test_folder_of_images_fills_in_what_it_holds(tmp_path):
    folder = write_images(tmp_path / "images", {"train/a": 4, "train/b": 4}, channels=3)
    for name, classes in (("mae-pixel-640", 2), ("imagenet256-pixel-b", 2)):
        (tmp_path / "file").touch()
        choices = {"encoder_weights": str(tmp_path / "file")} if name.startswith("imagenet") else {}
        data = resolve(preset(name, data=str(folder), **choices)).data
        assert (data.path, data.image_shape, data.num_classes) == (str(folder), PIXEL, classes)


def test_encoder_takes_settings_of_its_training_and_no_others():
    config = preset("mae-latent-256", data="data")
    training = {"steps": 7, "batch_size": 9, "learning_rate": 0.5, "microbatch_size": 3, "optimizer": "muon"}
    adjusted = adjust(config, **training, seed=3, device="cuda:1", keep=4)
    settings = dataclasses.replace(config.encoder, **training)
    assert adjusted == dataclasses.replace(config, encoder=settings, seed=3, device="cuda:1", keep=4)
    for name, value in (("temperatures", (0.1,)), ("parallel", "fsdp")):
        with pytest.raises(InputError, match=f"{name} is .*, which the preset 'mae-latent-256' does not take: leave it out"):
            adjust(config, **{name: value})


def test_saved_recipe_of_another_encoder_is_refused():
    saved = preset("imagenet256-ablation", data="data", encoder_weights="one")
    check_choices(saved, "imagenet256-ablation", encoder_weights="one")
    with pytest.raises(InputError, match="encoder_weights is 'other', but the run to resume has one"):
        check_choices(saved, "imagenet256-ablation", encoder_weights="other")
    with pytest.raises(InputError, match="preset is 'imagenet256-latent-b', but the run to resume has imagenet256-ablation"):
        check_choices(saved, "imagenet256-latent-b")
