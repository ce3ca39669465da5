"""The standard deviation of the noise of samples: 1 in training, and that of the run or the one asked for afterwards."""

import dataclasses
import re

import numpy as np
import pytest
import torch

from drifting import presets, runs
from drifting._json import load_json
from drifting.errors import InputError
from drifting.exporting.network import subject_of
from drifting.generators.base import Generator
from drifting.runs.run import load_run
from drifting.sampling import sample, seeded_noise
from drifting.training.recorder import SNAPSHOT_SEED

pytestmark = pytest.mark.usefixtures("no_pictures")


class Noise(Generator):
    """Returns its noise."""

    def __init__(self, noise_scale=1.0):
        super().__init__()
        self.noise_shape = self.sample_shape = (2,)
        self.num_classes, self.noise_scale, self.bias = None, noise_scale, torch.nn.Parameter(torch.zeros(()))

    def forward(self, noise, labels=None, guidance_scale=None):
        return noise + self.bias


@pytest.fixture(scope="module")
def wide_run(tmp_path_factory):
    """A run of points whose samples have more noise than its training."""
    config = presets.adjust(presets.preset("toy"), width=8, steps=4, generated=16, positives=16, noise_scale=1.5)
    return runs.train(config, tmp_path_factory.mktemp("runs") / "wide").folder


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.7])
def test_noise_of_samples_is_scaled(scale):
    assert torch.equal(sample(Noise(scale), 6, seed=3), scale * seeded_noise(range(6), (2,), 3))


def test_scale_of_one_changes_no_bit():
    assert torch.equal(sample(Noise(), 6), seeded_noise(range(6), (2,), 0))


def test_training_has_standard_normal_noise():
    plain, wide = (network.draw_prior(2, 4, torch.Generator().manual_seed(0))[0] for network in (Noise(), Noise(3.0)))
    assert torch.equal(plain, wide)


def test_run_trains_alike_and_samples_with_its_scale(wide_run, tmp_path):
    wide = load_run(wide_run)
    plain = runs.train(presets.adjust(wide.config, noise_scale=1.0), tmp_path / "plain")
    for name, value in plain.generator.state_dict().items():
        assert torch.equal(wide.generator.state_dict()[name], value), name
    noise = seeded_noise(range(5), wide.generator.noise_shape, 0)
    with torch.no_grad():
        expected = wide.generator(1.5 * noise)
    torch.testing.assert_close(sample(wide.generator, 5), expected)
    torch.testing.assert_close(wide.sample(5), wide.config.data.exporter()(expected))
    assert not torch.allclose(plain.sample(5), wide.sample(5))


def test_snapshots_are_samples_with_the_scale_of_the_run(wide_run):
    wide = load_run(wide_run)
    last = wide.snapshots()[4]
    torch.testing.assert_close(last, sample(wide.generator, len(last), seed=SNAPSHOT_SEED))


def test_command_samples_with_the_scale_asked_for(wide_run, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    points = {}
    for scale in (None, 1, 1.5):
        asked = [] if scale is None else ["--noise-scale", scale]
        assert command("sample", wide_run, "--num-samples", 10, *asked, "--out", f"{scale}.npy").status == 0
        points[scale] = np.load(f"{scale}.npy")
    assert np.array_equal(points[None], points[1.5])
    assert not np.array_equal(points[None], points[1])


def test_evaluation_notes_the_scale(wide_run, toy_copy, command):
    own = load_run(wide_run).evaluate(count=200)
    assert command("evaluate", wide_run, "--num-samples", 200, "--noise-scale", 0.2).status == 0
    other = load_json(wide_run / "metrics.json", fix="")
    assert (own["noise_scale"], other["noise_scale"]) == (1.5, 0.2)
    assert own["energy_distance"] != other["energy_distance"]
    assert "noise_scale" not in load_run(toy_copy).evaluate(count=200)


def test_exported_network_takes_standard_normal_noise(wide_run):
    run = load_run(wide_run)
    subject = subject_of(run)
    with torch.no_grad():
        (points,) = subject.network(**subject.inputs(6, seed=2))
    torch.testing.assert_close(points, run.sample(6, seed=2))


@pytest.mark.parametrize("verb", ["sample", "evaluate"])
@pytest.mark.parametrize("scale", ["0", "-1", "nan", "inf"])
def test_scale_out_of_range_is_refused(toy_run, command, tmp_path, monkeypatch, verb, scale):
    monkeypatch.chdir(tmp_path)
    result = command(verb, toy_run, "--noise-scale", scale)
    assert result.status == 2
    assert re.fullmatch(r"drifting: noise_scale is [^\n]*: pass a number above 0, such as 1.05\n", result.err)


@pytest.mark.parametrize("verb", ["sample", "evaluate"])
def test_scale_that_networks_cannot_take_is_refused(toy_run, command, tmp_path, monkeypatch, verb):
    monkeypatch.chdir(tmp_path)
    result = command(verb, toy_run, "--noise-scale", "1e308")
    assert (result.status, result.err) == (2, "drifting: noise_scale is 1e+308: pass at most 1000, such as 1.05\n")


@pytest.mark.parametrize("scale", [0, -1.0, float("nan"), "1.05", 1e308])
def test_scale_of_a_generator_out_of_range_is_refused(toy_run, scale):
    run = load_run(toy_run)
    run.generator.noise_scale = scale
    for use in (run.sample, run.request, lambda count: sample(run.generator, count)):
        with pytest.raises(InputError, match=r"^noise_scale is .*: pass .*, such as 1.05$"):
            use(2)


def test_configuration_with_a_scale_that_networks_cannot_take_is_refused(tiny_toy):
    generator = dataclasses.replace(tiny_toy.generator, noise_scale=1e30)
    with pytest.raises(InputError, match=r"^generator.noise_scale is 1e\+30: pass at most 1000, such as 1.05$"):
        dataclasses.replace(tiny_toy, generator=generator)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan"), "1.05"])
def test_configuration_with_a_scale_out_of_range_is_refused(tiny_toy, scale):
    generator = dataclasses.replace(tiny_toy.generator, noise_scale=scale)
    with pytest.raises(InputError, match=r"generator.noise_scale is .*: pass a number above 0, such as 1.05"):
        dataclasses.replace(tiny_toy, generator=generator)
