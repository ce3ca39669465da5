"""Artifacts of other networks than those that the release's outputs are known of, and artifacts that are refused."""

import json

import numpy as np
import pytest
import torch

from drifting.encoders.mae import MaskedAutoencoder
from drifting.encoders.mae_features import MAEFeatures
from drifting.errors import InputError
from drifting.generators.dit import DiT, DiTSize
from drifting.hub import load_encoder, load_generator, metadata_of, read_artifact
from tests.support.artifacts import make_artifact, reconfigure, rewrite, tree_of

GENERATORS = [
    {},
    {"hidden_size": 24, "num_heads": 3, "depth": 1, "cond_dim": 20},
    {"patch_size": 4, "input_size": 12, "in_channels": 3, "out_channels": 3},
    {"in_channels": 4, "out_channels": 2},
    {"mlp_ratio": 2.7},
    {"mlp_ratio": 3},
    {"n_cls_tokens": 0},
    {"noise_coords": 0},
    {"noise_coords": 1, "noise_classes": 1},
    {"noise_coords": 0, "noise_classes": 0},
    {"num_classes": 0},
    {"use_rope": False},
    {"use_qknorm": False},
    {"use_rope": False, "use_qknorm": False},
    {"use_bf16": True, "attn_fp32": False, "use_remat": True, "dropout_prob": 0.1},
    {"out_channels": ..., "mlp_ratio": ..., "use_rope": ...},
    {"depth": 11},
]
ENCODERS = [
    {},
    {"layers": [2, 1, 3, 1]},
    {"base_channels": 12, "layers": [1, 1, 1, 1]},
    {"base_channels": 40},
    {"input_patch_size": 2, "in_channels": 4},
    {"num_classes": 0},
    {"num_classes": ...},
    {"use_bf16": True, "dropout_prob": 0.5, "patch_size": 4},
    {"use_bf16": ..., "dropout_prob": ..., "patch_size": ..., "input_patch_size": ...},
]


@pytest.mark.parametrize("settings", GENERATORS, ids=str)
def test_other_generators_are_read(settings, tmp_path):
    generator = load_generator(make_artifact(tmp_path, "gen", **settings))
    noise = torch.randn(3, *generator.noise_shape)
    labels, styles = torch.tensor([0, 4, 2]), torch.zeros(3, generator.num_styles, dtype=torch.int32)
    with torch.no_grad():
        samples = generator(noise, labels if generator.num_classes else None, 1.5, style_indices=styles)
    assert samples.shape == (3, *generator.sample_shape)
    assert samples.dtype == torch.float32
    assert bool(samples.isfinite().all())


@pytest.mark.parametrize("settings", ENCODERS, ids=str)
def test_other_encoders_are_read(settings, tmp_path):
    encoder = load_encoder(make_artifact(tmp_path, "mae", **settings))
    network = encoder.autoencoder
    images = torch.randn(2, network.image_shape[0], 16, 24)
    features, (reconstruction, logits) = encoder(images), network(images)
    blocks = {f"layer{stage}_blk{block}" for stage, depth in enumerate(network.depths, 1) for block in range(2, depth + 1, 2)}
    assert {name for name in features if "_" not in name.replace("_blk", "")} == {
        *("conv1", "layer1", "layer2", "layer3", "layer4", *blocks)
    }
    assert reconstruction.shape == network.patches(images).shape
    assert (logits is None) == (network.num_classes is None)
    assert all(bool(value.isfinite().all()) for value in features.values())


