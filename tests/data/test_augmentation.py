import cmath
import colorsys
import dataclasses
import math

import numpy as np
import pytest
import torch

from drifting.data import augmentation
from drifting.data.augmentation import Views, augment, draw_boxes
from drifting.errors import InputError

OFF = dict.fromkeys(("crop", "stretch", "flip", "jitter", "brightness", "contrast", "saturation", "hue", "gray", "blur"), 0.0)
FULL = Views(crop=0.9, jitter=1.0, brightness=1.5, contrast=1.5, saturation=1.5, hue=0.5, gray=0.3, blur=1.5)
GEOMETRY = Views(jitter=0.0, gray=0.0)
LUMA = np.array([0.299, 0.587, 0.114])
YIQ = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


def _rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _images(count=4, channels=3, height=6, width=9, dtype=torch.float64) -> torch.Tensor:
    return torch.rand(count, channels, height, width, generator=_rng(5), dtype=torch.float64).to(dtype) * 2 - 1


def _only(**strengths: float) -> Views:
    return Views(**{**OFF, **strengths})


def crop_oracle(image: np.ndarray, box: np.ndarray, size: int | None = None) -> np.ndarray:
    channels, height, width = image.shape
    top, left, high, wide = box
    rows, columns = (height, width) if size is None else (size, size)
    view = np.empty((channels, rows, columns))
    for row in range(rows):
        for column in range(columns):
            y = (top + high * (row + 0.5) / rows) * height - 0.5
            x = (left + wide * (column + 0.5) / columns) * width - 0.5
            y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
            i, j = min(int(y), height - 2), min(int(x), width - 2)
            above = image[:, i, j] * (j + 1 - x) + image[:, i, j + 1] * (x - j)
            below = image[:, i + 1, j] * (j + 1 - x) + image[:, i + 1, j + 1] * (x - j)
            view[:, row, column] = above * (i + 1 - y) + below * (y - i)
    return view


def color_oracle(name: str, image: np.ndarray, value: float) -> np.ndarray:
    """Change the colors of one image pixel by pixel, in [0, 1]."""
    unit = (image + 1) / 2
    gray = sum(LUMA[channel] * unit[channel] for channel in range(3)) if len(unit) == 3 else unit[0]
    other = {"brightness": 0 * gray, "contrast": np.full_like(gray, gray.mean()), "saturation": gray}[name]
    view = np.stack([value * channel + (1 - value) * other for channel in unit])
    return 2 * np.clip(view, 0, 1) - 1


def hue_oracle(image: np.ndarray, turns: float) -> np.ndarray:
    view = np.empty_like(image)
    for row in range(image.shape[1]):
        for column in range(image.shape[2]):
            luma, i, q = YIQ @ image[:, row, column]
            chroma = complex(i, q) * cmath.exp(-2j * math.pi * turns)
            view[:, row, column] = np.linalg.solve(YIQ, [luma, chroma.real, chroma.imag])
    return np.clip(view, -1, 1)


def blur_oracle(image: np.ndarray, std: float, radius: int) -> np.ndarray:
    _, height, width = image.shape
    view = np.zeros_like(image)
    for row in range(height):
        for column in range(width):
            total = 0.0
            for down in range(-radius, radius + 1):
                for right in range(-radius, radius + 1):
                    weight = math.exp(-(down**2 + right**2) / (2 * std**2))
                    i, j = min(max(row + down, 0), height - 1), min(max(column + right, 0), width - 1)
                    view[:, row, column] += weight * image[:, i, j]
                    total += weight
            view[:, row, column] /= total
    return view


@pytest.mark.parametrize("size", [None, 4])
def test_crop_is_that_of_the_loops(size):
    images = _images()
    boxes = torch.tensor([[0.0, 0, 1, 1], [0.3, 0.1, 0.4, 0.8], [0.0, 0.6, 0.1, 0.4], [0.5, 0.5, 0.5, 0.5]], dtype=torch.float64)
    expected = np.stack([crop_oracle(image, box, size) for image, box in zip(images.numpy(), boxes.numpy(), strict=True)])
    np.testing.assert_allclose(augmentation.crop(images, boxes, size).numpy(), expected, atol=1e-12)


