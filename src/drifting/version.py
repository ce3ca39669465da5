"""The version, read by the build and by every checkpoint."""

__version__ = "0.1.0"