def test_encoder_takes_images_of_any_size_its_patches_divide(tmp_path):
    encoder = load_encoder(make_artifact(tmp_path, "mae", input_patch_size=2, layers=[1, 2, 1, 1]))
    weights = encoder.autoencoder.state_dict()
    for height, width in ((16, 16), (32, 16), (6, 20), (2, 2)):
        images = torch.randn(2, 3, height, width, dtype=torch.float64)
        fixed = MaskedAutoencoder((3, height, width), width=8, patch=2, num_classes=4, depths=(1, 2, 1, 1))
        fixed.load_state_dict(weights)
        known = MAEFeatures(fixed.double())
        found = encoder.double()(images)
        assert tuple(found) == known.names
        assert all(torch.equal(value, found[name]) for name, value in known(images).items())
    # Sides 3 x 10, 2 x 5, 1 x 3 of the maps: windows of 2 divide no map.
    assert not any(name.endswith(("_2", "_4")) for name in encoder(torch.randn(1, 3, 6, 20).double()))
    for shape in ((3, 7, 16), (4, 16, 16), (3, 16), (3, 0, 16)):
        with pytest.raises(InputError, match=r"this encoder takes 3 channels and sides divisible by 2"):
            encoder(torch.randn(1, *shape).double())


def test_encoder_is_frozen_and_lets_gradients_through(tmp_path):
    encoder = load_encoder(make_artifact(tmp_path, "mae"))
    images = torch.randn(1, 3, 16, 16, requires_grad=True)
    sum(value.square().sum() for value in encoder(images).values()).backward()
    assert bool(images.grad.abs().sum() > 0)
    assert not any(value.requires_grad for value in encoder.parameters())


@pytest.mark.parametrize("kind", ["gen", "mae"])
def test_number_of_classes_is_that_of_the_weights_where_it_is_not_told(kind, tmp_path):
    make_artifact(tmp_path, kind, num_classes=3)
    for value in (..., 0, None):
        reconfigure(tmp_path, num_classes=value)
        artifact = read_artifact(tmp_path)
        assert artifact.num_classes == artifact.network().num_classes == 3


