"""Artifacts as folders of ours, and folders of ours as artifacts."""

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from drifting import config as configuration
from drifting._json import save_json
from drifting.checkpoint import save_tensors
from drifting.config import EncoderRunConfig, RunConfig
from drifting.data import ImagesData
from drifting.encoders import MAEConfig, MAEFeaturesConfig
from drifting.encoders.mae_features import MAEFeatures
from drifting.errors import InputError
from drifting.generators import DiTConfig, MLPConfig
from drifting.hub import artifact as official_hub
from drifting.hub import load_encoder, load_generator, read_artifact
from drifting.hub.artifact import ReleasedConfig, read_weights
from drifting.runs import load_run
from drifting.runs.folder import saved_config
from drifting.runs.share import convert, load
from tests.support.artifacts import REFERENCE, make_artifact, needs_reference, reconfigure, rewrite, tree_of

FILES = ("ema_params.msgpack", "metadata.json")
DATA = ImagesData(name="made up", image_shape=(3, 8, 8), num_classes=4)


def _same(first: Path, second: Path) -> bool:
    return all((first / file).read_bytes() == (second / file).read_bytes() for file in FILES)


@needs_reference
@pytest.mark.parametrize("case", ["generator_latent", "generator_pixel", "mae_latent", "mae_pixel"])
def test_released_models_go_there_and_back_bit_for_bit(case, tmp_path, command):
    artifact = Path(REFERENCE) / case
    weights = "encoder.safetensors" if case.startswith("mae") else "generator.safetensors"
    assert command("convert", artifact, "--out", tmp_path / "ours").out.split() == [
        str(tmp_path / "ours" / name) for name in ("config.json", weights)
    ]
    assert command("convert", tmp_path / "ours", "--out", tmp_path / "theirs").status == 0
    assert _same(artifact, tmp_path / "theirs")
    network = read_artifact(artifact).network()
    network.load_state_dict(found := load_file(tmp_path / "ours" / weights))
    assert found.keys() == network.state_dict().keys()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("gen", {}),
        ("gen", {"noise_coords": 0, "n_cls_tokens": 0, "num_classes": 0, "use_qknorm": False}),
        ("gen", {"num_classes": ..., "dtype": torch.bfloat16, "use_bf16": True, "depth": 11}),
        ("gen", {"dtype": torch.float64, "out_channels": 2, "noise_coords": 1}),
        ("mae", {"layers": [2, 1, 3, 1], "dtype": torch.float16}),
        ("mae", {"num_classes": 0, "input_patch_size": 4, "patch_size": 8}),
    ],
    ids=str,
)
def test_others_go_there_and_back_bit_for_bit(kind, settings, tmp_path):
    artifact = make_artifact(tmp_path / "theirs", kind, **settings)
    convert(str(artifact), tmp_path / "ours")
    convert(str(tmp_path / "ours"), tmp_path / "back")
    assert _same(artifact, tmp_path / "back")
    convert(str(tmp_path / "back"), tmp_path / "ours again")
    for file in (tmp_path / "ours").iterdir():
        assert file.read_bytes() == (tmp_path / "ours again" / file.name).read_bytes()


def test_classes_that_only_the_weights_tell_are_kept(tmp_path):
    for kind in ("gen", "mae"):
        artifact = make_artifact(
            tmp_path / kind, kind, num_classes=3, in_channels=3, **({"out_channels": 3} if kind == "gen" else {})
        )
        reconfigure(artifact, num_classes=...)
        convert(str(artifact), tmp_path / f"{kind} ours")
        convert(str(tmp_path / f"{kind} ours"), tmp_path / f"{kind} back")
        assert (artifact / FILES[0]).read_bytes() == (tmp_path / f"{kind} back" / FILES[0]).read_bytes()
    assert load(str(tmp_path / "gen ours")).generator.num_classes == 3


def test_configuration_keeps_the_whole_metadata(tmp_path):
    artifact = make_artifact(tmp_path / "theirs", "gen")
    metadata = {**json.loads((artifact / "metadata.json").read_text()), "note": [1, {"a": None}], "step": 200_000}
    (artifact / "metadata.json").write_text(json.dumps(metadata))
    convert(str(artifact), tmp_path / "ours")
    saved = configuration.from_json(json.loads((tmp_path / "ours" / "config.json").read_text()), "ours")
    assert saved == ReleasedConfig(metadata=metadata)
    convert(str(tmp_path / "ours"), tmp_path / "back")
    assert json.loads((tmp_path / "back" / "metadata.json").read_text()) == metadata


