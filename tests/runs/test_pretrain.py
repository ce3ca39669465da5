import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image

from drifting import presets, runs
from drifting._progress import TrainingProgress
from drifting.checkpoint import load_tensors, save_tensors
from drifting.data.pixels import to_signed
from drifting.distributed import ALONE
from drifting.encoders import PixelsConfig, ResNetConfig, SimCLRConfig
from drifting.encoders.autoencoder import Autoencoder
from drifting.errors import InputError
from drifting.evaluation.statistics import digests
from drifting.pretraining import objectives
from drifting.pretraining.objectives import train_supervised
from drifting.runs import pretrain
from drifting.runs.evaluate import load_extractor
from drifting.runs.pretrain import prepare_encoder
from drifting.runs.train import resolve, with_network
from drifting.training.loop import Interrupted
from drifting.training.recorder import Recorder
from drifting.training.state import DivergenceError
from tests.support.image_folders import bars, write_images
from tests.support.small_runs import shrunk


@pytest.fixture
def config(tiny_images):
    return resolve(tiny_images)


@pytest.fixture
def classifier(gray_folder):
    return shrunk(presets.preset("mnist-classifier", data=str(gray_folder)))


def _training(monkeypatch, name: str = "train_autoencoder") -> list:
    """Return a list that grows with every network that is trained."""
    trained, train = [], getattr(objectives, name)
    monkeypatch.setattr(objectives, name, lambda network, *rest, **more: trained.append(network) or train(network, *rest, **more))
    return trained


def test_encoder_is_trained_into_the_folder_with_its_picture(config, tmp_path, assert_same_tensors):
    network = prepare_encoder(config, tmp_path, config.build_network())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ae_reconstruction.png", "config.json", "encoder.safetensors"]
    assert_same_tensors(load_tensors(tmp_path / "encoder.safetensors"), network.state_dict())
    assert network.training is False
    assert not torch.equal(network.to_code.weight, config.build_network().to_code.weight)
    with Image.open(tmp_path / "ae_reconstruction.png") as picture:
        picture.verify()
        assert min(picture.size) > 200


def test_encoder_learns_to_reconstruct(config, tmp_path):
    longer = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, steps=400), checkpoint_every=400)
    images = to_signed(config.data.load("test").images)
    errors = [
        float((network(images)[0].detach() - images).square().mean())
        for network in (longer.build_network(), prepare_encoder(longer, tmp_path, longer.build_network()))
    ]
    assert errors[1] < errors[0] / 4
    assert errors[1] < float(images.var()) / 2


def test_encoder_in_the_folder_is_reused(config, tmp_path, monkeypatch, assert_same_tensors):
    trained = _training(monkeypatch)
    first = prepare_encoder(config, tmp_path, config.build_network())
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = prepare_encoder(config, tmp_path, config.build_network())
    assert len(trained) == 1
    assert_same_tensors(again.state_dict(), first.state_dict())
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_training_of_the_encoder_depends_on_the_seed_alone(config, tmp_path, assert_same_tensors):
    first = prepare_encoder(config, tmp_path / "a", config.build_network())
    torch.manual_seed(5)
    assert_same_tensors(prepare_encoder(config, tmp_path / "b", config.build_network()).state_dict(), first.state_dict())
    other = prepare_encoder(
        dataclasses.replace(config, seed=1), tmp_path / "c", dataclasses.replace(config, seed=1).build_network()
    )
    assert not torch.equal(other.to_code.weight, first.to_code.weight)


def test_encoder_sees_every_class_of_more_classes_than_its_batch(tmp_path, monkeypatch, gray_folder):
    config = resolve(shrunk(presets.preset("images", data=str(gray_folder))))
    config = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, batch_size=2, steps=12))
    seen = []
    forward = Autoencoder.forward
    monkeypatch.setattr(Autoencoder, "forward", lambda self, images: seen.append(images) or forward(self, images))
    prepare_encoder(config, tmp_path, config.build_network())
    batches = [images for images in seen if len(images) == 2]
    assert len(batches) == 12
    columns = torch.cat(batches).mean((1, 2))[:, 1::2].argmax(1)
    assert columns.unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize("unconditional", [False, True])
def test_unlabeled_images_have_an_encoder_too(gray_folder, tmp_path, unconditional):
    config = resolve(shrunk(presets.preset("images", data=str(gray_folder), unconditional=unconditional)))
    assert isinstance(prepare_encoder(config, tmp_path, config.build_network()), Autoencoder)


