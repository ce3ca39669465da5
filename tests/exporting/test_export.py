"""Generators as ONNX models and programs of torch.export: what they hold, and that they make the same samples."""

import errno
import json
import os
import zipfile

import numpy as np
import pytest
import torch

from drifting import presets, runs
from drifting.errors import InputError
from drifting.exporting import export, formats, write
from drifting.exporting.network import subject_of
from drifting.generators.dit import DiT, DiTSize
from drifting.generators.mlp import MLP, DecoderMLP
from drifting.generators.unet import UNet, UNetSize
from drifting.runs.share import ReleasedGenerator
from drifting.sampling import seeded_noise
from tests.support.later import import_later
from tests.support.networks import randomized

onnx, _, onnxruntime = (import_later(name) for name in ("onnx", "onnxscript", "onnxruntime"))

STYLES = {"num_styles": 3, "style_classes": 4, "heads": 2, "cond_dim": 6}
GENERATORS = {
    "MLP": lambda: MLP(noise_dim=5, sample_shape=(1, 2, 4), width=7, depth=2, num_classes=3, guided=True),
    "DecoderMLP": lambda: DecoderMLP(
        noise_dim=5, sample_shape=(3, 8, 8), width=7, depth=2, code_dim=6, decoder_width=4, decoder_blocks=1, smoothing=True
    ),
    "UNet": lambda: UNet(sample_shape=(3, 8, 8), size=UNetSize(patch=2, widths=(8, 8), blocks=1, **STYLES), num_classes=3),
    "DiT": lambda: DiT(
        sample_shape=(3, 8, 8), size=DiTSize(patch=4, width=8, depth=1, num_context_tokens=2, **STYLES), num_classes=3
    ),
}


@pytest.fixture(scope="module")
def digits(digits_run, tmp_path_factory):
    """The ONNX model of the run of digits, and what was found when it was written."""
    return export(runs.load(digits_run), "onnx", tmp_path_factory.mktemp("onnx") / "digits.onnx")


def _session(path) -> "onnxruntime.InferenceSession":
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def test_model_makes_the_samples_of_the_run(digits, digits_run):
    run = runs.load(digits_run)
    noise = seeded_noise(range(7), run.generator.noise_shape, 3).numpy()
    labels = np.array([4, 0, 4, 0, 4, 0, 4])
    samples, images = _session(digits.path).run(["samples", "images"], {"noise": noise, "labels": labels})
    expected = run.sample(7, seed=3, labels=[4, 0])
    assert images.shape == expected.shape
    assert images.dtype == np.uint8
    assert np.abs(images.astype(int) - expected.numpy().astype(int)).max() <= 1
    np.testing.assert_array_equal(np.clip(np.rint((samples + 1) * 127.5), 0, 255), np.moveaxis(images, -1, 1))
    assert digits.difference < 1e-5
    assert digits.size == digits.path.stat().st_size > 4 * sum(value.numel() for value in run.generator.parameters())


def test_model_says_what_it_takes_and_where_it_is_from(digits):
    model = onnx.load(digits.path)
    onnx.checker.check_model(model)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts["recipe"] == "digits"
    assert facts["kind"] == "images"
    assert json.loads(facts["noise"]) == {"law": "standard normal, independent", "shape": [4]}
    assert json.loads(facts["labels"]) == {"count": 10, "names": [str(label) for label in range(10)]}
    shapes = {
        value.name: [each.dim_param or each.dim_value for each in value.type.tensor_type.shape.dim] for value in model.graph.input
    }
    assert shapes == {"noise": ["batch", 4], "labels": ["batch"]}
    assert os.sep + "src" not in str(model)


def test_program_of_torch_makes_points_in_the_coordinates_of_the_user(points_run, tmp_path, command):
    done = command("export", points_run, "--to", "torch", "--out", tmp_path / "points.pt2")
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines()[-1] == str(tmp_path / "points.pt2")
    facts = {"kind": "", "noise": ""}
    program = torch.export.load(tmp_path / "points.pt2", extra_files=facts)
    assert facts["kind"] == "points"
    assert json.loads(facts["noise"])["shape"] == [4]
    with zipfile.ZipFile(tmp_path / "points.pt2") as parts:
        assert [name for name in parts.namelist() if b"exporting/network.py" in parts.read(name)] == []
    run = runs.load(points_run)
    with torch.no_grad():
        (points,) = program.module()(noise=seeded_noise(range(9), (4,), 5))
    torch.testing.assert_close(points, run.sample(9, seed=5), rtol=0, atol=50 * 1e-5)
    assert points.dtype == torch.float64
    assert 800 < float(points[:, 0].mean()) < 1200


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "torch"])
@pytest.mark.parametrize("name", GENERATORS)
def test_every_generator_can_be_exported(name, to, tmp_path):
    torch.manual_seed(0)
    sampler = ReleasedGenerator(randomized(GENERATORS[name]()))
    written = export(sampler, to, tmp_path / write.NAMES[to])
    assert written.difference < 1e-5
    subject = subject_of(sampler)
    load = formats.load_onnx if to == "onnx" else formats.load_torch
    inputs = subject.inputs(5, seed=1)
    first = load(written.path)(inputs)[0]
    for each in inputs.keys() - {"noise"}:
        changed = {**inputs, each: inputs[each].flip(0) if each != "guidance_scale" else inputs[each] + 1}
        assert not torch.allclose(load(written.path)(changed)[0], first, atol=1e-4), each


