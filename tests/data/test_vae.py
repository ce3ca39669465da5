import pytest
import torch

from drifting.data.pixels import VAE, draw_latents, load_vae
from drifting.errors import InputError
from tests.support.tiny_vae import write_vae


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_vae(tmp_path_factory.mktemp("vae"))


def test_latents_go_to_images_and_back_as_the_library_has_it(folder):
    vae, images = load_vae(folder), torch.rand(2, 3, 16, 16) * 2 - 1
    found = vae.network.encode(images).latent_dist
    latents = vae.draw(vae.moments(images), torch.zeros(2, 4, 8, 8))
    torch.testing.assert_close(latents, found.mode() * 0.5)
    assert vae.latent_shape(16) == (4, 8, 8)
    torch.testing.assert_close(vae.decode(latents, batch_size=1), vae.network.decode(found.mode()).sample, atol=1e-5, rtol=1e-5)


def test_latents_spread_as_their_log_variance_says():
    moments = torch.cat([torch.full((1, 1, 64, 64), 3.0), torch.full((1, 1, 64, 64), 2 * 0.5)], 1)
    noise = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = (3 + torch.tensor(0.5).exp() * noise - 1) * 2
    torch.testing.assert_close(draw_latents(moments, noise, scale=2.0, shift=1.0), expected)


def test_fingerprint_tells_weights_and_scales_apart(folder):
    first, second = load_vae(folder), load_vae(folder)
    assert first.fingerprint() == second.fingerprint()
    with torch.no_grad():
        next(second.network.parameters()).view(-1)[0] += 1
    assert first.fingerprint() != second.fingerprint()
    third = load_vae(folder)
    third.scale = 1.0
    assert first.fingerprint() != third.fingerprint()


def test_network_is_frozen(folder):
    assert not any(weight.requires_grad for weight in VAE(load_vae(folder).network).parameters())


def test_bad_folder_and_size_are_reported(folder, tmp_path):
    with pytest.raises(InputError, match=r"vae is '.*', which cannot be loaded"):
        load_vae(tmp_path)
    with pytest.raises(InputError, match="image_size is 15: pass a multiple of 2"):
        load_vae(folder).latent_shape(15)
