import json
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from drifting.encoders.pooling import KINDS, multi_scale
from drifting.encoders.pretrained import CONVNEXT_FEATURES, PretrainedFeatures, load_pretrained, normalize_places
from drifting.errors import InputError

MEAN, STD = (0.4, 0.5, 0.6), (0.3, 0.2, 0.25)
STATISTICS = (MEAN, STD)


def _images(side: int, count: int = 2, channels: int = 3) -> torch.Tensor:
    return 2 * torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(0)) - 1


def _standardized(images: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in STATISTICS)
    return ((images + 1) / 2 - mean) / std


class _Stages(nn.Module):
    """Stand in for a convolutional backbone: a stem, and stages that halve the sides."""

    def __init__(self, count: int = 2):
        super().__init__()
        self.config = SimpleNamespace(model_type="stages", depths=[1] * count, num_channels=3)
        self.stages = nn.ModuleList([nn.Conv2d(3, 4, 1), *(nn.Conv2d(4, 4, 2, stride=2) for _ in range(count))])
        self.drop = nn.Dropout(0.5)

    def forward(self, pixel_values, output_hidden_states):
        assert output_hidden_states
        maps = [pixel_values]
        for stage in self.stages:
            maps.append(stage(self.drop(maps[-1]).sin()))
        pooled = 3 * maps[-1].mean((2, 3), keepdim=True)
        return SimpleNamespace(last_hidden_state=maps[-1], pooler_output=pooled, hidden_states=tuple(maps[1:]))


class _Tokens(nn.Module):
    """Stand in for a vision transformer: a token of the class and one more, then patches; or a masked one, in a random order."""

    def __init__(self, model_type="tokens", patch_size=4, mask_ratio=0.75):
        super().__init__()
        self.config = SimpleNamespace(model_type=model_type, num_channels=3, patch_size=patch_size, mask_ratio=mask_ratio)
        self.project = nn.Conv2d(3, 6, patch_size, stride=patch_size)
        self.special = nn.Parameter(torch.randn(2, 6))

    def forward(self, pixel_values, output_hidden_states, noise=None, interpolate_pos_encoding=False):
        assert not output_hidden_states
        patches = self.project(pixel_values).flatten(2).transpose(1, 2)
        special = self.special.expand(len(patches), -1, -1)
        if self.config.model_type != "vit_mae":
            last = torch.cat([special, patches], 1)
            return SimpleNamespace(last_hidden_state=last, pooler_output=last[:, 1])
        assert interpolate_pos_encoding
        kept = noise.argsort(1)[:, : int(patches.shape[1] * (1 - self.config.mask_ratio))]
        return SimpleNamespace(last_hidden_state=torch.cat([special[:, :1], patches.take_along_dim(kept[:, :, None], 1)], 1))


def _features(network: nn.Module, names, side: int = 8, **kwargs) -> PretrainedFeatures:
    return PretrainedFeatures(network, names, image_shape=(3, side, side), statistics=STATISTICS, **kwargs)


