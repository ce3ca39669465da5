"""Libraries that only an extra installs: what to install where one is missing, and weights that are loaded with them.

Weights are loaded with diffusers and transformers, from a folder or the Hugging Face Hub, without the progress bars and retries of
these libraries.
"""

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drifting.errors import InputError, reason

DISTRIBUTION = "drifting-models"

_CONFIG = "config.json"
_PATIENCE = 10  # seconds, for one answer of the Hub

# Imported name of a library -> extra that installs it.
_EXTRAS = {
    **dict.fromkeys(("safetensors", "huggingface_hub", "tyro", "rich", "matplotlib", "sklearn", "msgpack", "PIL"), "train"),
    "datasets": "images",
    "transformers": "encoders",
    "diffusers": "vae",
    **dict.fromkeys(("onnx", "onnxscript", "onnxruntime"), "export"),
    **dict.fromkeys(("fastapi", "uvicorn", "prometheus_client"), "serve"),
    **dict.fromkeys(("tensorboard", "wandb"), "track"),
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


@contextmanager
def quietly(library: str) -> Iterator[None]:
    """Silence the progress bars and warnings of "diffusers" or "transformers"; errors are still raised."""
    shown: Any = importlib.import_module(f"{library}.utils.logging")
    before = shown.is_progress_bar_enabled()
    shown.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        if before:
            shown.enable_progress_bar()


def is_here(origin: str) -> bool:
    """Return whether to look for weights only on this machine: in a folder, or in the cache if the Hub does not answer.

    Without a network, the libraries themselves would ask the Hub six times, for half a minute.

    Raises:
        Exception: the error of the Hub or the network, if the name is not a folder and was not downloaded before.
    """
    if Path(origin).is_dir():
        return True
    hub: Any = importlib.import_module("huggingface_hub")
    try:
        hub.utils.validate_repo_id(origin)
    except ValueError:
        raise FileNotFoundError("there is no such folder") from None
    try:
        hub.get_hf_file_metadata(hub.hf_hub_url(origin, _CONFIG), timeout=_PATIENCE)
    except Exception:  # every layer below raises its own errors
        if isinstance(hub.try_to_load_from_cache(origin, _CONFIG), str):
            return True
        raise
    return False


def load_published(argument: str, origin: str, library: str, kind: str, **options: Any) -> Any:
    """Return the result of `from_pretrained` of a class of a library, which reads only safetensors.

    Args:
        argument: name of the argument in errors.
        origin: id on the Hugging Face Hub, or a folder made by `save_pretrained`.
        library: "diffusers" or "transformers".
        kind: name of the class.
        options: further options of `from_pretrained`.

    Raises:
        InputError: if the library or the weights are missing.
    """
    try:
        module: Any = importlib.import_module(library)
    except ImportError:
        needs = f"which needs the library {library}: {install_hint(_EXTRAS[library])}"
        raise InputError(f"{argument} is '{origin}', {needs}") from None
    try:
        local = is_here(origin)
        with quietly(library):
            return getattr(module, kind).from_pretrained(origin, use_safetensors=True, local_files_only=local, **options)
    except Exception as error:  # every layer below (HTTP, Hub, configuration, weights) raises its own errors
        raise InputError(f"{argument} is '{origin}', which cannot be loaded ({reason(error)}): name a Hub id or a folder") from None
