"""The four CIFAR-10 systems: what each drifts in, and the data that they refuse."""

import dataclasses

import pytest
import torch

from drifting.checkpoint import save_tensors
from drifting.data import ImagesData
from drifting.encoders import SimCLRConfig
from drifting.errors import InputError
from drifting.presets import check_choices, preset
from drifting.runs.train import build_encoder, resolve

WIDTHS = {
    "resnet18": {1: 64, 2: 128, 4: 512},
    "resnet50": {4: 2048},
    "simclr": {4: 512},
    "multiscale": {1: 64, 2: 128, 3: 256, 4: 512},
}
SYSTEMS = pytest.mark.parametrize("system", WIDTHS)
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def _known(system: str, **choices):
    """Return a preset with its data's shape filled in, and no look at the data; no logits, for which it would need the labels."""
    config = preset(f"cifar10-{system}", **choices)
    data = dataclasses.replace(config.data, image_shape=(3, 32, 32), num_classes=10)
    encoder = SimCLRConfig(**vars(config.encoder))
    return dataclasses.replace(config, data=data, encoder=encoder)


@SYSTEMS
@pytest.mark.parametrize("size", ["", "-gpu"])
def test_features_have_the_stated_widths_beside_the_colors(system, size):
    config = _known(system + size)
    if size and system == "resnet50":
        config = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, width=4))
    network = config.build_network()
    features = build_encoder(config, network)(IMAGES)
    stages = (1, 2, 4) if system == "resnet18" else (1, 2, 3, 4)
    # A stage that is not projected is as wide as its map.
    widths = {stage: network.map_shapes[f"stage{stage}"][0] for stage in stages} | WIDTHS[system]
    expected = {f"stage{stage}_{kind}": (2, 1, width) for stage, width in widths.items() for kind in ("mean", "std")}
    expected |= {"stage4_mean_2": (2, 4, widths[4])} | dict.fromkeys(("image_mean_4", "image_std_4"), (2, 64, 3))
    expected |= {"chroma_std_4": (2, 64, 2)}
    expected |= {"stage3_mean_4": (2, 4, widths[3])} if 3 in stages else {}
    expected |= dict.fromkeys(("stage2_mean_4", "stage2_std_4"), (2, 16, widths[2])) if system != "resnet50" else {}
    if system == "resnet50":
        trunk = network.map_shapes["stage4_block2"][0]
        del expected["stage4_std"], expected["stage4_mean_2"]
        expected |= {"stage4_block2_std": (2, 1, trunk), "stage4_block2_mean_2": (2, 4, trunk)}
    assert {name: tuple(value.shape) for name, value in features.items()} == expected
    tiles = IMAGES.unflatten(3, (8, 4)).unflatten(2, (8, 4)).mean((3, 5)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(features["image_mean_4"], tiles)


@SYSTEMS
def test_both_sizes_make_images_of_every_class(system):
    for size in ("", "-gpu"):
        config = _known(system + size)
        generator = config.build_generator()
        assert (generator.sample_shape, generator.num_classes) == ((3, 32, 32), 10)
        assert (config.schedule.precision, config.preset) == ("bfloat16" if size else "float32", f"cifar10-{system}{size}")


@SYSTEMS
def test_gray_images_are_refused(system, gray_folder):
    with pytest.raises(InputError, match=r"data is .*, whose images have 1 channel, not red, green and blue: pass color images"):
        resolve(preset(f"cifar10-{system}", data=str(gray_folder)))


def test_gray_images_are_refused_before_anything_is_written(command, gray_folder, tmp_path):
    result = command("train", "cifar10-simclr", "--data", gray_folder, "--save-dir", tmp_path / "run")
    assert result.status == 2
    assert "not red, green and blue" in result.err
    assert not (tmp_path / "run").exists()


def test_encoder_that_is_given_is_not_trained(tmp_path):
    config = _known("multiscale")
    weights = tmp_path / "encoder.safetensors"
    save_tensors(weights, {name: value + 1 for name, value in config.build_network().state_dict().items()})
    given = dataclasses.replace(_known("multiscale", encoder_weights=str(weights)).encoder)
    network = dataclasses.replace(config, encoder=given).build_network()
    for name, value in config.build_network().state_dict().items():
        assert torch.equal(network.state_dict()[name], value + 1), name


def test_one_encoder_serves_the_last_stage_and_all_of_them():
    one, four = _known("resnet18"), _known("multiscale")
    assert one.build_network().state_dict().keys() == four.build_network().state_dict().keys()
    assert set(one.encoder.features) < set(four.encoder.features)


def test_encoder_of_another_size_names_the_weights_that_do_not_fit(tmp_path):
    save_tensors(tmp_path / "encoder.safetensors", _known("resnet18").build_network().state_dict())
    with pytest.raises(InputError, match=r"encoder\.safetensors"):
        _known("resnet18-gpu", encoder_weights=str(tmp_path / "encoder.safetensors")).build_network()


def test_run_to_resume_has_the_encoder_that_it_had(tmp_path):
    (tmp_path / "a").touch()
    saved = preset("cifar10-resnet18", encoder_weights=str(tmp_path / "a"))
    check_choices(saved, "cifar10-resnet18", encoder_weights=str(tmp_path / "a"))
    with pytest.raises(InputError, match=r"encoder_weights is '/b', but the run to resume has .*/a: leave it out"):
        check_choices(saved, "cifar10-resnet18", encoder_weights="/b")


def test_small_sizes_are_trained_by_muon_and_simclr_alone_is_guided():
    schedules = {system: preset(f"cifar10-{system}").schedule for system in WIDTHS}
    assert {schedule.optimizer for schedule in schedules.values()} == {"muon"}
    assert [system for system, schedule in schedules.items() if schedule.guidance_scale > 1] == ["simclr"]
    assert {preset(f"cifar10-{system}-gpu").schedule.optimizer for system in WIDTHS} == {"adamw"}


def test_extractor_is_of_color_images():
    assert preset("cifar10-classifier").data == ImagesData(name="cifar10", color=True)
