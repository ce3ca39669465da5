"""Repositories of the Hugging Face Hub: download the files of a shared run, and upload a folder.

A repository may be anybody's. Its list of files is looked at before anything is downloaded; then only files of known names are, and
none that can run code when it is read.
"""

import importlib
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from drifting.errors import InputError, reason
from drifting.hub.artifact import PREFIX

# Files that can run code when they are read by the usual readers.
_PICKLES = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth")
_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
# A folder in which runs are by default, so that a mistyped name of a run is not looked for on the Hub.
_RUNS = "runs"
_PATIENCE = 10  # seconds, for one answer of the Hub
_NOT_THERE, _NOT_ALLOWED = (401, 403, 404), (401, 403)


def repository_id(origin: str) -> str | None:
    """Return owner/name if a text names a repository of the Hub: with the prefix hub:, or if it cannot be a path here."""
    name = origin.removeprefix(PREFIX)
    if not _ID.fullmatch(name):
        return None
    owner = name.partition("/")[0]
    local = Path(name).exists() or owner == _RUNS or Path(owner).is_dir()
    return name if origin.startswith(PREFIX) or not local else None


def check_repository_id(argument: str, name: str) -> str:
    """Return owner/name, with or without the prefix hub:, or raise InputError naming the argument."""
    name = name.removeprefix(PREFIX)
    if not _ID.fullmatch(name):
        raise InputError(f"{argument} is '{name}': name a repository as owner/name")
    return name


def download_repository(name: str, *, required: tuple[str, ...], limits: Mapping[str, int]) -> Path:
    """Return the folder of the files of a repository, downloaded if necessary; without a network, the one of an earlier download.

    Args:
        name: owner/name.
        required: names of files that the repository must have.
        limits: names of files to download if they are there -> largest size in bytes.

    Raises:
        InputError: if the repository is missing or cannot be reached, lacks a file, has one that is too large, or holds pickles.
    """
    hub: Any = importlib.import_module("huggingface_hub")
    api, files = hub.HfApi(), list(limits)
    try:
        known = {file.rfilename: file.size for file in api.model_info(name, files_metadata=True, timeout=_PATIENCE).siblings or ()}
    except Exception as error:  # every layer below (HTTP, Hub) raises its own kinds
        if _status(error) not in _NOT_THERE:
            with suppress(Exception):
                return Path(api.snapshot_download(name, allow_patterns=files, local_files_only=True))
        raise _unreachable(name, error) from None
    _check(name, known, required, limits)
    try:
        return Path(api.snapshot_download(name, allow_patterns=files, etag_timeout=_PATIENCE))
    except Exception as error:  # as above, and the disk
        raise _unreachable(name, error) from None


def upload_folder(folder: Path, name: str, *, private: bool | None, message: str) -> str:
    """Upload the files of a folder to a repository, which is made if it does not exist, and return its address.

    Args:
        folder: the folder.
        name: owner/name.
        private: whether only the owner sees a new repository; None for the default of the owner.
        message: message of the commit.

    Raises:
        InputError: if the repository cannot be written to.
    """
    hub: Any = importlib.import_module("huggingface_hub")
    api = hub.HfApi()
    try:
        address = str(api.create_repo(name, private=private, exist_ok=True))
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
    except Exception as error:  # every layer below (HTTP, Hub, disk) raises its own kinds
        why = f"repository is '{name}', which cannot be written to ({_reason(error)})"
        if _status(error) in _NOT_ALLOWED or isinstance(error, hub.errors.LocalTokenNotFoundError):
            raise InputError(f"{why}: log in with `hf auth login`, and name a repository of your own") from None
        raise InputError(f"{why}: check the network, or save a folder now and upload it later with `hf upload`") from None
    return address


def _check(name: str, known: Mapping[str, int | None], required: tuple[str, ...], limits: Mapping[str, int]) -> None:
    """Raise InputError unless the files of a repository are those of a shared run."""
    if pickles := sorted(file for file in known if Path(file).suffix.lower() in _PICKLES):
        raise InputError(f"run is '{name}', a repository with '{pickles[0]}', which can run code: name one of safetensors alone")
    if missing := [file for file in required if file not in known]:
        raise InputError(f"run is '{name}', a repository without {missing[0]}: name one that `drifting share` made")
    for file, most in limits.items():
        size = known.get(file) or 0
        if size > most:
            sizes = f"of {size / 1e6:,.0f} MB, more than {most / 1e6:,.0f} MB"
            raise InputError(f"run is '{name}', a repository with '{file}' {sizes}: download it yourself, and name its folder")


def _unreachable(name: str, error: Exception) -> InputError:
    if _status(error) in _NOT_THERE:
        fix = "name a folder, or log in with `hf auth login` if it is private"
        return InputError(f"run is '{name}', which is no folder here and no repository that you may read: {fix}")
    fix = f"check the network, or name the folder that `hf download {name} --local-dir DIR` wrote where there is one"
    return InputError(f"run is '{name}', no folder here, and the Hub cannot be reached ({_reason(error)}): {fix}")


def _reason(error: Exception) -> str:
    return reason(error)[:60]


def _status(error: Exception) -> int | None:
    """Return the status of the answer of the Hub; None for an error of another kind."""
    return getattr(getattr(error, "response", None), "status_code", None)
