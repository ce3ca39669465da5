"""Masked auto-encoders of data that stay on disk: what they see, what is kept, and how a training is taken up again."""

import dataclasses
import json
import os
import signal
from pathlib import Path

import pytest
import torch

from drifting import presets, runs
from drifting._progress import TrainingProgress
from drifting._torch import stream_seed
from drifting.checkpoint import checkpoints, load_tensors
from drifting.config import EncoderRunConfig
from drifting.data import ImageFilesData
from drifting.encoders import MAEConfig, SimCLRConfig
from drifting.encoders.mae import mae_loss, random_mask
from drifting.errors import InputError
from drifting.presets import PRESETS
from drifting.presets.encoders import encoder
from drifting.pretraining.loop import batches_of
from drifting.runs.train import resolve
from drifting.training.loop import Interrupted
from drifting.training.state import DivergenceError
from tests.support.image_folders import write_images

NETWORK = {"width": 10, "patch": 2, "depths": (1, 1, 1, 1)}
ENCODER = MAEConfig(**NETWORK, steps=4, batch_size=5, learning_rate=1e-2, ema_decay=0.5, warmup_steps=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), {"a": 7, "b": 7}, channels=3)


@pytest.fixture
def config(folder) -> EncoderRunConfig:
    data = ImageFilesData(path=str(folder), image_size=8)
    encoder = dataclasses.replace(ENCODER, classification_weight=0.5, classified_steps=2)
    return EncoderRunConfig(preset="mae-pixel-640", data=data, encoder=encoder, checkpoint_every=2)


def test_every_image_is_seen_once_in_an_epoch_and_varied_differently_in_the_next(config):
    rows = resolve(config).data.rows(seed=0)
    batches, labels = batches_of(rows, 7, seed=0), rows.labels
    seen, named = zip(*(batches(number) for number in range(1, 9)), strict=True)
    images = rows.take(torch.arange(14), torch.zeros(14).long())
    # As they are, or mirrored; all differ by more than nothing.
    flat = torch.cat(seen).flatten(1).float()
    distances = torch.stack([torch.cdist(flat, side.flatten(1).float()) for side in (images, images.flip(-1))])
    nearest, found = distances.amin(0).min(1)
    assert nearest.max() == 0
    for epoch in range(4):
        assert sorted(found[14 * epoch : 14 * epoch + 14].tolist()) == list(range(14))
    assert torch.equal(torch.cat(named), labels[found])
    mirrored = distances.argmin(0).gather(1, found[:, None])[:, 0].unflatten(0, (4, 14))
    assert 0.2 < mirrored.double().mean() < 0.8
    assert torch.equal(batches(3)[0], seen[2])


def test_figures_are_of_the_saved_weights(config, tmp_path):
    trained = runs.train(config, tmp_path / "x")
    assert isinstance(trained, runs.TrainedNetwork)
    figures = json.loads((tmp_path / "x" / "encoder.json").read_text())
    assert figures.keys() == {"num_train_images", "masked_error", "train_accuracy"}
    assert trained.figures == {name: figures[name] for name in ("masked_error", "train_accuracy")}
    assert figures["num_train_images"] == 14
    names = {"config.json", "encoder.json", "encoder.safetensors", "checkpoints"}
    assert {path.name for path in (tmp_path / "x").iterdir()} == names
    assert [path.name for path in checkpoints(tmp_path / "x" / "checkpoints")] == ["step-00000002", "step-00000004"]
    known = resolve(config)
    network = known.build_network().eval()
    network.load_state_dict(load_tensors(trained.weights))
    # Each image once, though they are fewer than are looked at together.
    images, labels = batches_of(known.data.rows(0), 14, 0)(1)
    signed = images.float() / 127.5 - 1
    mask = random_mask(14, network.grid, torch.Generator().manual_seed(stream_seed(0, "masks of figures")))
    with torch.no_grad():
        error = mae_loss(network(signed, mask)[0], network.patches(signed), mask)
        share = (network(signed)[1].argmax(1) == labels).double().mean()
    assert figures["masked_error"] == pytest.approx(float(error), rel=1e-5)
    assert figures["train_accuracy"] == float(share)


def test_resumed_training_is_the_same_as_one_in_one_go(config, tmp_path, assert_same_tensors):
    runs.train(config, tmp_path / "whole")
    half = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, steps=2, classified_steps=None))
    longer = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, classified_steps=None))
    runs.train(longer, tmp_path / "without")
    runs.train(half, tmp_path / "x")
    runs.train(longer, tmp_path / "x", resume=True)
    assert_same_tensors(*(load_tensors(tmp_path / name / "encoder.safetensors") for name in ("x", "without")))
    first, second = (load_tensors(tmp_path / name / "encoder.safetensors") for name in ("x", "whole"))
    assert any(not torch.equal(value, second[name]) for name, value in first.items())


