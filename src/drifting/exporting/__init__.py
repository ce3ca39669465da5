"""Trained generators in the formats of other programs: ONNX, torch.export, and a web page."""

from drifting.exporting.weights import compare_weights
from drifting.exporting.write import Exported, export

__all__ = ["Exported", "compare_weights", "export"]
