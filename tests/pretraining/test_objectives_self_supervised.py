import math

import pytest
import torch

from drifting.data.augmentation import Views
from drifting.encoders.mae import MaskedAutoencoder, MaskedTraining
from drifting.encoders.resnet import ResNet
from drifting.encoders.simclr import SimCLR
from drifting.errors import InputError
from drifting.pretraining.loop import HeldRows, NetworkTraining, batches_of
from drifting.pretraining.objectives import train_masked, train_simclr
from drifting.training.state import DivergenceError

SETTINGS = {"steps": 30, "batch_size": 16, "learning_rate": 3e-3, "seed": 0}


def _images(count: int = 48) -> torch.Tensor:
    """Return squares of one color each, at a place of their own."""
    rng = torch.Generator().manual_seed(0)
    images = torch.zeros(count, 3, 8, 8, dtype=torch.uint8)
    for image in images:
        row, column = torch.randint(5, (2,), generator=rng).tolist()
        image[:, row : row + 4, column : column + 4] = torch.randint(60, 256, (3, 1, 1), generator=rng).to(torch.uint8)
    return images


def _simclr() -> SimCLR:
    torch.manual_seed(0)
    return SimCLR(ResNet("resnet18", (3, 8, 8), num_classes=None, small_stem=True, width=4), features=32, projection=8)


def _autoencoder(num_classes: int | None = None, width: int = 4) -> MaskedAutoencoder:
    torch.manual_seed(0)
    return MaskedAutoencoder((3, 8, 8), width=width, depths=(1, 1, 1, 1), num_classes=num_classes)


def _simclr_training(network: SimCLR, images: torch.Tensor, *, batch_size: int, **settings) -> NetworkTraining:
    return train_simclr(network, batches_of(HeldRows(images), batch_size, settings["seed"]), **settings)


def _mae_training(network: MaskedAutoencoder, images: torch.Tensor, labels=None, *, seed: int, **settings) -> NetworkTraining:
    batches = batches_of(HeldRows(images, labels), settings["batch_size"], seed)
    return train_masked(network, batches, MaskedTraining(**settings), seed=seed)


def _losses(steps) -> list[float]:
    return [float(step.loss) for step in steps]


def test_simclr_learns_to_know_views_of_one_image():
    losses = _losses(_simclr_training(_simclr(), _images(), **{**SETTINGS, "steps": 60}, views=Views(crop=0.2, jitter=0, gray=0)))
    assert losses[0] == pytest.approx(math.log(31), rel=0.15)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_mae_learns_to_fill_in():
    losses = _losses(_mae_training(_autoencoder(), _images(), **SETTINGS))
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_mae_learns_classes_where_they_have_a_weight():
    images, labels = _images(), torch.arange(48) % 2
    images[labels == 1] = 255 - images[labels == 1]
    # Of up to 32 channels every one is normalized by itself, and its mean over places says nothing.
    network = _autoencoder(num_classes=2, width=16)
    _losses(_mae_training(network, images, labels, **SETTINGS, classification_weight=0.9))
    network.eval()
    logits = network(images.float() / 127.5 - 1)[1]
    assert float((logits.argmax(1) == labels).float().mean()) > 0.9


@pytest.mark.parametrize("name", ["simclr", "mae"])
def test_training_is_a_function_of_its_seed(name, assert_same_tensors):
    def trained(seed: int) -> dict[str, torch.Tensor]:
        network = _simclr() if name == "simclr" else _autoencoder()
        train = _simclr_training if name == "simclr" else _mae_training
        list(train(network, _images(), **{**SETTINGS, "steps": 3, "seed": seed}))
        return network.state_dict()

    first = trained(1)
    assert_same_tensors(first, trained(1))
    assert any(not torch.equal(first[key], value) for key, value in trained(2).items())


def test_every_image_is_seen_once_in_an_epoch(monkeypatch):
    seen = []
    network = _simclr()
    monkeypatch.setattr(network, "embed", lambda views: seen.append(views[: len(views) // 2]) or network.trunk.embed(views))
    still = Views(crop=0, flip=0, jitter=0, gray=0)
    list(_simclr_training(network, _images(), **{**SETTINGS, "steps": 3}, views=still))
    order = torch.cat(seen).flatten(1)
    images = (_images().float() / 127.5 - 1).flatten(1)
    assert sorted(torch.cdist(order, images).argmin(1).tolist()) == list(range(48))


def test_views_may_be_smaller_than_the_images_but_no_larger():
    network, small = _simclr(), Views(jitter=0, gray=0, size=6)
    assert network.trunk.image_shape == (3, 8, 8)
    before = network.trunk.conv1.weight.clone()
    list(_simclr_training(network, _images(), **{**SETTINGS, "steps": 2}, views=small))
    assert not torch.equal(network.trunk.conv1.weight, before)
    with pytest.raises(InputError, match=r"images have the shape \(3, 20, 20\)"):
        list(_simclr_training(network, _images(), **SETTINGS, views=Views(jitter=0, gray=0, size=20)))
    with pytest.raises(InputError, match=r"images have the shape \(3, 6, 6\)"):
        network.eval().embed(torch.zeros(2, 3, 6, 6))
    with pytest.raises(InputError, match=r"images have the shape \(8, 8\)"):
        network.train().embed(torch.zeros(3, 8, 8))


def test_bad_settings_are_refused():
    with pytest.raises(InputError, match="pass two views of each of two images or more"):
        list(_simclr_training(_simclr(), _images(), **{**SETTINGS, "batch_size": 1}))
    with pytest.raises(InputError, match="data is empty"):
        _simclr_training(_simclr(), _images()[:0], **SETTINGS)
    with pytest.raises(InputError, match=r"classification_weight is 0\.1: pass one label for every image"):
        list(_mae_training(_autoencoder(num_classes=2), _images(), **SETTINGS, classification_weight=0.1))


def test_divergence_names_the_network():
    with pytest.raises(DivergenceError, match="the loss of the maskedautoencoder became NaN or infinite at step"):
        list(_mae_training(_autoencoder(), _images(), **{**SETTINGS, "learning_rate": 1e30}))