def test_interrupted_training_tells_how_to_go_on_and_does(config, tmp_path, monkeypatch, assert_same_tensors):
    runs.train(config, tmp_path / "whole")
    advance = TrainingProgress.advance

    def interrupting(self, step, figure=None):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        advance(self, step, figure)

    monkeypatch.setattr(TrainingProgress, "advance", interrupting)
    with pytest.raises(Interrupted, match=r"Stopped at step 3 of 4; .* train mae-pixel-640 .*--resume"):
        runs.train(config, tmp_path / "x")
    monkeypatch.setattr(TrainingProgress, "advance", advance)
    assert not (tmp_path / "x" / "encoder.safetensors").exists()
    runs.train(config, tmp_path / "x", resume=True)
    assert_same_tensors(*(load_tensors(tmp_path / name / "encoder.safetensors") for name in ("x", "whole")))


def test_state_that_is_not_finite_is_not_saved(config, tmp_path, monkeypatch):
    def poisoned(reconstruction, patches, mask):
        losses.append(mae_loss(reconstruction, patches, mask))
        return losses[-1] * (float("nan") if len(losses) == 3 else 1)

    losses, config = [], presets.adjust(config, steps=50)
    monkeypatch.setattr("drifting.pretraining.objectives.mae_loss", poisoned)
    with pytest.raises(DivergenceError, match="the loss of the maskedautoencoder became NaN or infinite at step 3"):
        runs.train(config, tmp_path / "x")
    assert [path.name for path in checkpoints(tmp_path / "x" / "checkpoints")] == ["step-00000002"]


def test_resumption_of_something_else_is_refused(config, folder, tmp_path, images_run):
    with pytest.raises(InputError, match="which holds no run to resume"):
        runs.train(config, tmp_path / "x", resume=True)
    runs.train(config, tmp_path / "x")
    with pytest.raises(InputError, match="already holds a run: pass --resume or --overwrite"):
        runs.train(config, tmp_path / "x")
    with pytest.raises(InputError, match="resume and overwrite are both given"):
        runs.train(config, tmp_path / "x", resume=True, overwrite=True)
    wider = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, width=11))
    with pytest.raises(InputError, match=r"encoder\.width is 11, but the run to resume has 10"):
        runs.train(wider, tmp_path / "x", resume=True)
    before = (tmp_path / "x" / "config.json").read_text()
    shorter = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, steps=3))
    with pytest.raises(InputError, match="steps is 3, but the run to resume has done 4: pass at least as many"):
        runs.train(shorter, tmp_path / "x", resume=True)
    assert (tmp_path / "x" / "config.json").read_text() == before
    with pytest.raises(InputError, match="which holds no encoder to resume: name another folder"):
        runs.train(config, images_run, resume=True)


def test_command_line_trains_and_resumes(command, folder, tmp_path, monkeypatch):
    def make(data: str | None = None) -> EncoderRunConfig:
        return EncoderRunConfig(preset="mae-pixel-640", data=ImageFilesData(path=data, image_size=8), encoder=ENCODER)

    monkeypatch.setitem(PRESETS, "mae-pixel-640", dataclasses.replace(PRESETS["mae-pixel-640"], make=make))
    arguments = ("train", "mae-pixel-640", "--data", folder, "--save-dir", tmp_path / "x")
    result = command(*arguments, "--steps", 2)
    assert result.status == 0, result.err
    assert result.out.splitlines()[-1] == str(tmp_path / "x" / "encoder.safetensors")
    assert command(*arguments, "--steps", 4, "--microbatch-size", 3, "--resume").status == 0
    assert checkpoints(tmp_path / "x" / "checkpoints")[-1].name == "step-00000004"
    refused = command("train", "mae-pixel-640", "--data", tmp_path, "--save-dir", tmp_path / "x", "--resume")
    assert (refused.status, "but the run to resume has" in refused.err) == (2, True)


def test_encoders_of_images_on_disk_are_masked_ones(folder):
    with pytest.raises(InputError, match="encoder is SimCLRConfig, which learns from images in memory: pass MAEConfig"):
        EncoderRunConfig(data=ImageFilesData(path=str(folder)), encoder=SimCLRConfig())


def test_every_setting_counts_for_images_in_memory_too(folder, tmp_path):
    settings = {"width": 10, "steps": 4, "batch_size": 6, "learning_rate": 0.1}
    plain, averaged = (
        load_tensors(runs.train(encoder("mae", data=str(folder), **settings, **more), tmp_path / str(len(more))).weights)
        for more in ({}, {"ema_decay": 0.9})
    )
    assert any(not torch.equal(value, averaged[name]) for name, value in plain.items())
