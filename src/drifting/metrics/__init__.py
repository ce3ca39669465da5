"""Metrics: how far samples are from real data."""