@pytest.mark.parametrize("count", [2**62, 2**63])
@pytest.mark.parametrize(("kind", "place"), [("gen", ("Embed_0", "embedding", 0)), ("mae", ("fc", "kernel", 1))])
def test_number_of_classes_beyond_any_network_is_refused(kind, place, count, tmp_path):
    tree, (branch, leaf, axis) = tree_of(make_artifact(tmp_path, kind)), place
    tree[branch][leaf] = [[count, 0][:: -1 if axis else 1], "float32", b""]
    rewrite(tmp_path, tree)
    reconfigure(tmp_path, num_classes=...)
    with pytest.raises(InputError, match=r"ema_params\.msgpack' describes no network"):
        read_artifact(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_precision_are_computed_with_in_float32(dtype, tmp_path):
    generator = load_generator(make_artifact(tmp_path, "gen", dtype=dtype))
    assert {value.dtype for value in generator.parameters()} == {torch.float32}
    assert {value[0] for value in read_artifact(tmp_path).described().values()} == {dtype}


@pytest.mark.parametrize("kind", ["gen", "mae"])
def test_tables_of_names_are_read_both_ways(kind, tmp_path):
    artifact = read_artifact(make_artifact(tmp_path, kind))
    network = artifact.network()
    assert artifact.places.keys() == network.state_dict().keys()
    released = [name for place in artifact.places.values() for name in place.released]
    assert sorted(released) == sorted(artifact.arrays)
    for name, weight in network.state_dict().items():
        place = artifact.places[name]
        arrays = place.to_release(weight)
        assert torch.equal(place.to_ours(arrays), weight)
        assert all(torch.equal(array, artifact.arrays[part].read()) for array, part in zip(arrays, place.released, strict=True))


def test_loading_leaves_the_random_stream_alone(tmp_path):
    make_artifact(tmp_path, "gen")
    torch.manual_seed(0)
    before = torch.get_rng_state()
    load_generator(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def _without(name):
    def change(tree):
        *branches, leaf = name.split("/")
        for part in branches:
            tree = tree[part]
        tree.pop(leaf)

    return change


def _more(tree):
    tree["extra"] = {"kernel": [[1], "float32", b"0000"]}


def _reshaped(tree):
    tree["Embed_0"]["embedding"] = [[1], "float32", b"0000"]


def _everything(tree):
    tree["Embed"] = tree.pop("Embed_0")
    _reshaped({"Embed_0": tree["RMSNorm_0"]})
    tree["LightningDiT_0"].pop("pos_embed")


def _mixed(tree):
    shape, _, data = tree["noise_embeds_1"]["embedding"]
    tree["noise_embeds_1"]["embedding"] = [shape, "float64", np.frombuffer(data, np.float32).astype(float).tobytes()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("Embed_0"), r"\(Embed_0/embedding is missing\)"),
        (_without("LightningDiT_0/blocks_1/Attention_0/q_norm/weight"), "blocks_1/Attention_0/q_norm/weight is missing"),
        (_without("noise_embeds_2"), "noise_embeds_2/embedding is missing"),
        (_more, r"\(extra/kernel is unknown\)"),
        (_reshaped, r"\(Embed_0/embedding is \(1,\), not \(5, 12\)\)"),
        (_everything, r"\(Embed_0/embedding is missing; LightningDiT_0/pos_embed is missing; 2 more\)"),
        (_mixed, "noise_embeds_0/embedding and the other parts of this weight differ in precision"),
    ],
)
def test_arrays_that_do_not_fit_are_named(change, message, tmp_path):
    tree = tree_of(make_artifact(tmp_path, "gen"))
    change(tree)
    rewrite(tmp_path, tree)
    with pytest.raises(InputError, match=message) as refusal:
        load_generator(tmp_path)
    assert "ema_params.msgpack' do not fit its metadata.json" in str(refusal.value)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("gen", {"use_swiglu": False}, "use_swiglu is false .* perceptrons without a gate are not built here"),
        ("gen", {"use_rmsnorm": False}, "use_rmsnorm is false .* layer normalization"),
        ("gen", {"use_rope": "yes"}, "use_rope is 'yes' .* pass true or false"),
        ("gen", {"use_rop": True}, "an unknown 'use_rop': did you mean 'use_rope'?"),
        ("mae", {"hidden_size": 8}, "an unknown 'hidden_size'"),
        ("gen", {"hidden_size": ...}, "has no hidden_size"),
        ("gen", {"hidden_size": 16.0}, "hidden_size is 16.0 .* a whole number of at least 1"),
        ("gen", {"hidden_size": True}, "hidden_size is True"),
        ("gen", {"num_classes": -1}, "num_classes is -1"),
        ("gen", {"mlp_ratio": 0}, "mlp_ratio is 0 .* a number above 0"),
        ("gen", {"mlp_ratio": float("inf")}, "Infinity is not a finite number"),
        ("gen", {"num_heads": 3}, "describes no network: heads is 3"),
        ("gen", {"patch_size": 3}, "describes no network: sample_shape is"),
        ("gen", {"hidden_size": 18, "num_heads": 3}, "describes no network: width is 18"),
        ("gen", {"hidden_size": 32}, "do not fit"),
        ("gen", {"hidden_size": 2**31}, "hidden_size is 2147483648 .* a whole number of at most 65536"),
        ("gen", {"cond_dim": 10**400}, r"10000000000000000000\.\.\. is too large"),
        ("gen", {"depth": 2**31}, "depth is 2147483648 .* at most 256"),
        ("gen", {"noise_coords": 2**40}, "noise_coords is 1099511627776 .* at most 4096"),
        ("gen", {"input_size": 2**40}, "input_size is 1099511627776 .* at most 8192"),
        ("gen", {"mlp_ratio": 1e300}, r"mlp_ratio is 1e\+300 .* a number above 0, of at most 65536"),
        ("gen", {"mlp_ratio": 10**400}, r"10000000000000000000\.\.\. is too large"),
        ("gen", {"use_rope": "y" * 999}, "use_rope is 'y{59}\\.\\.\\. in the"),
        ("gen", {"x" * 999: 1}, "an unknown 'x{59}\\.\\.\\.: did you mean"),
        ("mae", {"base_channels": 2**40}, "base_channels is 1099511627776 .* at most 65536"),
        ("mae", {"input_patch_size": 2**31}, "input_patch_size is 2147483648 .* at most 8192"),
        ("mae", {"in_channels": 2**70}, r"11805916207174113034\.\.\. is too large"),
        ("mae", {"layers": [1, 2**31, 1, 1]}, r"layers is \[1, 2147483648, 1, 1\] .* whole numbers of at most 256"),
        ("mae", {"patch_size": 0}, "patch_size is 0 .* a whole number of at least 1"),
        ("mae", {"layers": 3}, "layers is 3 .* a list of whole numbers"),
        ("mae", {"layers": [1, 1, 1]}, r"describes no network: depths is \(1, 1, 1\)"),
        ("mae", {"layers": [1, 2, 2, 1]}, "encoder/stages_2/layers_1/conv1/kernel is missing"),
        ("mae", {"in_channels": 4}, r"encoder/conv1/kernel is \(3, 3, 3, 8\), not \(3, 3, 4, 8\)"),
        ("mae", {"num_classes": 9}, r"fc/kernel is \(64, 4\), not \(64, 9\)"),
    ],
)
def test_settings_that_do_not_fit_are_named(kind, changes, message, tmp_path):
    make_artifact(tmp_path, kind)
    reconfigure(tmp_path, **changes)
    with pytest.raises(InputError, match=message) as refusal:
        read_artifact(tmp_path)
    assert tmp_path.name in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "is a list: pass an object"),
        ("{", "is corrupted .* download or convert it again"),
        ('{"model_config": {}}', "has kind None"),
        ('{"kind": ["gen"], "model_config": {}}', r"has kind \['gen'\]"),
        ('{"kind": "vae", "model_config": {}}', "has kind 'vae': pass kind 'gen' or 'mae'"),
        ('{"kind": "gen", "model_config": 3}', "has no object model_config"),
        ('{"kind": "gen"}', "has no object model_config: pass kind and a model_config"),
        ("[" * 100_000, "metadata.json', which is corrupted"),
        ('{"kind": ' + "1" * 5000 + "}", "metadata.json', which is corrupted"),
    ],
)
def test_metadata_of_nothing_is_refused(text, message, tmp_path):
    make_artifact(tmp_path, "gen")
    (tmp_path / "metadata.json").write_text(text)
    with pytest.raises(InputError, match=message):
        load_generator(tmp_path)


