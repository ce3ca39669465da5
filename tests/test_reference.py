"""The loss against outputs of the authors' release, and against the float64 oracle on the same inputs."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import drifting
from drifting.fields import backends
from tests.oracle import drifting_oracle as oracle

FOLDER = os.environ.get("DRIFTING_REFERENCE")
CASES = ("plain", "plane", "all_weights", "weighted_negatives", "matched", "collapsed", "single", "offset")
# The release expands |x|^2 + |y|^2 - 2xy in float32 without centring: far from the origin its own digits are lost.
INEXACT_IN_THE_RELEASE = ("offset",)
# Here the drift is a small difference of large sums: float32 itself keeps three digits of it.
ILL_CONDITIONED = ("matched", "collapsed")

pytestmark = pytest.mark.skipif(FOLDER is None, reason="DRIFTING_REFERENCE names no folder with outputs of the release")


@pytest.fixture(autouse=True, params=["compiled", "torch"])
def backend(request, monkeypatch):
    """Compute with the compiled loops, which need numba, and with torch alone."""
    if request.param == "torch":
        monkeypatch.setattr(backends, "is_available", lambda samples: False)
    elif not backends.is_available(torch.zeros(1)):
        pytest.skip("numba, or a product that it can call, is missing")


def load(case):
    with np.load(Path(FOLDER) / f"drift_loss_{case}.npz") as arrays:
        return {name: arrays[name] for name in arrays}


def settings(case, convert):
    names = {"generated_weights": "weight_gen", "positive_weights": "weight_pos", "unconditional_weights": "weight_neg"}
    weights = {ours: convert(case[theirs]) for ours, theirs in names.items() if theirs in case}
    return {**weights, "temperatures": [round(float(temperature), 6) for temperature in case["temperatures"]]}


def run(case):
    generated = torch.tensor(case["gen"], requires_grad=True)
    unconditional = torch.tensor(case["fixed_neg"]) if "fixed_neg" in case else None
    report = drifting.drifting_loss(generated, torch.tensor(case["fixed_pos"]), unconditional, **settings(case, torch.tensor))
    report.loss.sum().backward()
    return report, generated.grad


def relative_error(value, expected):
    return np.abs(np.asarray(value) - expected).max() / np.abs(expected).max()


def test_every_file_of_the_release_is_a_case():
    assert {path.stem for path in Path(FOLDER).glob("drift_loss_*.npz")} == {f"drift_loss_{case}" for case in CASES}


@pytest.mark.parametrize("name", [case for case in CASES if case not in INEXACT_IN_THE_RELEASE])
def test_loss_and_gradient_are_those_of_the_release(name):
    case = load(name)
    report, gradient = run(case)
    assert relative_error(report.loss.detach(), case["loss"]) < 1e-3
    assert relative_error(gradient, case["grad"]) < 1e-3


@pytest.mark.parametrize("name", [case for case in CASES if case not in INEXACT_IN_THE_RELEASE])
def test_scale_and_drift_norms_are_those_of_the_release(name):
    case = load(name)
    report, _ = run(case)
    assert float(report.scale) == pytest.approx(float(case["info_scale"]), rel=1e-4)
    for temperature, norm in report.drift_norms.items():
        assert float(norm) == pytest.approx(float(case[f"info_loss_{temperature}"]), rel=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_are_those_of_the_float64_oracle(name):
    case = load(name)
    tolerance = 1e-3 if name in ILL_CONDITIONED else 1e-4
    expected = oracle.drifting_loss(case["gen"], case["fixed_pos"], case.get("fixed_neg"), **settings(case, np.asarray))
    report, gradient = run(case)
    assert relative_error(report.loss.detach(), expected.loss) < tolerance
    assert relative_error(gradient, expected.grad) < tolerance
    assert relative_error(torch.stack(list(report.drift_norms.values())), np.array(expected.drift_norms)) < tolerance
    assert float(report.scale) == pytest.approx(expected.scale, rel=1e-5)