def _run(folder: Path, tiny_images: RunConfig, **generator) -> RunConfig:
    """Write the folder of a run of a transformer with random weights."""
    small = {"patch": 2, "width": 8, "depth": 1, "heads": 1, "cond_dim": 8, "num_context_tokens": 1, "num_styles": 2}
    network = DiTConfig(**{**small, "bounded": False, **generator})
    schedule = dataclasses.replace(tiny_images.schedule, guidance_exponent=3.0, unconditional=8)
    config = dataclasses.replace(tiny_images, data=DATA, generator=network, schedule=schedule)
    shapes = {name: value.shape for name, value in config.build_generator().state_dict().items()}
    save_tensors(folder / "generator.safetensors", {name: torch.randn(shape) / 4 for name, shape in shapes.items()})
    save_json(folder / "config.json", configuration.to_json(config))
    return config


def test_trained_transformer_becomes_an_artifact(tmp_path, tiny_images):
    _run(tmp_path / "run", tiny_images)
    convert(str(tmp_path / "run"), tmp_path / "theirs")
    ours, theirs = load(tmp_path / "run").generator, load_generator(tmp_path / "theirs")
    noise, condition = torch.randn(2, 3, 8, 8), (torch.tensor([0, 3]), torch.tensor([1.0, 2.0]), torch.tensor([[1, 2], [3, 4]]))
    assert torch.equal(ours(noise, *condition), theirs(noise, *condition))
    assert bool(theirs(noise, *condition).abs().sum() > 0)


@pytest.mark.parametrize("num_classes", [None, 4])
def test_trained_masked_autoencoder_becomes_an_artifact(num_classes, tmp_path):
    settings = MAEConfig(width=8, patch=2, depths=(1, 1, 2, 1), classification_weight=0.1 if num_classes else 0.0)
    config = EncoderRunConfig(data=DATA, encoder=settings)
    network = read_artifact(
        make_artifact(tmp_path / "made", "mae", layers=[1, 1, 2, 1], input_patch_size=2, num_classes=num_classes or 0)
    ).network()
    save_tensors(tmp_path / "run" / "encoder.safetensors", network.state_dict())
    save_json(tmp_path / "run" / "config.json", configuration.to_json(config))
    convert(str(tmp_path / "run"), tmp_path / "theirs")
    assert _same(tmp_path / "made", tmp_path / "theirs")
    assert load_encoder(tmp_path / "theirs").autoencoder.num_classes == num_classes