def test_folders_of_another_kind_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"which holds no metadata\.json"):
        load_generator(tmp_path)
    with pytest.raises(InputError, match="an encoder: name a generator"):
        load_generator(make_artifact(tmp_path / "mae", "mae"))
    with pytest.raises(InputError, match="a generator: name an encoder"):
        load_encoder(make_artifact(tmp_path / "gen", "gen"))
    (tmp_path / "gen" / "ema_params.msgpack").unlink()
    with pytest.raises(InputError, match=r"ema_params\.msgpack', which is not a file"):
        load_generator(tmp_path / "gen")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bounded": True}, "generator ends in tanh"),
        ({"guided": False}, "generator takes no guidance scale"),
        ({"sample_shape": (4, 8, 4)}, "generator makes images of 8 x 4"),
        ({"embedding_std": 0.3}, "generator has an embedding_std of 0.3, not 0.02"),
    ],
)
def test_generators_that_the_format_cannot_hold_are_refused(given, message):
    size = DiTSize(patch=2, width=8, depth=1, heads=1, cond_dim=8, embedding_std=given.pop("embedding_std", 0.02))
    with pytest.raises(InputError, match=f"{message}, which the release's format cannot hold"):
        metadata_of(DiT(**{"sample_shape": (4, 8, 8), "size": size, **given}))


def test_metadata_is_json(tmp_path):
    for kind in ("gen", "mae"):
        network = read_artifact(make_artifact(tmp_path / kind, kind)).network()
        assert json.loads(json.dumps(metadata_of(network))) == metadata_of(network)