@pytest.mark.parametrize("kind", ["tiny_toy", "tiny_images"])
def test_samples_themselves_need_no_network(kind, request, tmp_path):
    config = dataclasses.replace(request.getfixturevalue(kind), encoder=PixelsConfig())
    assert prepare_encoder(resolve(config), tmp_path, resolve(config).build_network()) is None
    assert list(tmp_path.iterdir()) == []


def test_encoder_that_does_not_fit_is_refused_and_left_alone(config, tmp_path):
    other = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, code_dim=3))
    save_tensors(tmp_path / "encoder.safetensors", other.build_network().state_dict())
    before = (tmp_path / "encoder.safetensors").read_bytes()
    with pytest.raises(InputError, match=r"encoder\.safetensors' do not fit the configuration"):
        prepare_encoder(config, tmp_path, config.build_network())
    assert (tmp_path / "encoder.safetensors").read_bytes() == before


def _stop_at(monkeypatch, step: int) -> None:
    """Send an interrupt when a bar shows a step for the first time."""
    advance, sent = TrainingProgress.advance, []

    def interrupting(self, done, figure=None):
        if done == step and not sent:
            sent.append(done)
            os.kill(os.getpid(), signal.SIGINT)
        advance(self, done, figure)

    monkeypatch.setattr(TrainingProgress, "advance", interrupting)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("encoder", "step"),
    [
        (None, 20),
        (ResNetConfig, 7),
        pytest.param(None, 7, marks=pytest.mark.slow),
        pytest.param(SimCLRConfig, 20, marks=pytest.mark.slow),
    ],
)
def test_stopped_in_the_training_of_its_encoder_a_run_goes_on_bit_for_bit(
    config, tmp_path, monkeypatch, capsys, assert_same_tensors, encoder, step
):
    if encoder is not None:
        config = dataclasses.replace(config, encoder=encoder(width=4, steps=20, batch_size=16))
    whole = runs.train(config, tmp_path / "whole").folder
    stages = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Stage")]
    first = "auto-encoder" if encoder is None else "encoder"
    assert stages == [f"Stage 1 of 2: the {first}, 20 steps", "Stage 2 of 2: the generator, 6 steps"]
    with monkeypatch.context() as patch:
        _stop_at(patch, step)
        command = "drifting train images --save-dir .* --resume"
        with pytest.raises(Interrupted, match=rf"Stopped at step {step} of 20; .* {command}"):
            runs.train(config, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.json", "encoder-checkpoints"]
    with pytest.raises(InputError, match="already holds a run: pass --resume or --overwrite"):
        runs.train(config, tmp_path / "run")
    runs.train(config, tmp_path / "run", resume=True)
    for name in ("encoder.safetensors", "generator.safetensors"):
        assert_same_tensors(load_tensors(whole / name), load_tensors(tmp_path / "run" / name))
    assert not (tmp_path / "run" / "encoder-checkpoints").exists()


@pytest.mark.usefixtures("no_pictures")
def test_killed_before_the_first_checkpoint_of_its_generator_a_run_goes_on(config, tmp_path, monkeypatch, assert_same_tensors):
    def killed(*_, **__):
        raise SystemExit  # which nothing tidies up after

    whole = runs.train(config, tmp_path / "whole").folder
    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "save", killed)
        with pytest.raises(SystemExit):
            runs.train(config, tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").read_text()
    runs.train(config, tmp_path / "run", resume=True)
    for name in ("encoder.safetensors", "generator.safetensors"):
        assert_same_tensors(load_tensors(whole / name), load_tensors(tmp_path / "run" / name))
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))


def test_stopped_training_of_a_extractor_goes_on_bit_for_bit(
    classifier, tmp_path, monkeypatch, extractor_folder, assert_same_tensors
):
    with monkeypatch.context() as patch:
        _stop_at(patch, 31)
        with pytest.raises(Interrupted, match=r"Stopped at step 31 of 60; .* drifting train mnist-classifier .* --resume"):
            runs.train(classifier, tmp_path / "x")
    runs.train(classifier, tmp_path / "x", resume=True)
    assert_same_tensors(*(load_tensors(path / "classifier.safetensors") for path in (extractor_folder, tmp_path / "x")))
    with pytest.raises(InputError, match="steps is 61, but the run to resume has 60"):
        runs.train(dataclasses.replace(classifier, steps=61), tmp_path / "x", resume=True)


