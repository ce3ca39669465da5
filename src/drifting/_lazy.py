"""Public names of a package that are imported when they are first used (PEP 562).

Importing torch takes seconds and a library of pictures as long: whoever imports a package waits only for what is used of it.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence

from drifting._extras import missing_extra


def lazy_names(package: str, modules: Mapping[str, Sequence[str]]) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a package.

    A submodule that is not imported yet is found as well. A name must not be that of a submodule: an imported submodule would hide
    it.

    Args:
        package: its `__name__`.
        modules: module of the package -> public names in it.
    """
    places = {name: module for module, names in modules.items() for name in names}

    def get(name: str) -> object:
        if name in places:
            try:
                value = getattr(importlib.import_module(f"{package}.{places[name]}"), name)
            except ModuleNotFoundError as error:
                if (sentence := missing_extra(error)) is None:
                    raise
                raise ModuleNotFoundError(f"{package}.{name} cannot be imported: {sentence}", name=error.name) from error
            setattr(sys.modules[package], name, value)
            return value
        if not name.startswith("_") and importlib.util.find_spec(f"{package}.{name}") is not None:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module '{package}' has no attribute '{name}'")

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *places})

    return get, names
