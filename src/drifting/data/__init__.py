"""Data sources: real samples of given labels, drawn at every step."""
