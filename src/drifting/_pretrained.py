"""Load weights with diffusers and transformers, from a folder or the Hugging Face Hub, without their progress bars and retries."""

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drifting._lazy import install_hint
from drifting.errors import InputError, reason

_CONFIG = "config.json"
_PATIENCE = 10  # seconds, for one answer of the Hub


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
        Exception: the error of the Hub or the network, if the name is no folder and was not downloaded before.
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
    except Exception:  # every layer below raises its own kinds
        if isinstance(hub.try_to_load_from_cache(origin, _CONFIG), str):
            return True
        raise
    return False


def load_published(argument: str, origin: str, library: str, kind: str, *, extra: str, **options: Any) -> Any:
    """Return the result of `from_pretrained` of a class of a library, which reads only safetensors.

    Args:
        argument: name of the argument in errors.
        origin: id on the Hugging Face Hub, or a folder made by `save_pretrained`.
        library: "diffusers" or "transformers".
        kind: name of the class.
        extra: extra of this project that installs the library.
        options: further options of `from_pretrained`.

    Raises:
        InputError: if the library or the weights are missing.
    """
    try:
        module: Any = importlib.import_module(library)
    except ImportError:
        needs = f"which needs the library {library}: {install_hint(extra)}"
        raise InputError(f"{argument} is '{origin}', {needs}") from None
    try:
        local = is_here(origin)
        with quietly(library):
            return getattr(module, kind).from_pretrained(origin, use_safetensors=True, local_files_only=local, **options)
    except Exception as error:  # every layer below (HTTP, Hub, configuration, weights) raises its own kinds
        raise InputError(f"{argument} is '{origin}', which cannot be loaded ({reason(error)}): name a Hub id or a folder") from None
