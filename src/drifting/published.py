"""Weights that diffusers and transformers load, from a folder or the Hugging Face Hub: asked for once, and without their noise."""

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_CONFIG = "config.json"
_PATIENCE = 10  # seconds, for one answer of the Hub


@contextmanager
def quietly(library: str) -> Iterator[None]:
    """Keep the progress bars and the warnings of "diffusers" or "transformers" off the terminal; errors pass."""
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
    """Return whether weights are to be looked for on this machine alone: in a folder, or downloaded before where no Hub answers.

    The libraries themselves would ask the Hub six times, for half a minute, where there is no network.

    Raises:
        Exception: what the Hub answers, or the network, about a name that is no folder and was not downloaded before.
    """
    if Path(origin).is_dir():
        return True
    hub: Any = importlib.import_module("huggingface_hub")
    hub.utils.validate_repo_id(origin)
    try:
        hub.get_hf_file_metadata(hub.hf_hub_url(origin, _CONFIG), timeout=_PATIENCE)
    except Exception:  # every layer below raises its own kinds
        if isinstance(hub.try_to_load_from_cache(origin, _CONFIG), str):
            return True
        raise
    return False
