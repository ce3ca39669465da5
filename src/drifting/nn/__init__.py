"""Layers that generators and feature encoders share."""
