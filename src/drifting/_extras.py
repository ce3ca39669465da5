"""Which extra of this distribution brings a library that is not installed, as one sentence."""

DISTRIBUTION = "drifting-models"

# Library, by the name that is imported -> extra.
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
    """Return a sentence on the extra to install if an error is of a library that an extra brings; None for any other error."""
    if not isinstance(error, ModuleNotFoundError):
        return None
    library = (error.name or "").partition(".")[0]
    extra = _EXTRAS.get(library)
    return None if extra is None else f"the library {library} is not installed: {install_hint(extra)}"
