"""Drift fields: functions from generated and real samples to the direction in which each generated sample should move."""