def test_places_are_normalized_over_their_channels():
    map = torch.randn(2, 5, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = (map - map.mean(1, keepdim=True)) / (map.std(1, correction=0, keepdim=True) + 1e-3)
    torch.testing.assert_close(normalize_places(map), expected, rtol=1e-12, atol=1e-12)
    assert normalize_places(map.bfloat16()).dtype == torch.float32
    normalize_places(even := torch.ones(1, 4, 2, 2, requires_grad=True)).sum().backward()
    assert bool(even.grad.isfinite().all())


@pytest.mark.parametrize("normalize", [True, False])
def test_features_of_stages(normalize):
    network, images = _Stages(), _images(8)
    names = ["pooled_std", "stage2_mean", "stage1", "stage1_std_2", "pooled"]
    encoder = _features(network, names, normalize=normalize)
    features = encoder.train()(images)
    assert list(features) == names
    first = network.stages[1](network.stages[0](_standardized(images).sin()).sin())
    last = network.stages[2](first.sin())
    maps = [normalize_places(map) if normalize else map for map in (first, last)]
    torch.testing.assert_close(features["stage1"], maps[0].flatten(2).transpose(1, 2))
    torch.testing.assert_close(features["stage1_std_2"], multi_scale("x", maps[0], ["std_2"])["x_std_2"])
    torch.testing.assert_close(features["stage2_mean"][:, 0], maps[1].mean((2, 3)))
    torch.testing.assert_close(features["pooled"][:, 0], 3 * last.mean((2, 3)))
    torch.testing.assert_close(features["pooled_std"][:, 0], (last.var((2, 3), correction=0) + 1e-6).sqrt())


def test_recipe_of_the_release_is_there():
    features = _features(_Stages(4), CONVNEXT_FEATURES, 16)(_images(16))
    locations = {"stage2": 16, "stage3": 4, "stage4": 1}
    assert {name: value.shape[1] for name, value in features.items()} == dict.fromkeys(CONVNEXT_FEATURES, 1) | locations


def test_features_of_tokens_lie_where_their_patches_lie():
    network, images = _Tokens(patch_size=[2, 4]), _images(6)
    features = _features(network, ["patches", "patches_mean_2", "pooled"], 6, resize=8)(images)
    grid = network.project(_standardized(functional.interpolate(images, (8, 8), mode="bilinear", align_corners=False)))
    assert grid.shape == (2, 6, 4, 2)
    torch.testing.assert_close(features["patches"], grid.flatten(2).transpose(1, 2))
    torch.testing.assert_close(features["patches_mean_2"][:, 1], grid[:, :, 2:].mean((2, 3)))
    torch.testing.assert_close(features["pooled"][:, 0], network.special[1].expand(2, -1))


def test_masked_autoencoder_masks_nothing_and_keeps_the_order():
    network, images = _Tokens("vit_mae", patch_size=2), _images(8)
    before = torch.get_rng_state()
    features = _features(network, ["patches", "pooled"])(images)
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(features["patches"], network.project(_standardized(images)).flatten(2).transpose(1, 2))
    torch.testing.assert_close(features["pooled"][:, 0], network.special[0].expand(2, -1))


@pytest.mark.parametrize("network", [_Stages, _Tokens, lambda: _Tokens("vit_mae")])
def test_gradients_flow_to_the_images_and_weights_stay(network):
    encoder = _features(network(), ["stage2" if network is _Stages else "patches_std", "pooled"])
    images = _images(8).requires_grad_()
    sum(value.square().sum() for value in encoder(images).values()).backward()
    assert bool((images.grad != 0).all())
    assert not any(part.training for part in encoder.modules())
    assert all(value.grad is None and not value.requires_grad for value in encoder.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert {value.dtype for value in encoder(images).values()} == {torch.float32}


@pytest.mark.parametrize(
    ("network", "names", "side", "message"),
    [
        (_Stages, ["stage3"], 8, "features has 'stage3': did you mean 'stage"),
        (_Tokens, ["pooled_std"], 8, "features has 'pooled_std'"),
        (_Tokens, ["pooled", "pooled"], 8, "each once"),
        (_Tokens, ["pooled"], 10, "images are 10 x 10 pixels, but the encoder takes multiples of 4 x 4: pass resize, such as 32"),
    ],
)
def test_what_the_network_does_not_offer_is_refused(network, names, side, message):
    with pytest.raises(InputError, match=message):
        _features(network(), names, side)


def test_other_images_are_refused():
    with pytest.raises(InputError, match="images have 1 channels, but the encoder takes 3"):
        PretrainedFeatures(_Stages(), image_shape=(1, 8, 8), statistics=STATISTICS)
    with pytest.raises(InputError, match=re.escape("(3, 4, 4), but the encoder takes (3, 8, 8)")):
        _features(_Stages(), ["pooled"])(_images(4))


def test_without_the_library_the_fix_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"encoder is 'a/b', which needs .* pip install 'drifting-models\[encoders\]'"):
        load_pretrained("a/b", image_shape=(3, 8, 8))


@pytest.fixture
def stand_in(monkeypatch):
    """Put a library in place of transformers that makes what it is told; yields the report of missing weights."""
    report = {"missing_keys": set(), "mismatched_keys": set()}

    def make(origin, **options):
        safe = {"trust_remote_code": False, "use_safetensors": True}
        assert options == {**safe, "output_loading_info": True, "local_files_only": True}
        return _Stages().half(), report

    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(AutoModel=SimpleNamespace(from_pretrained=make)))
    shown = SimpleNamespace(is_progress_bar_enabled=lambda: False, disable_progress_bar=lambda: None)
    monkeypatch.setitem(sys.modules, "transformers.utils.logging", shown)
    return report


def test_statistics_are_read_beside_the_weights(stand_in, tmp_path):
    with pytest.raises(InputError, match=r"has none in preprocessor_config\.json"):
        load_pretrained(tmp_path, image_shape=(3, 8, 8))
    for facts, expected in (({"image_mean": MEAN, "image_std": STD}, STATISTICS), ({"do_normalize": False}, ((0,) * 3, (1,) * 3))):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(facts))
        encoder = load_pretrained(tmp_path, image_shape=(3, 8, 8))
        for values, buffer in zip(expected, encoder.standardize.buffers(), strict=True):
            assert buffer.flatten().tolist() == pytest.approx(values)
        assert {value.dtype for value in encoder.parameters()} == {torch.float32}