def test_converted_encoder_is_that_of_a_recipe(tmp_path):
    artifact = make_artifact(tmp_path / "theirs", "mae", input_patch_size=2)
    convert(str(artifact), tmp_path / "ours")
    weights = str(tmp_path / "ours" / "encoder.safetensors")
    settings = MAEFeaturesConfig(weights=weights, width=8, patch=2, depths=(1, 2, 1, 1))
    found = settings.build_network(DATA.image_shape, num_classes=None, read=read_weights)
    images = torch.randn(2, 3, 8, 8)
    expected = load_encoder(artifact)(images)
    features = MAEFeatures(found)(images)
    assert features.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in features.items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"bounded": True}, "generator ends in tanh"), ({"embedding_std": 0.3}, r"an embedding_std of 0\.3")],
)
def test_transformers_that_the_format_cannot_hold_are_refused(settings, message, tmp_path, tiny_images):
    _run(tmp_path / "run", tiny_images, **settings)
    with pytest.raises(InputError, match=message):
        convert(str(tmp_path / "run"), tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("style_classes", 2**62, "empty"), ("cond_dim", 2**62, "overflowed"), ("depth", 300, "many more than the 34 weights")],
)
def test_configurations_beyond_any_network_are_refused(field, value, message, tmp_path, tiny_images):
    _run(tmp_path / "run", tiny_images)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    save_json(tmp_path / "run" / "config.json", {**config, "generator": {**config["generator"], field: value}})
    with pytest.raises(InputError, match=f"configuration of '.*generator.safetensors' describes no network .*{message}"):
        convert(str(tmp_path / "run"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_networks_are_refused(tmp_path, tiny_images, extractor_folder):
    _run(tmp_path / "run", tiny_images)
    weights = load_file(tmp_path / "run" / "generator.safetensors")
    config = json.loads((tmp_path / "run" / "config.json").read_text())

    def refused(folder: Path, message: str) -> None:
        with pytest.raises(InputError, match=message):
            convert(str(folder), tmp_path / "out")

    save_tensors(tmp_path / "run" / "generator.safetensors", {**weights, "positions": weights["positions"].int()})
    refused(tmp_path / "run", r"are torch\.int32, which the release's format cannot hold")
    save_tensors(tmp_path / "run" / "generator.safetensors", {**weights, "positions": weights["positions"][:1]})
    refused(tmp_path / "run", r"positions is \(1, 8\), not \(16, 8\)")
    other = configuration.to_json(dataclasses.replace(configuration.from_json(config, ""), generator=MLPConfig()))
    save_json(tmp_path / "run" / "config.json", other)
    refused(tmp_path / "run", "of MLPConfig, which the release does not have: name a DiT or an MAE")
    refused(extractor_folder, "of ClassifierConfig, which the release does not have")
    save_json(tmp_path / "run" / "config.json", {"version": 1, "type": "ReleasedConfig", "metadata": 3})
    refused(tmp_path / "run", "metadata is 3, not an object")
    refused(tmp_path, r"file is '.*config\.json', which does not exist")
    refused(tmp_path / "none", "source is '.*none', which is not a folder: name one, or hub:NAME")


def test_folders_are_not_written_over_unasked(tmp_path, command):
    gen, mae = make_artifact(tmp_path / "gen", "gen"), make_artifact(tmp_path / "mae", "mae")
    out = tmp_path / "out"
    assert command("convert", gen, "--out", out).status == 0
    refused = command("convert", mae, "--out", out)
    assert (refused.status, refused.out) == (2, "")
    assert refused.err == f"drifting: out is '{out}', which holds an earlier conversion: pass --overwrite, or name another folder\n"
    assert command("convert", mae, "--out", out, "--overwrite").status == 0
    assert {path.name for path in out.iterdir()} == {"config.json", "encoder.safetensors"}
    (out / "checkpoints").mkdir()
    with pytest.raises(InputError, match="which holds other files, such as checkpoints: name another folder"):
        convert(str(gen), out, overwrite=True)
    with pytest.raises(InputError, match="the folder that is converted"):
        convert(str(gen), tmp_path / "out" / ".." / "gen", overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="where nothing can be written"):
        convert(str(gen), tmp_path / "file")


def test_damaged_artifact_leaves_what_is_there(tmp_path):
    artifact = make_artifact(tmp_path / "gen", "gen")
    convert(str(artifact), tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    data = (artifact / FILES[0]).read_bytes()
    (artifact / FILES[0]).write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="is truncated"):
        convert(str(artifact), tmp_path / "out", overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_converted_folder_is_no_run(tmp_path):
    convert(str(make_artifact(tmp_path / "gen", "gen")), tmp_path / "ours")
    with pytest.raises(InputError, match="a converted artifact, which can only be sampled"):
        load_run(tmp_path / "ours")
    with pytest.raises(InputError, match="a converted artifact, which was not trained here"):
        saved_config(tmp_path / "ours")


def test_names_of_published_weights():
    with pytest.raises(InputError, match="hub name is 'latent_l_sota': did you mean 'latent_L_sota'\\? There are latent_L_sota, "):
        convert("hub:latent_l_sota", "out")
    assert len(official_hub.PUBLISHED) == 8


@pytest.mark.parametrize(
    ("kind", "name"), [("gen", "LightningDiT_0/pos_embed"), ("gen", "noise_embeds_1/embedding"), ("mae", "encoder/gn1/bias")]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named(kind, name, value, tmp_path):
    tree = tree_of(make_artifact(tmp_path / "from", kind))
    *branches, leaf = name.split("/")
    branch = functools.reduce(dict.__getitem__, branches, tree)
    shape, dtype, data = branch[leaf]
    numbers = np.frombuffer(data, np.float32).copy()
    numbers[-1] = value
    branch[leaf] = [shape, dtype, numbers.tobytes()]
    rewrite(tmp_path / "from", tree)
    for use in (load_generator if kind == "gen" else load_encoder, lambda folder: convert(str(folder), tmp_path / "out")):
        with pytest.raises(InputError, match=f"ema_params.msgpack' are not finite in '{name}'"):
            use(tmp_path / "from")
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("positions", lambda value: value * float("nan"), "are not finite in 'positions': restore them, or train"),
        ("condition.classes.weight", lambda value: value[0, 0], r"condition.classes.weight is \(\), not \(5, 12\)"),
    ],
)
def test_damaged_weights_of_a_converted_folder_are_named(name, change, message, tmp_path):
    _, weights = convert(str(make_artifact(tmp_path / "from", "gen")), tmp_path / "ours")
    held = load_file(weights)
    save_tensors(weights, {**held, name: change(held[name])})
    for use in (load, lambda folder: convert(folder, tmp_path / "back")):
        with pytest.raises(InputError, match=message):
            use(str(tmp_path / "ours"))
    assert not list(tmp_path.glob("back/*"))


def test_truncated_weights_of_a_converted_folder_are_to_be_converted_again(tmp_path):
    _, weights = convert(str(make_artifact(tmp_path / "from", "gen")), tmp_path / "ours")
    weights.write_bytes(weights.read_bytes()[:100])
    for use in (load, lambda folder: convert(folder, tmp_path / "back")):
        with pytest.raises(InputError, match=r"corrupted or truncated .*: restore it, or train, convert or download it again"):
            use(str(tmp_path / "ours"))
