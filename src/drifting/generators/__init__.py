"""Generators: modules (noise, labels, guidance_scale) -> samples, each sample in one forward pass."""
