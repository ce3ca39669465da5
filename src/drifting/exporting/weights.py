"""Weights in fewer bits: float16 or int8 in the file, float32 in the computation.

    float16:  w' = w rounded to float16
    int8:     w' = scale * code,    scale = max |w| of a row / 127,    code = w / scale rounded to a whole number

A row is that of one output of a layer, or of one class. Only weights with two axes or more are rounded; biases and norms are few.
The network is rounded before it is exported, so the model is compared with what it must make. Then its weights are stored in fewer
bits without further loss, and converted back when a program opens the model: it is small on the way, and as fast as before.

That is exact because a scale keeps 17 bits of its mantissa: its products with codes of 7 bits fit into the 24 bits of float32, and
the scale is found again from the largest product.
"""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from drifting.errors import InputError
from drifting.generators.base import Generator
from drifting.runs import Run
from drifting.runs.evaluate import Evaluation
from drifting.sampling import Sampler

WEIGHTS = ("float32", "float16", "int8")
_MOST, _SCALE_BITS = 127, 17
# Figures that say most about samples, and that exist for some data each.
_DISTANCES, _CLASSES = ("frechet_distance", "energy_distance"), ("accuracy", "logistic_accuracy")
_FIGURES = (*_DISTANCES, *_CLASSES, "within_class_distance", "recall", "pairwise_distance")


def check_weights(weights: str) -> None:
    """Raise InputError unless weights can be stored in this way."""
    if weights not in WEIGHTS:
        raise InputError(f"weights is '{weights}': pass {', '.join(WEIGHTS[:-1])} or {WEIGHTS[-1]}")


def rounded(generator: Generator, weights: str) -> Generator:
    """Return a copy of a generator with weights that can be stored as float16 or int8 without loss; float32 leaves them."""
    check_weights(weights)
    network = copy.deepcopy(generator)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1 and parameter.dtype == torch.float32:
                if weights == "float16":
                    parameter.copy_(parameter.half())
                elif weights == "int8":
                    parameter.copy_(_rounded_rows(parameter))
    return network


def _rounded_rows(matrix: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
    largest = matrix.abs().flatten(1).amax(1)
    mantissa, exponent = torch.frexp(largest.double() / _MOST)
    scale = torch.ldexp(torch.ceil(mantissa * 2**_SCALE_BITS) / 2**_SCALE_BITS, exponent)
    scale = torch.where(scale == 0, 1.0, scale).reshape(-1, *[1] * (matrix.ndim - 1))
    return ((matrix.double() / scale).round().clamp(-_MOST, _MOST) * scale).to(matrix)


def store(model: Any, weights: str) -> None:
    """Store the rounded weights of an ONNX model as float16 or int8, in place; other numbers stay float32."""
    if weights == "float32":
        return
    import onnx

    made, kept = [], []
    for value in model.graph.initializer:
        array = onnx.numpy_helper.to_array(value)
        parts = _parts(array, weights) if array.dtype == np.float32 and array.ndim > 1 else None
        if parts is None:
            kept.append(value)
            continue
        codes, scale = parts
        kept.append(onnx.numpy_helper.from_array(codes, f"{value.name}.codes"))
        whole = f"{value.name}.whole" if scale is not None else value.name
        made.append(onnx.helper.make_node("Cast", [f"{value.name}.codes"], [whole], to=onnx.TensorProto.FLOAT))
        if scale is not None:
            kept.append(onnx.numpy_helper.from_array(scale, f"{value.name}.scale"))
            made.append(onnx.helper.make_node("Mul", [whole, f"{value.name}.scale"], [value.name]))
    for field, values in ((model.graph.initializer, kept), (model.graph.node, [*made, *model.graph.node])):
        del field[:]
        field.extend(values)


def _parts(array: np.ndarray, weights: str) -> tuple[np.ndarray, np.ndarray | None] | None:
    """Return the stored numbers and their scale, None for float16; None if they would lose anything or save nothing."""
    if weights == "float16":
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        return (half, None) if np.array_equal(half.astype(np.float32), array) else None
    # Exporters transpose the matrices of some layers.
    for axis in (0, array.ndim - 1) if weights == "int8" else ():
        others = tuple(each for each in range(array.ndim) if each != axis)
        scale = np.abs(array).max(others, keepdims=True) / np.float32(_MOST)
        scale[scale == 0] = 1
        codes = np.rint(array / scale).astype(np.int8)
        if codes.nbytes + scale.nbytes < array.nbytes and np.array_equal(codes.astype(np.float32) * scale, array):
            return codes, scale
    return None


def compare_weights(
    run: Sampler, weights: str, *, extractor: str | None = None, count: int | None = None, seed: int = 0
) -> Mapping[str, tuple[Any, Any, Any]]:
    """Evaluate a run with its own weights and with rounded ones, on the same noise.

    Args:
        run: a trained run.
        weights: float16 or int8.
        extractor: feature extractor of images, see `runs.evaluate.Evaluation`.
        count: number of samples; that of an evaluation by default.
        seed: seed of the samples.

    Returns:
        Figure -> its value with float32 weights, with rounded weights, and of real data (None where there is none).

    Raises:
        InputError: for a generator without data to compare with, or what `Run.evaluate` refuses.
    """
    if not isinstance(run, Run):
        raise InputError("evaluate is True, but this generator has no data to compare with: leave it out, or name a run")
    plain = _WithoutSnapshots(run.folder, run.config, run.generator)
    before, after = (
        Evaluation(each, extractor, None, count, seed).measure()
        for each in (plain, dataclasses.replace(plain, generator=rounded(run.generator, weights)))
    )
    return {name: (before[name], after[name], before.get(f"{name}_floor")) for name in _FIGURES if name in before}


class _WithoutSnapshots(Run):
    """A run whose samples in training, which rounding does not change, are not measured again."""

    def snapshots(self) -> dict[int, Tensor]:
        """Return none."""
        return {}
