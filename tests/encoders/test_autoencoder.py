import pytest
import torch

from drifting.checkpoint import load_tensors, load_weights, save_tensors
from drifting.encoders.autoencoder import Autoencoder, AutoencoderFeatures, available_features
from drifting.encoders.pooling import multi_scale, norm_x
from drifting.errors import InputError


def _autoencoder(shape=(1, 8, 8), seed=0, **kwargs) -> Autoencoder:
    torch.manual_seed(seed)
    return Autoencoder(shape, **{"code_dim": 6, "width": 4, **kwargs})


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 8, 8), (2, 4, 4)])
def test_shapes_follow_the_images(shape):
    autoencoder, images = _autoencoder(shape), torch.rand(3, *shape)
    reconstruction, code = autoencoder(images)
    assert reconstruction.shape == images.shape
    assert code.shape == (3, 6)
    maps = autoencoder.maps(images)
    side = shape[1]
    assert {name: tuple(value.shape[1:]) for name, value in maps.items()} == autoencoder.map_shapes
    assert autoencoder.map_shapes == {"stage1": (4, side // 2, side // 2), "stage2": (8, side // 4, side // 4)}


@pytest.mark.parametrize("shape", [(1, 30, 30), (1, 28, 32), (1, 0, 0)])
def test_images_that_do_not_fit_are_refused(shape):
    with pytest.raises(InputError, match="side divisible by 4"):
        Autoencoder(shape)


def test_features_are_those_of_the_network():
    autoencoder, images = _autoencoder((2, 8, 8)), torch.rand(3, 2, 8, 8)
    names = available_features(autoencoder)
    features = AutoencoderFeatures(autoencoder, names)(images)
    assert tuple(features) == names
    assert torch.equal(features["code"], autoencoder(images)[1][:, None])
    assert torch.equal(features["pixels"], images.flatten(1)[:, None])
    assert torch.equal(features["norm_x"], norm_x(images))
    for name, map in autoencoder.maps(images).items():
        for key, value in multi_scale(name, map).items():
            assert torch.equal(features[key], value)


def test_features_come_in_the_order_asked_for():
    encoder = AutoencoderFeatures(_autoencoder((1, 28, 28)), ["stage2_mean", "code", "stage1_std_2"])
    shapes = {name: tuple(value.shape) for name, value in encoder(torch.rand(2, 1, 28, 28)).items()}
    assert shapes == {"stage2_mean": (2, 1, 8), "code": (2, 1, 6), "stage1_std_2": (2, 49, 4)}


def test_default_features_exist_for_every_size():
    for shape in [(1, 28, 28), (3, 32, 32), (1, 8, 8), (1, 4, 4)]:
        assert "code" in AutoencoderFeatures(_autoencoder(shape))(torch.rand(1, *shape))


def test_gradients_flow_to_the_images_and_weights_stay():
    encoder = AutoencoderFeatures(_autoencoder())
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    images = torch.rand(2, 1, 8, 8, requires_grad=True)
    sum(value.square().sum() for value in encoder.train()(images).values()).backward()
    assert bool((images.grad != 0).all())
    assert not encoder.autoencoder.training
    assert all(value.grad is None and not value.requires_grad for value in encoder.parameters())
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["stage2_mean_4"], "features has 'stage2_mean_4'"),
        (["cod"], "did you mean 'code'"),
        (["code", "code"], "each once"),
        ([], "at least one"),
    ],
)
def test_features_that_are_not_there_are_refused(names, message):
    with pytest.raises(InputError, match=message):
        AutoencoderFeatures(_autoencoder(), names)


def test_constant_images_have_bounded_gradients():
    encoder = AutoencoderFeatures(_autoencoder((1, 28, 28)))
    images = torch.zeros(2, 1, 28, 28, requires_grad=True)
    sum(value.sum() for value in encoder(images).values()).backward()
    assert float(images.grad.norm()) < 1e4


def test_weights_go_through_a_file(tmp_path):
    saved, other = _autoencoder(), _autoencoder(seed=1)
    save_tensors(tmp_path / "encoder.safetensors", saved.state_dict())
    load_weights(other, load_tensors(tmp_path / "encoder.safetensors"), "encoder")
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(saved(images)[0], other(images)[0])
    assert torch.equal(AutoencoderFeatures(saved)(images)["code"], AutoencoderFeatures(other)(images)["code"])
    with pytest.raises(InputError, match="do not fit"):
        load_weights(_autoencoder(code_dim=5), saved.state_dict(), "encoder")


def test_feature_encoder_goes_through_a_file(tmp_path):
    saved, other = AutoencoderFeatures(_autoencoder()), AutoencoderFeatures(_autoencoder(seed=1))
    save_tensors(tmp_path / "features.safetensors", saved.state_dict())
    load_weights(other, load_tensors(tmp_path / "features.safetensors"), "features")
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(saved(images)["code"], other(images)["code"])