def test_guidance_scale_is_that_of_the_run(tiny_digits, tmp_path):
    drawn = {"guidance_exponent": 1.0, "highest_guidance_scale": 3.0, "guidance_scale": 1.5, "unconditional": 8}
    config = presets.adjust(tiny_digits, **drawn)
    subject = subject_of(runs.Run(tmp_path, config, config.build_generator()))
    assert subject.facts()["guidance_scale"] == {"default": 1.5, "highest": 3.0}
    assert subject.inputs(3)["guidance_scale"].tolist() == [1.5, 1.5, 1.5]
    plain = subject_of(runs.Run(tmp_path, tiny_digits, tiny_digits.build_generator()))
    assert "guidance_scale" not in plain.facts()
    assert plain.inputs(3).keys() == {"noise", "labels"}


def test_model_that_differs_is_refused(digits_run, tmp_path, monkeypatch):
    load = formats.load_torch

    def wrong(path):
        run = load(path)
        return lambda inputs: tuple(value + 2e-4 if value.is_floating_point() else value for value in run(inputs))

    monkeypatch.setattr("drifting.exporting.write.load_torch", wrong)
    with pytest.raises(InputError, match=r"differ from PyTorch.s by 0\.0002 with 1 samples"):
        export(runs.load(digits_run), "torch", tmp_path / "out" / "digits.pt2")
    assert list(tmp_path.glob("out/*")) == []


def test_full_disk_leaves_what_was_there(digits_run, tmp_path, monkeypatch, command):
    def full(program, path, **_):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(torch.export, "save", full)
    out = tmp_path / "digits.pt2"
    out.write_bytes(b"before")
    done = command("export", digits_run, "--to", "torch", "--out", out, "--overwrite")
    assert done.status == 1
    assert "no space left" in done.err
    assert "Make room" in done.err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"digits.pt2": b"before"}


def test_bad_input_is_refused_before_any_work(toy_run, toy_copy, tmp_path, command, monkeypatch):
    monkeypatch.setattr("drifting.exporting.write.trace", lambda subject: pytest.fail("it began"))
    there = tmp_path / "there.onnx"
    there.touch()
    (toy_copy / "generator.safetensors").unlink()
    for words, name, fix in (
        ((toy_run, "--to", "tensorflow"), "to is 'tensorflow'", "onnx"),
        ((toy_run, "--out", there), "out is", "--overwrite"),
        ((toy_run, "--out", tmp_path / "model.pt"), "out is", ".onnx"),
        ((toy_run, "--to", "torch", "--out", tmp_path), "out is", ".pt2"),
        ((toy_run, "--to", "web", "--out", tmp_path), "other files", "another folder"),
        ((toy_run, "--to", "web", "--out", there), "out is", "name another"),
        ((toy_run, "--weights", "int4"), "weights is 'int4'", "int8"),
        ((toy_run, "--weights", "int8", "--to", "torch"), "weights is 'int8'", "onnx"),
        ((toy_run, "--evaluate"), "evaluate is True", "float16"),
        ((toy_run, "--cdn"), "cdn is True", "web"),
        ((toy_run, "--cdn", "--to", "web", "--runtime", there), "runtime is", "leave out one"),
        ((toy_run, "--to", "web", "--runtime", there, "--out", tmp_path / "web"), "runtime is", "npm pack onnxruntime-web@"),
        ((tmp_path / "none",), "run is", "name"),
        ((toy_copy,), "generator.safetensors", "train first"),
    ):
        done = command("export", *words)
        assert done.status == 2, done
        assert name in done.err
        assert fix in done.err
        assert done.err.count("\n") == 1


def test_missing_library_is_named_with_its_extra(toy_run, command, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    done = command("export", toy_run, "--overwrite")
    assert done.status == 2
    assert "drifting-models[export]" in done.err


def test_generator_that_cannot_be_traced_is_refused(toy_run, tmp_path, monkeypatch):
    run = runs.load(toy_run)
    forward = type(run.generator).forward
    monkeypatch.setattr(
        type(run.generator), "forward", lambda self, noise, *rest: forward(self, noise * (1 if noise.sum() > 0 else 2), *rest)
    )
    with pytest.raises(InputError, match="run has a MLP, which cannot be traced"):
        export(run, "torch", tmp_path / "toy.pt2")
    assert list(tmp_path.iterdir()) == []
