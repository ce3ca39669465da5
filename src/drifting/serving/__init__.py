"""A trained generator as a service over HTTP."""

from drifting.serving.app import build_app
from drifting.serving.limits import Limits
from drifting.serving.server import serve

__all__ = ["Limits", "build_app", "serve"]
