"""Trained generators in the formats of other programs: ONNX, torch.export, and a web page."""
