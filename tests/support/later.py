"""Large libraries that few tests use: imported by the first of these tests, and not by every process that collects them."""

import importlib
import importlib.util
from typing import Any

import pytest


class Later:
    """A module that is imported when it is first asked for something."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._name), name)


def import_later(name: str) -> Any:
    """Skip the tests of the calling module where a library is missing, as `pytest.importorskip` does, and import it later."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"could not import {name!r}", allow_module_level=True)
    return Later(name)
