"""Weights as float16 and int8: stored without loss after rounding, and what the rounding changes."""

import dataclasses

import numpy as np
import pytest
import torch

from drifting import runs
from drifting.errors import InputError
from drifting.exporting import compare_weights
from drifting.exporting.weights import rounded, store
from drifting.generators.mlp import MLP
from drifting.runs.share import ReleasedGenerator
from tests.support.later import import_later

onnx, onnxruntime = import_later("onnx"), import_later("onnxruntime")


@pytest.fixture
def network():
    torch.manual_seed(0)
    return MLP(noise_dim=40, sample_shape=(2,), width=24, depth=2, num_classes=5, guided=True)


def _matrices(network):
    return {name: value for name, value in network.state_dict().items() if value.ndim > 1}


def test_int8_is_within_half_a_step_of_every_row(network):
    whole, small = _matrices(network), _matrices(rounded(network, "int8"))
    for name, matrix in whole.items():
        step = matrix.abs().amax(1, keepdim=True) / 127
        error = (matrix - small[name]).abs()
        # The step is rounded up by at most 2^-16 of itself, of which there are 127.
        assert bool((error <= step * (0.5 + 127 * 2**-16)).all()), name
        if matrix.shape[1] > 8:
            assert float(error.max()) > 0, name
            assert all(row.unique().numel() <= 255 for row in small[name])


@pytest.mark.parametrize("weights", ["float16", "int8"])
def test_rounding_again_changes_nothing(network, weights):
    once = rounded(network, weights)
    twice = rounded(once, weights)
    assert all(torch.equal(value, twice.state_dict()[name]) for name, value in once.state_dict().items())
    changed = {name for name, value in once.state_dict().items() if not torch.equal(value, network.state_dict()[name])}
    assert {"hidden.0.weight", "hidden.1.weight", "output.weight", "shifts.0.weight"} <= changed <= set(_matrices(network))


def _model(matrix: np.ndarray):
    """A model that returns a matrix and its transpose, both of which it holds, and a vector."""
    held = {"matrix": matrix, "transposed": np.ascontiguousarray(matrix.T), "vector": matrix[0]}
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", [name], [f"{name}.out"]) for name in held],
        "held",
        [],
        [onnx.helper.make_tensor_value_info(f"{name}.out", onnx.TensorProto.FLOAT, value.shape) for name, value in held.items()],
        [onnx.numpy_helper.from_array(value, name) for name, value in held.items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)], ir_version=10)


@pytest.mark.parametrize(("weights", "share"), [("float32", 1.0), ("float16", 0.5), ("int8", 0.25)])
def test_rounded_weights_are_stored_without_loss_in_fewer_bytes(network, weights, share):
    matrix = rounded(network, weights).hidden[0].weight.detach().numpy().copy()
    matrix[2] = 0
    model = _model(matrix)
    store(model, weights)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for found, expected in zip(session.run(None, {}), (matrix, matrix.T, matrix[0]), strict=True):
        np.testing.assert_array_equal(found, expected)
    large = [value for value in model.graph.initializer if value.name.partition(".")[0] in ("matrix", "transposed")]
    held = sum(len(value.raw_data) for value in large if not value.name.endswith(".scale"))
    assert held == 2 * share * matrix.nbytes


def test_weights_that_were_not_rounded_stay_as_they_are(network):
    model = _model(network.hidden[0].weight.detach().numpy())
    before = model.SerializeToString()
    for weights in ("float16", "int8"):
        store(model, weights)
        assert model.SerializeToString() == before


def test_change_of_the_figures_is_that_of_the_rounded_run(toy_run):
    run = runs.load(toy_run)
    found = compare_weights(run, "int8", count=200)
    own = runs.evaluate.Evaluation(run, count=200).measure()
    small = runs.evaluate.Evaluation(dataclasses.replace(run, generator=rounded(run.generator, "int8")), count=200).measure()
    assert found["energy_distance"] == (own["energy_distance"], small["energy_distance"], own["energy_distance_floor"])
    assert own["energy_distance"] != small["energy_distance"]


def test_generator_without_data_is_not_compared(network):
    with pytest.raises(InputError, match="no data to compare with"):
        compare_weights(ReleasedGenerator(network), "int8")


def test_command_shows_the_change_before_it_writes(toy_run, tmp_path, command, monkeypatch):
    asked = []

    def compared(run, weights):
        asked.append((run.folder, weights))
        return {"energy_distance": (0.5, 0.625, 0.25), "accuracy": (1.0, 0.875, None)}

    monkeypatch.setattr("drifting.exporting.compare_weights", compared)
    monkeypatch.setattr("drifting.exporting.export", lambda run, to, out, **options: asked.append((to, out, options)) or _Written())
    done = command("export", toy_run, "--weights", "int8", "--evaluate", "--out", tmp_path / "toy.onnx")
    assert (done.status, done.err) == (0, "")
    shown = [" ".join(line.replace("│", " ").split()) for line in done.out.splitlines()]
    assert "energy_distance 0.5 0.625 0.25 less" in shown
    assert "accuracy 1 0.875 more" in shown
    assert shown[-1] == "written"
    options = {"weights": "int8", "cdn": False, "runtime": None, "overwrite": False}
    assert asked == [(toy_run, "int8"), ("onnx", tmp_path / "toy.onnx", options)]


class _Written:
    def lines(self):
        return ["written"]