def test_views_have_the_size_of_the_settings():
    images, whole = _images(), torch.tensor([[0.0, 0, 1, 1]]).expand(4, 4).double()
    torch.testing.assert_close(augment(images, _only(size=5), _rng()), augmentation.crop(images, whole, 5))
    assert augment(images, Views(size=3, blur=1.0), _rng()).shape == (4, 3, 3, 3)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colors_are_those_of_the_loops(name, channels):
    images, factors = _images(channels=channels), torch.tensor([0.0, 0.6, 1.4, 3.0], dtype=torch.float64)
    changed = getattr(augmentation, name)(images, factors).numpy()
    expected = np.stack([color_oracle(name, image, float(value)) for image, value in zip(images.numpy(), factors, strict=True)])
    np.testing.assert_allclose(changed, expected, atol=1e-12)


def test_hue_is_that_of_the_loops():
    images, turns = _images(), torch.tensor([0.0, 0.1, -0.25, 0.5], dtype=torch.float64)
    expected = np.stack([hue_oracle(image, float(turn)) for image, turn in zip(images.numpy(), turns, strict=True)])
    np.testing.assert_allclose(augmentation.hue(images, turns).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("turn", [-0.1, 0.05, 0.1])
def test_hue_turns_about_as_far_as_that_of_hsv(turn):
    colors = torch.tensor([[0.6, 0.4, 0.4], [0.5, 0.45, 0.3], [0.4, 0.6, 0.45], [0.4, 0.4, 0.6], [0.55, 0.4, 0.6]])
    turned = (augmentation.hue(2 * colors[:, :, None, None] - 1, torch.full((5,), turn)) + 1) / 2
    for before, after in zip(colors.tolist(), turned.flatten(1).tolist(), strict=True):
        apart = (colorsys.rgb_to_hsv(*after)[0] - colorsys.rgb_to_hsv(*before)[0] + 0.5) % 1 - 0.5
        assert apart == pytest.approx(turn, abs=0.06)
        assert np.dot(LUMA, after) == pytest.approx(np.dot(LUMA, before), abs=1e-6)


def test_grayscale_is_luma_and_has_no_color_to_change():
    images = _images()
    gray = augmentation.grayscale(images)
    np.testing.assert_allclose(gray.numpy(), np.einsum("c,bchw->bhw", LUMA, images.numpy())[:, None].repeat(3, 1), atol=1e-12)
    for change in (augmentation.hue, augmentation.saturation):
        torch.testing.assert_close(change(gray, torch.tensor([0.1, 0.3, 0.5, 2.0], dtype=torch.float64)), gray)


def test_blur_is_that_of_the_loops():
    images, stds = _images(), torch.tensor([0.3, 0.5, 0.8, 1.0], dtype=torch.float64)
    expected = np.stack([blur_oracle(image, float(std), 3) for image, std in zip(images.numpy(), stds, strict=True)])
    np.testing.assert_allclose(augmentation.blur(images, stds, reach=1.0).numpy(), expected, atol=1e-12)


def test_nothing_changes_where_strengths_are_zero():
    images, one, zero = _images(dtype=torch.float32), torch.ones(4), torch.zeros(4)
    assert augment(images, _only(), _rng()) is images
    assert torch.equal(augment(images, _only(stretch=1.0, brightness=1.0, hue=0.5), _rng()), images)
    for name in ("brightness", "contrast", "saturation"):
        assert torch.equal(getattr(augmentation, name)(images, one), images)
    for exact in (images, images.double()):
        assert torch.equal(augmentation.hue(exact, zero.to(exact)), exact)
    assert torch.equal(augmentation.blur(images, zero, reach=2.0), images)
    torch.testing.assert_close(augmentation.crop(images, torch.tensor([[0.0, 0, 1, 1]]).expand(4, 4)), images)
    chosen = torch.tensor([True, False, False, True])
    flipped = augmentation.flip(images, chosen)
    assert torch.equal(flipped[chosen], images[chosen].flip(-1))
    assert torch.equal(flipped[~chosen], images[~chosen])


def test_boxes_have_the_drawn_areas_and_fit():
    boxes = draw_boxes(torch.empty(20_000, 1, 1, 1), _rng(), left_out=0.8, stretch=1 / 3)
    top, left, height, width = boxes.double().unbind(1)
    assert min(top.min(), left.min()) >= 0
    assert max((top + height).max(), (left + width).max()) <= 1 + 1e-6
    area, ratio = height * width, (width / height).log()
    for share in (0.25, 0.5, 0.75):
        assert float(area.quantile(share)) == pytest.approx(0.2 + 0.8 * share, abs=0.02)
    assert float(ratio.abs().max()) == pytest.approx(math.log(4 / 3), rel=0.01)
    assert float((ratio.abs() - -area.log()).max()) < 1e-5
    small = area < 0.7
    assert float(ratio[small].std()) == pytest.approx(math.log(4 / 3) / math.sqrt(3), rel=0.03)
    assert float((top[small] / (1 - height[small])).mean()) == pytest.approx(0.5, abs=0.02)
    assert abs(float(torch.corrcoef(torch.stack([area, ratio, top / (1 - height + 1e-9)])).triu(1).abs().max())) < 0.03


@pytest.mark.parametrize(("strength", "least", "most"), [(0.4, 0.6, 1.4), (1.5, 0.0, 2.5)])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_factors_are_uniform_in_their_range(name, strength, least, most):
    # Every image shows its factor: a pixel that is not clamped, over what it was apart from black, the mean or gray.
    image = torch.tensor([[-0.8, -0.9], [-0.9, -0.8], [-0.9, -0.8]]).reshape(1, 3, 1, 2).expand(20_000, -1, -1, -1)
    luma = (image * torch.tensor(LUMA).float()[:, None, None]).sum(1)
    center = {"brightness": -1, "contrast": luma[0].mean(), "saturation": luma[0, 0, 0]}[name]
    changed = augment(image, _only(jitter=0.8, **{name: strength}), _rng())[:, 0, 0, 0]
    factor = ((changed - center) / (image[0, 0, 0, 0] - center)).double()
    untouched = changed == image[0, 0, 0, 0]
    assert float(untouched.double().mean()) == pytest.approx(0.2, abs=0.02)
    assert least - 1e-3 < float(factor.min()) < float(factor.max()) < most + 1e-3
    for share in (0.1, 0.5, 0.9):
        assert float(factor[~untouched].quantile(share)) == pytest.approx(least + (most - least) * share, abs=0.03 * (most - least))


def test_probabilities_and_turns_are_those_asked_for():
    images = (0.2 * _images(1, dtype=torch.float32)).expand(5000, -1, -1, -1)
    # A standard deviation below a sixth of a pixel changes no digit: of the blurred ones one in twenty.
    chances = [({"flip": 0.3}, 0.3), ({"gray": 0.2}, 0.2), ({"blur": 4.0}, 0.48), ({"jitter": 0.6, "hue": 0.2}, 0.6)]
    for strengths, share in chances:
        changed = (augment(images, _only(**strengths), _rng()) != images).flatten(1).any(1)
        assert float(changed.double().mean()) == pytest.approx(share, abs=0.035)
    turned = augment(images, _only(jitter=1.0, hue=0.2), _rng())[:, :, 0, 0].double() @ torch.tensor(YIQ).T
    before = images[0, :, 0, 0].double() @ torch.tensor(YIQ).T
    turns = (torch.atan2(before[2], before[1]) - torch.atan2(turned[:, 2], turned[:, 1])) / (2 * math.pi)
    turns = (turns + 0.5) % 1 - 0.5
    for share in (0.001, 0.25, 0.5, 0.75, 0.999):
        assert float(turns.quantile(share)) == pytest.approx(0.4 * share - 0.2, abs=0.015)


def test_views_are_a_function_of_the_images_and_the_state():
    images, before = _images(dtype=torch.float32), torch.get_rng_state()
    views = augment(images, FULL, _rng(1))
    assert torch.equal(augment(images, FULL, _rng(1)), views)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(torch.equal(view, other) for view, other in zip(views, augment(images, FULL, _rng(2)), strict=True))
    rng = _rng(1)
    augment(images, FULL, rng)
    assert not torch.equal(augment(images, FULL, rng), views)
    same = augment(images[:1].expand(4, -1, -1, -1), FULL, _rng(1))
    assert not any(torch.equal(same[i], same[j]) for i in range(4) for j in range(i))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augment(images, FULL, _rng(1)), views)


