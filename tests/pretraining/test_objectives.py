import math

import pytest
import torch
from torch import nn

from drifting.encoders.autoencoder import Autoencoder
from drifting.encoders.base import schedule_factor
from drifting.errors import InputError
from drifting.evaluation.extractors import Classifier
from drifting.pretraining.loop import Batches, HeldRows, batches_of
from drifting.pretraining.objectives import (
    Augmentation,
    cut_mix,
    random_affine,
    random_shift,
    train_autoencoder,
    train_supervised,
)
from drifting.training.state import DivergenceError
from tests.support.covering import each_once

NO_AUGMENTATION = Augmentation(shift=0, rotation=0.0, scale=0.0)


def _rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _bars(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return uint8 images of one bar, and whether it lies or stands."""
    rng = _rng(5)
    labels, place = torch.randint(2, (count,), generator=rng), torch.randint(2, 6, (count,), generator=rng)
    images = torch.zeros(count, 1, 8, 8, dtype=torch.uint8)
    images[torch.arange(count), 0, place] = 255
    images[labels == 1] = images[labels == 1].transpose(2, 3)
    return images, labels


def _batches(images: torch.Tensor, labels: torch.Tensor | None = None, *, batch_size: int, seed: int = 0) -> Batches:
    return batches_of(HeldRows(images, labels), batch_size, seed)


def _autoencoder(seed: int = 0) -> Autoencoder:
    torch.manual_seed(seed)
    return Autoencoder((1, 8, 8), code_dim=8, width=8)


def _reconstruct(seed: int, steps: int = 4, **kwargs) -> tuple[list[float], dict]:
    model = _autoencoder()
    arguments = {"steps": steps, "learning_rate": 3e-3, "seed": seed, **kwargs}
    batches = _batches(_bars(64)[0], batch_size=16, seed=seed)
    return [float(step.loss) for step in train_autoencoder(model, batches, **arguments)], model.state_dict()


def _classify(seed: int = 0, steps: int = 4, **kwargs) -> tuple[list[float], Classifier]:
    torch.manual_seed(0)
    model = Classifier((1, 8, 8), 2, width=4)
    arguments = {"steps": steps, "learning_rate": 3e-3, "seed": seed, **kwargs}
    batches = _batches(*_bars(64), batch_size=16, seed=seed)
    return [float(step.loss) for step in train_supervised(model, batches, **arguments)], model


def test_reconstruction_improves():
    losses, _ = _reconstruct(0, steps=120, learning_rate=1e-2)
    assert losses[-1] < 0.3 * losses[0]


def test_steps_are_numbered_from_one():
    steps = list(train_autoencoder(_autoencoder(), _batches(_bars(64)[0], batch_size=4), steps=3, learning_rate=1e-3, seed=0))
    assert [step.number for step in steps] == [1, 2, 3]
    assert not any(step.loss.requires_grad for step in steps)


def test_training_is_a_function_of_the_seed():
    first, weights = _reconstruct(0, noise=0.2)
    again, same = _reconstruct(0, noise=0.2)
    assert first == again
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert _reconstruct(1, noise=0.2)[0] != first
    one, two = _classify(), _classify()
    assert one[0] == two[0]
    assert all(torch.equal(value, two[1].state_dict()[name]) for name, value in one[1].state_dict().items())
    assert _classify(seed=1)[0] != one[0]


def test_noise_is_added_to_the_input_and_not_to_the_target():
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, images):
            seen.append(images)
            return self.weight.expand_as(images), None

    images = torch.full((32, 1, 8, 8), 0.5)
    training = train_autoencoder(Spy(), _batches(images, batch_size=32), steps=1, learning_rate=1e-3, seed=0, noise=0.3)
    losses = [float(step.loss) for step in training]
    assert losses == [0.25]
    assert float((seen[0] - images).std()) == pytest.approx(0.3, rel=0.1)


def test_bytes_become_signed_numbers():
    seen = []
    model = _autoencoder()
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    list(train_autoencoder(model, _batches(_bars(64)[0], batch_size=4), steps=1, learning_rate=1e-3, seed=0))
    assert set(seen[0].unique().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize(("bad", "steps", "seen"), [(3, 100, 24), (30, 100, 49), (2, 6, 5), (6, 6, 5)])
def test_loss_that_is_not_finite_stops_the_training(bad, steps, seen):
    images = torch.full((2 * steps, 1, 8, 8), 0.1)
    numbered = torch.arange(len(images))[:, None, None, None]
    images[_batches(numbered, batch_size=2)(bad)[0].flatten()[0]] = float("nan")
    training = train_autoencoder(_autoencoder(), _batches(images, batch_size=2), steps=steps, learning_rate=1e-3, seed=0)
    with pytest.raises(DivergenceError, match=f"NaN or infinite at step {bad}: lower"):
        list(training)
    assert training.state.step == seen


@pytest.mark.parametrize(*each_once(classes=(1, 2, 3, 7, 10, 20), batch_size=(256, 1, 16, 6)))
def test_autoencoder_sees_every_image_of_every_class_equally_often(classes, batch_size):
    # Two images of each class, told apart by the value of their pixels.
    images = torch.arange(2 * classes, dtype=torch.float32)[:, None, None, None].expand(-1, 1, 4, 4) / (2 * classes)
    seen = []
    model = Autoencoder((1, 4, 4), code_dim=2, width=2)
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][:, 0, 0, 0]))
    steps = 2 * classes // math.gcd(2 * classes, batch_size)
    batches = _batches(images, batch_size=batch_size, seed=3)
    list(train_autoencoder(model, batches, steps=steps, learning_rate=1e-3, seed=3))
    values, counts = torch.cat(seen).unique(return_counts=True)
    assert torch.equal(values, images[:, 0, 0, 0])
    assert counts.unique().tolist() == [steps * batch_size // (2 * classes)]
    # Nor is one seen twice before each has been seen.
    assert len(torch.cat(seen)[: 2 * classes].unique()) == 2 * classes


def test_classifier_learns():
    _, model = _classify(steps=60, learning_rate=1e-2, augmentation=NO_AUGMENTATION)
    images, labels = _bars(64)
    with torch.no_grad():
        assert float((model.eval()(images.float() / 127.5 - 1).argmax(1) == labels).float().mean()) > 0.95


def test_label_smoothing_keeps_the_loss_from_zero():
    smooth = Augmentation(shift=0, rotation=0.0, scale=0.0, label_smoothing=0.4)
    losses, _ = _classify(steps=60, learning_rate=1e-2, augmentation=smooth)
    assert losses[-1] > 0.45
    assert _classify(steps=60, learning_rate=1e-2, augmentation=NO_AUGMENTATION)[0][-1] < 0.2


def test_an_epoch_shows_every_image_once():
    images = torch.arange(20, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8)
    seen = []
    model = Classifier((1, 8, 8), 2, width=4)
    model.register_forward_pre_hook(lambda module, inputs: seen.extend(((inputs[0][:, 0, 0, 0] + 1) * 127.5).round().tolist()))
    arguments = {"steps": 4, "learning_rate": 1e-3, "seed": 0, "augmentation": NO_AUGMENTATION}
    list(train_supervised(model, _batches(images, torch.zeros(20, dtype=torch.long), batch_size=5), **arguments))
    assert sorted(seen) == list(range(20))


def test_labels_must_be_as_many_as_images():
    images, labels = _bars(8)
    with pytest.raises(InputError, match="8 images and 7 labels"):
        _batches(images, labels[1:], batch_size=2)
    with pytest.raises(InputError, match="labels are missing: pass one label for every image"):
        list(train_supervised(Classifier((1, 8, 8), 2), _batches(images, batch_size=2), steps=1, learning_rate=1e-3, seed=0))


def test_every_shift_moves_the_whole_image_and_lets_black_in():
    image = torch.rand(1, 2, 5, 6, generator=_rng(1))
    shifted = random_shift(image.expand(400, -1, -1, -1), _rng(), pixels=2)
    framed = torch.nn.functional.pad(image, (2, 2, 2, 2), value=-1.0)
    possible = [framed[0, :, row : row + 5, column : column + 6] for row in range(5) for column in range(5)]
    found = [next(place for place, part in enumerate(possible) if torch.equal(one, part)) for one in shifted]
    assert set(found) == set(range(25))
    assert torch.equal(random_shift(image, _rng(), pixels=0), image)


def test_affine_of_no_size_changes_nothing():
    images = torch.rand(3, 2, 6, 9)
    torch.testing.assert_close(random_affine(images, _rng(), rotation=0.0, scale=0.0), images)


def test_rotation_keeps_a_centered_disc_in_place_even_off_square():
    row, column = torch.meshgrid(torch.arange(24) - 11.5, torch.arange(36) - 17.5, indexing="ij")
    disc = torch.exp(-(row**2 + column**2) / 18)[None, None] * 2 - 1
    turned = random_affine(disc.expand(8, -1, -1, -1), _rng(), rotation=180.0, scale=0.0)
    assert float((turned - disc).abs().max()) < 0.06


def test_images_are_turned_as_far_as_is_asked_and_no_further():
    row, column = torch.meshgrid(torch.arange(33) - 16.0, torch.arange(33) - 16.0, indexing="ij")
    dot = torch.exp(-(row**2 + (column - 10) ** 2) / 8)[None, None] * 2 - 1
    turned = (random_affine(dot.expand(200, -1, -1, -1), _rng(), rotation=30.0, scale=0.0) + 1) / 2
    angles = torch.atan2((turned * row).sum((1, 2, 3)), (turned * column).sum((1, 2, 3))).rad2deg()
    assert -30.5 < float(angles.min()) < -28
    assert 28 < float(angles.max()) < 30.5


def test_scale_grows_and_shrinks_within_its_bounds():
    square = torch.full((1, 1, 32, 32), -1.0)
    square[:, :, 8:24, 8:24] = 1
    areas = ((random_affine(square.expand(200, -1, -1, -1), _rng(), rotation=0.0, scale=0.25) + 1) / 2).sum((1, 2, 3))
    sides = areas.sqrt() / 16
    assert 0.74 < float(sides.min()) < 0.8
    assert 1.2 < float(sides.max()) < 1.26


def test_each_part_of_the_augmentation_can_be_switched_off():
    images = torch.rand(4, 1, 8, 8)
    assert NO_AUGMENTATION(images, _rng()) is images
    for part in ({"shift": 2}, {"rotation": 10.0}, {"scale": 0.1}):
        settings = {"shift": 0, "rotation": 0.0, "scale": 0.0, **part}
        varied = Augmentation(**settings)(images, _rng())
        assert varied.shape == images.shape
        assert not torch.allclose(varied, images)
        assert torch.equal(varied, Augmentation(**settings)(images, _rng()))


@pytest.mark.parametrize("seed", range(20))
def test_mixed_images_hold_a_rectangle_of_another_image_whose_share_is_told(seed):
    images = torch.arange(1.0, 9.0)[:, None, None, None].expand(-1, 2, 8, 12)
    mixed, others, share = cut_mix(images, _rng(seed))
    assert sorted(others.tolist()) == list(range(8))
    replaced = mixed == images[others]
    assert torch.equal(mixed, torch.where(replaced, images[others], images))
    places = replaced[others != torch.arange(8)]
    assert bool((places == places[0, 0]).all())
    rows, columns = places[0, 0].any(1), places[0, 0].any(0)
    assert torch.equal(places[0, 0], rows[:, None] & columns)
    assert all(torch.nonzero(side)[:, 0].diff().eq(1).all() for side in (rows, columns))
    assert share == pytest.approx(float(places[0, 0].float().mean()))


def test_shares_of_mixed_images_are_uniform_and_every_location_is_replaced():
    images = torch.arange(2.0)[:, None, None, None].expand(-1, 1, 32, 32)
    rng = _rng()
    draws = [cut_mix(images, rng) for _ in range(400)]
    shares = torch.tensor([share for *_, share in draws])
    assert 0.46 < float(shares.mean()) < 0.54
    assert 0.26 < float(shares.std()) < 0.32
    swapped = torch.stack([mixed[0, 0] for mixed, others, _ in draws if others[0] == 1]).mean(0)
    assert float(swapped.min()) > 0.05
    assert float(swapped.max()) < 0.95


def test_mixed_labels_are_learned_by_their_shares():
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.tensor([2.0, -1.0]))
            self.images = []

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.images.append(images)
            return self.logits.expand(len(images), -1)

    model, images = Constant(), torch.full((4, 1, 8, 8), 255, dtype=torch.uint8)
    labels = torch.tensor([0, 0, 0, 1])
    images[labels == 1] = 0
    always = Augmentation(shift=0, rotation=0.0, scale=0.0, cut_mix=1.0, label_smoothing=0.1)
    batches = _batches(images, labels, batch_size=4)
    (step,) = train_supervised(model, batches, steps=1, learning_rate=1e-9, seed=0, augmentation=always)
    # Whichever images are paired, one quarter of the area shows the second class.
    share = float((model.images[0] == -1).float().mean())
    assert share == pytest.approx(0.25)
    log = torch.tensor([2.0, -1.0]).log_softmax(0)
    expected = -0.9 * (0.75 * log[0] + 0.25 * log[1]) - 0.1 * log.mean()
    torch.testing.assert_close(step.loss, expected)


def test_steps_are_mixed_with_the_probability_of_the_setting():
    rng = _rng()
    half = Augmentation(cut_mix=0.5)
    assert 70 < sum(half.mixes(rng) for _ in range(200)) < 130
    before = rng.get_state()
    assert not Augmentation().mixes(rng)
    assert torch.equal(rng.get_state(), before)


WRONG = ({"cut_mix": 1.5}, {"cut_mix": -0.1}, {"shift": -1}, {"scale": 1.0}, {"label_smoothing": 1.0}, {"rotation": float("nan")})


@pytest.mark.parametrize("wrong", WRONG)
def test_augmentation_out_of_range_is_refused(wrong):
    with pytest.raises(InputError, match=f"{next(iter(wrong))} is"):
        Augmentation(**wrong)


def test_learning_rate_rises_and_falls():
    factors = [schedule_factor(number, 100) for number in range(1, 101)]
    assert factors[0] == 1 / 20
    assert max(factors) == factors[19] == 1
    assert factors == sorted(factors[:20]) + sorted(factors[20:], reverse=True)
    assert 0 < factors[-1] < 0.001
    assert schedule_factor(1, 1) == 1