def test_reconstruction_shows_images_of_every_class(tmp_path, monkeypatch):
    folder = write_images(tmp_path / "own", {"train/a": 20, "train/b": 20, "train/c": 20})
    write_images(folder / "test", {"a": 100, "b": 100, "c": 100})
    shown = []
    monkeypatch.setattr(pretrain, "draw_reconstruction", lambda folder, images, **rest: shown.append(images))
    config = resolve(shrunk(presets.preset("images", data=str(folder))))
    prepare_encoder(config, tmp_path, config.build_network())
    columns = shown[0].mean((1, 2))[:, 1::2].argmax(1)
    assert len(columns) == 64
    assert columns.unique().tolist() == [0, 1, 2]


@pytest.mark.usefixtures("no_pictures")
def test_encoder_that_diverges_leaves_no_run(config, tmp_path):
    wild = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, learning_rate=1e30))
    with pytest.raises(DivergenceError, match="the loss of the autoencoder became NaN or infinite"):
        runs.train(wild, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_pictures")
def test_resumed_run_reuses_its_encoder_and_equals_the_whole_one(config, tmp_path, monkeypatch, assert_same_tensors):
    trained = _training(monkeypatch)
    whole = runs.train(config, tmp_path / "whole").folder
    runs.train(presets.adjust(config, steps=3), tmp_path / "halves")
    assert len(trained) == 2
    halves = runs.train(config, tmp_path / "halves", resume=True).folder
    assert len(trained) == 2
    for name in ("encoder.safetensors", "generator.safetensors", "checkpoints/step-00000006/state.safetensors"):
        assert_same_tensors(load_tensors(whole / name), load_tensors(halves / name))


def test_classifier_is_trained_into_its_folder(extractor_folder, gray_folder):
    files = {"config.json", "classifier.safetensors", "metrics.json", "trained_on.safetensors"}
    assert files <= {path.name for path in extractor_folder.iterdir()}
    metrics = json.loads((extractor_folder / "metrics.json").read_text())
    assert metrics["num_test_images"] == 9
    assert metrics["test_accuracy"] == 1
    saved = json.loads((extractor_folder / "config.json").read_text())
    assert (saved["type"], saved["data"]["image_shape"], saved["data"]["num_classes"]) == ("ClassifierConfig", [1, 8, 8], 3)
    assert saved["data"]["path"] == str(gray_folder)


def test_training_a_classifier_tells_its_accuracy_and_is_reproducible(classifier, tmp_path, extractor_folder, assert_same_tensors):
    trained = runs.train(classifier, tmp_path / "extractor")
    assert trained.figures == {"test_accuracy": 1}
    assert trained.summary() == ["test accuracy 1.0000", str(tmp_path / "extractor" / "classifier.safetensors")]
    assert_same_tensors(*(load_tensors(path / "classifier.safetensors") for path in (extractor_folder, tmp_path / "extractor")))


def test_classifier_tells_the_images_that_it_was_trained_on_four_in_five_of_every_class(extractor_folder, config):
    train = config.data.load("train")
    known = torch.isin(digests(train.images), load_extractor(str(extractor_folder), config).trained_on)
    counts = train.labels.bincount()
    held_out = train.labels[~known].bincount(minlength=len(counts))
    assert json.loads((extractor_folder / "metrics.json").read_text())["num_training_images"] == int(known.sum())
    assert int(held_out.sum()) == len(train.images) // 5
    assert ((held_out - counts / 5).abs() < 1).all()


def test_extractor_learns_nothing_from_images_that_are_held_out(classifier, tmp_path, monkeypatch):
    seen = []

    def watched(network, batches, **options):
        images, labels = zip(*(batches(number) for number in range(1, options["steps"] + 1)), strict=True)
        seen.append((digests(torch.cat(images)), torch.cat(labels)))
        return train_supervised(network, batches, **options)

    monkeypatch.setattr(pretrain, "train_supervised", watched)
    runs.train(classifier, tmp_path / "extractor")
    ((images, labels),) = seen
    known = load_tensors(tmp_path / "extractor" / "trained_on.safetensors")["digests"]
    assert torch.equal(images.unique(), known.unique())
    assert len(images) == len(labels)


def test_extractor_of_an_earlier_version_must_be_trained_again(extractor_folder, config, tmp_path):
    copy = Path(shutil.copytree(extractor_folder, tmp_path / "copy"))
    (copy / "trained_on.safetensors").unlink()
    with pytest.warns(
        UserWarning, match="does not tell the images that it was trained on: floors may be of those, so train it again"
    ):
        assert load_extractor(str(copy), config).trained_on is None
    save_tensors(copy / "trained_on.safetensors", {"digests": torch.zeros(3)})
    with pytest.raises(InputError, match="holds no digests of images: train it again"):
        load_extractor(str(copy), config)


def test_extractor_names_classes_and_embeds(extractor_folder, config):
    extractor = load_extractor(str(extractor_folder), config)
    labels = torch.arange(30) % 3
    images = bars(labels, seed=77)
    assert torch.equal(extractor.classify(images), labels)
    assert extractor.embed(images).shape == (30, 128)
    torch.testing.assert_close(extractor.embed(images)[4:6], extractor.embed(images[4:6]))
    assert extractor.cache == extractor_folder


def test_extractor_is_named_after_its_weights(extractor_folder, config, tmp_path):
    copy = Path(shutil.copytree(extractor_folder, tmp_path / "copy"))
    names = [load_extractor(str(folder), config).name for folder in (extractor_folder, copy)]
    assert names[0] == names[1]
    weights = load_tensors(copy / "classifier.safetensors")
    weights["output.bias"][0] += 1
    save_tensors(copy / "classifier.safetensors", weights)
    assert load_extractor(str(copy), config).name != names[0]


def test_extractor_of_the_data_set_is_found_by_itself(extractor_folder, config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(extractor_folder, tmp_path / "runs" / "images-classifier")
    assert load_extractor(None, config).name == load_extractor(str(extractor_folder), config).name


def test_pixels_can_extractor(config):
    extractor = load_extractor("pixels", config)
    images = bars(torch.tensor([0, 1]))
    torch.testing.assert_close(extractor.embed(images), to_signed(images).flatten(1))
    assert (extractor.name, extractor.classify, extractor.cache) == ("pixels", None, None)


@pytest.mark.parametrize(("size", "channels"), [(12, 1), (8, 3)])
def test_extractor_of_other_images_is_refused(extractor_folder, tmp_path, size, channels):
    folder = write_images(tmp_path / "other", {"a": 12, "b": 12}, size=size, channels=channels)
    other = resolve(shrunk(presets.preset("images", data=str(folder))))
    with pytest.raises(InputError, match=rf"takes \(1, 8, 8\), but the run makes \({channels}, {size}, {size}\): name another"):
        load_extractor(str(extractor_folder), other)


def test_extractor_of_other_classes_is_refused(extractor_folder, config):
    more = dataclasses.replace(config, data=dataclasses.replace(config.data, num_classes=5))
    with pytest.raises(InputError, match=r"which names 3 classes, but the run has 5: name another extractor"):
        load_extractor(str(extractor_folder), more)


def test_missing_extractor_names_the_command_that_trains_it(config):
    mnist = dataclasses.replace(config, data=dataclasses.replace(config.data, name="mnist", path=None))
    command = "run drifting train mnist-classifier --save-dir runs/mnist-classifier, or pass --extractor pixels"
    with pytest.raises(InputError, match=f"extractor is 'runs/mnist-classifier', where there is no trained classifier: {command}"):
        load_extractor(None, mnist)
    with pytest.raises(
        InputError, match=r"extractor is 'x', where there is no trained classifier: .*train mnist-classifier --save-dir x"
    ):
        load_extractor("x", mnist)
    with pytest.raises(InputError, match=r"'runs/images-classifier', .*: name the folder of a classifier of these images, or pass"):
        load_extractor(None, config)


def test_generator_is_no_extractor(images_run, config):
    with pytest.raises(InputError, match="where there is no trained classifier"):
        load_extractor(str(images_run), config)


def test_missing_inception_is_refused(config, tmp_path):
    with pytest.raises(InputError, match=r"nothing\.pt', which is not a file"):
        load_extractor(str(tmp_path / "nothing.pt"), config)


def test_damaged_extractor_is_refused(extractor_folder, config, tmp_path):
    copy = Path(shutil.copytree(extractor_folder, tmp_path / "copy"))
    (copy / "classifier.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError, match="corrupted or truncated"):
        load_extractor(str(copy), config)
    shutil.copy(extractor_folder / "classifier.safetensors", copy)
    (copy / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json', which does not exist"):
        load_extractor(str(copy), config)


def test_networks_are_checked_without_writing(config, classifier, tiny_toy, tmp_path):
    for fine in (config, classifier, tiny_toy):
        with_network(fine, tmp_path / "run", ALONE, overwrite=False)
    wrong = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, features=("codes",)))
    with pytest.raises(InputError, match="features has 'codes': did you mean 'code'"):
        with_network(wrong, tmp_path / "run", ALONE, overwrite=False)
    assert list(tmp_path.iterdir()) == []