def test_no_image_sees_the_others():
    images = _images(8)
    views = augment(images, FULL, _rng())
    for index in range(8):
        others = -images.roll(1, 0)
        others[index] = images[index]
        torch.testing.assert_close(augment(others, FULL, _rng())[index], views[index])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_stay_between_black_and_white(dtype):
    images = _images(200, dtype=dtype)
    for extreme in (images, images.sign(), images.sign().mean((2, 3), keepdim=True).sign().expand_as(images)):
        for seed in range(3):
            assert float(augment(extreme, FULL, _rng(seed)).abs().max()) <= 1 + 1e-6


@pytest.mark.parametrize("strengths", [*({name: getattr(FULL, name)} for name in ("crop", "flip", "gray", "blur")), {}])
def test_views_are_differentiable(strengths):
    # Away from where values are cut off at black and white.
    settings = _only(**strengths) if strengths else Views(brightness=0.2, saturation=0.2, hue=0.05, blur=1.0)
    images = (0.3 * _images(3, height=3, width=4)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: augment(x, settings, _rng(3)), images)


def test_views_without_color_parts_keep_the_colors_of_the_crop():
    images = _images(20, height=12, width=12)
    matrix = torch.randn(3, 3, generator=_rng(1), dtype=torch.float64)
    recolored = torch.einsum("ij,bjhw->bihw", matrix, augment(images, GEOMETRY, _rng())) + 0.2
    torch.testing.assert_close(augment(torch.einsum("ij,bjhw->bihw", matrix, images) + 0.2, GEOMETRY, _rng()), recolored)
    flipped = augment(images, _only(flip=0.5), _rng())
    assert torch.equal(flipped.flatten(2).sort().values, images.flatten(2).sort().values)
    # Of colors that change evenly, a crop's mean is the color of its center.
    slope, y, x = (
        torch.randn(3, 2, generator=_rng(2), dtype=torch.float64) / 4,
        *torch.meshgrid(*[torch.arange(16.0)] * 2, indexing="ij"),
    )
    ramp = torch.einsum("cd,dhw->chw", slope, torch.stack([(y + 0.5) / 16, (x + 0.5) / 16]).double()).expand(500, -1, -1, -1)
    settings = dataclasses.replace(GEOMETRY, flip=0.0)
    boxes = draw_boxes(ramp, _rng(), left_out=settings.crop, stretch=settings.stretch)
    inside = (boxes[:, :2] > 1 / 16).all(1) & (boxes[:, :2] + boxes[:, 2:] < 15 / 16).all(1)
    assert int(inside.sum()) > 50
    means = augment(ramp, settings, _rng()).mean((2, 3))
    torch.testing.assert_close(means[inside], ((boxes[:, :2] + boxes[:, 2:] / 2) @ slope.T)[inside])


def test_gray_images_of_one_channel_are_those_of_three():
    images = _images(20, channels=1)
    three = augment(images.expand(-1, 3, -1, -1), FULL, _rng())
    torch.testing.assert_close(augment(images, FULL, _rng()).expand(-1, 3, -1, -1), three)


def test_other_channels_have_views_without_color_parts_alone():
    assert augment(_images(channels=4), GEOMETRY, _rng()).shape == (4, 4, 6, 9)
    for settings in (Views(), _only(gray=0.1), _only(jitter=0.5, contrast=0.1)):
        with pytest.raises(InputError, match="images have 4 channels"):
            augment(_images(channels=4), settings, _rng())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("crop", 1.0), ("crop", -0.1), ("flip", 1.1), ("jitter", 2.0), ("gray", -1.0), ("hue", 0.6), ("blur", math.inf)],
        *[("contrast", math.nan), ("stretch", -0.5), ("brightness", -0.1), ("saturation", math.inf)],
        *[("size", 0), ("size", 2.5)],
    ],
)
def test_strengths_out_of_their_range_are_refused(name, value):
    with pytest.raises(InputError, match=f"{name} is {value}"):
        Views(**{name: value})
