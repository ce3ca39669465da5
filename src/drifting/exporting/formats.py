"""The two formats of a generator: an ONNX model, and a program of `torch.export`.

Both are traced from one program with a batch of any size.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drifting.errors import InputError, reason
from drifting.exporting.network import Inputs, Subject

# The newest opset that PyTorch's exporter and ONNX Runtime, in Python and in browsers, support without conversion.
OPSET = 23
# Sizes of the batches that are compared: one, few, and one that is no power of two.
BATCHES = (1, 4, 33)
# Largest difference of samples, in units of the generator, and of bytes of images.
TOLERANCE, LEVELS = 1e-4, 1
# A protocol buffer, which a file of ONNX is, holds at most 2 GiB.
MOST_BYTES = 2**31 - 2**20

Runner = Callable[[Inputs], tuple[Tensor, ...]]


def trace(subject: Subject) -> Any:
    """Return the network as a `torch.export.ExportedProgram` with a batch of any size.

    Raises:
        InputError: if the generator cannot be traced, as one of your own may be that branches on values.
    """
    batch = torch.export.Dim("batch")
    example = subject.inputs(4)
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(
                subject.network, (), example, dynamic_shapes={name: {0: batch} for name in example}, strict=False
            )
    except Exception as error:  # whatever the code of a generator, or the tracing of it, may raise
        kind = type(subject.generator).__name__
        raise InputError(f"run has a {kind}, which cannot be traced ({reason(error)}): remove what depends on values") from error


def save_torch(program: Any, subject: Subject, path: Path) -> None:
    """Write a program of `torch.export` (.pt2), with the facts as extra files."""
    for node in program.graph.nodes:
        # The lines of code that it came from, with the paths of this machine.
        node.meta.pop("stack_trace", None)
    with _quiet():
        torch.export.save(program, path, extra_files=subject.metadata())


def load_torch(path: Path) -> Runner:
    """Return the function of a program in a file."""
    with _quiet():
        module = torch.export.load(path).module()

    def run(inputs: Inputs) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return tuple(module(**inputs))

    return run


def to_onnx(program: Any, subject: Subject) -> Any:
    """Return a program as an ONNX model in memory, with the facts as its metadata.

    Raises:
        InputError: if the weights do not fit into one file.
    """
    import onnx

    size = sum(value.numel() * value.element_size() for value in subject.network.state_dict().values())
    if size > MOST_BYTES:
        raise InputError(f"to is 'onnx', but the weights take {size / 1e9:.1f} GB and a file holds 2 GB: export to torch")
    with torch.no_grad(), _quiet():
        exported: Any = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, external_data=False, output_names=list(subject.outputs), verbose=False
        )
        model = exported.model_proto
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    # The names of files and lines that the exporter notes are those of the machine.
    for node in (*model.graph.node, *(node for function in model.functions for node in function.node)):
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer, model.graph):
        del value.metadata_props[:]
    onnx.helper.set_model_props(model, subject.metadata())
    return model


def load_onnx(model: Path | bytes) -> Runner:
    """Return the function of an ONNX model, computed by ONNX Runtime on the CPU with as many threads as torch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    source = model if isinstance(model, bytes) else str(model)
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    def run(inputs: Inputs) -> tuple[Tensor, ...]:
        found: Any = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        return tuple(map(torch.from_numpy, found))

    return run


def largest_difference(subject: Subject, run: Runner, *, seed: int = 0) -> float:
    """Return the largest difference between samples of a format and of PyTorch, in units of the generator, over all `BATCHES`.

    Raises:
        InputError: if it is above `TOLERANCE`, or a byte of an image differs by more than `LEVELS`.
    """
    largest = 0.0
    for count in BATCHES:
        inputs = subject.inputs(count, seed)
        with torch.no_grad():
            expected = subject.network(**inputs)
        for name, ours, theirs in zip(subject.outputs, expected, run(inputs), strict=True):
            if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
                found = f"{theirs.dtype} {list(theirs.shape)} instead of {ours.dtype} {list(ours.shape)}"
                raise InputError(f"{name} of the export are {found}: nothing was written, report this")
            difference = float((ours.double() - theirs.double()).abs().max())
            limit = LEVELS if name == "images" else TOLERANCE * subject.unit
            if not difference <= limit:
                raise InputError(
                    f"{name} of the export differ from PyTorch's by {difference:.2g} with {count} samples, more than {limit:.2g}: "
                    "nothing was written, report this"
                )
            if name == "samples":
                largest = max(largest, difference / subject.unit)
    return largest


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the notes of the exporters on their own work; errors are still raised."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