def test_weights_that_are_not_there_are_named(stand_in, tmp_path):
    stand_in["missing_keys"] = {"d", "c", "b", "a"}
    with pytest.raises(InputError, match="whose weights lack a, b, c: "):
        load_pretrained(tmp_path, image_shape=(3, 8, 8), statistics=STATISTICS)


_STAGES = {"depths": [1, 1, 2, 1], "hidden_sizes": [4, 8, 16, 32]}
_TOKENS = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
_MASKED = {f"{part}{name}": value for part in ("", "decoder_") for name, value in {**_TOKENS, "intermediate_size": 16}.items()}
FAMILIES = {
    "resnet": (32, "ResNet", "ForImageClassification", {"embedding_size": 4, "layer_type": "basic", **_STAGES}),
    "convnextv2": (32, "ConvNextV2", "ForImageClassification", {"image_size": 32, **_STAGES}),
    "dinov2": (28, "Dinov2", "Model", {"image_size": 28, "patch_size": 7, **_TOKENS}),
    "vit_mae": (32, "ViTMAE", "ForPreTraining", {"image_size": 32, "patch_size": 8, **_MASKED}),
}


@pytest.fixture(params=FAMILIES)
def saved(request, tmp_path):
    """Save a small model of each family as it is published: folder, name, side of its images."""
    transformers, (side, name, kind, sizes) = pytest.importorskip("transformers"), FAMILIES[request.param]
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}{kind}")(getattr(transformers, f"{name}Config")(**sizes))
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": STD}))
    return tmp_path, request.param, side


def test_every_family_gives_its_own_outputs(saved):
    folder, family, side = saved
    images = _images(side)
    model = sys.modules["transformers"].AutoModel.from_pretrained(folder).eval()
    if family == "vit_mae":
        model.config.mask_ratio = 0.0
    output = model(_standardized(images), output_hidden_states=True)
    if family in ("resnet", "convnextv2"):
        maps = {f"stage{n}": output.hidden_states[n] for n in (1, 2, 3, 4)}
        pooled = output.pooler_output
    else:
        patches = output.last_hidden_state[:, 1:]
        if family == "vit_mae":
            patches = patches.take_along_dim(output.ids_restore[:, :, None], 1)
        maps, pooled = {"patches": patches.transpose(1, 2).unflatten(2, (4, 4))}, output.last_hidden_state[:, 0]
    kinds = [*(f"{map}{kind}" for map in maps for kind in ("", "_mean", "_std")), "pooled"]
    features = load_pretrained(folder, kinds, image_shape=images.shape[1:], normalize=False)(images)
    torch.testing.assert_close(features.pop("pooled")[:, 0], pooled.flatten(1))
    for name, map in maps.items():
        for key, value in multi_scale(name, map, KINDS[:3]).items():
            torch.testing.assert_close(features.pop(key), value, rtol=1e-4, atol=1e-5)
    assert features == {}


def test_every_family_passes_gradients_and_takes_larger_images(saved):
    folder, family, side = saved
    name = "stage2" if family in ("resnet", "convnextv2") else "patches"
    encoder = load_pretrained(folder, [name, "pooled"], image_shape=(3, side, side), resize=2 * side)
    images = _images(side).requires_grad_()
    features = encoder(images)
    assert features[name].shape[:2] == (2, 64)
    sum(value.square().sum() for value in features.values()).backward()
    assert bool(images.grad.isfinite().all() & images.grad.any())
    assert all(value.grad is None for value in encoder.parameters())


def test_damaged_or_foreign_folders_are_refused(saved):
    folder, _, side = saved
    weights, shape = folder / "model.safetensors", (3, side, side)
    content, tensors = weights.read_bytes(), load_file(weights)
    lost = next(name for name in sorted(tensors) if "embedd" in name and "decoder" not in name and name.endswith("weight"))
    save_file({name: tensors[name] for name in tensors if name != lost}, weights, {"format": "pt"})
    with pytest.raises(InputError, match="whose weights lack"):
        load_pretrained(folder, image_shape=shape)
    for damage in (lambda: weights.write_bytes(content[: len(content) // 2]), weights.unlink):
        damage()
        torch.save(tensors, folder / "pytorch_model.bin")
        with pytest.raises(InputError, match="cannot be loaded"):
            load_pretrained(folder, image_shape=shape)
    with pytest.raises(InputError, match="cannot be loaded"):
        load_pretrained(folder / "none", image_shape=shape)


def test_code_beside_the_weights_is_not_run(tmp_path):
    pytest.importorskip("transformers")
    own = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": own}))
    (tmp_path / "own.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'executed')!r})\n")
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="cannot be loaded"):
        load_pretrained(tmp_path, image_shape=(3, 8, 8))
    assert not (tmp_path / "executed").exists()
