"""Imports that wait until they are needed: public names of packages (PEP 562), and libraries that only an extra installs.

Importing torch takes seconds, so a package imports only the modules whose names are used.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence

DISTRIBUTION = "drifting-models"

# Imported name of a library -> extra that installs it.
_EXTRAS = {
    **dict.fromkeys(("safetensors", "huggingface_hub", "tyro", "rich", "matplotlib", "sklearn", "msgpack", "PIL"), "train"),
    "datasets": "images",
    "transformers": "encoders",
    "diffusers": "vae",
}


def install_hint(extra: str) -> str:
    """Return the command that installs an extra."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def missing_extra(error: BaseException) -> str | None:
    """Return a sentence that names the extra to install if an error means that its library is missing; None for any other error."""
    if not isinstance(error, ModuleNotFoundError):
        return None
    library = (error.name or "").partition(".")[0]
    extra = _EXTRAS.get(library)
    return None if extra is None else f"the library {library} is not installed: {install_hint(extra)}"


def lazy_names(package: str, modules: Mapping[str, Sequence[str]]) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a package.

    Submodules that are not imported yet are found too. A name must differ from all submodules, because an imported submodule would
    hide it.

    Args:
        package: the `__name__` of the package.
        modules: module of the package -> its public names.
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
