"""Weights of other libraries: the Hub is asked once, and what the libraries say stays off the terminal."""

import importlib
import warnings

import pytest

from drifting._extras import is_here, quietly
from drifting.data.pixels import load_vae
from drifting.errors import InputError

hub = pytest.importorskip("huggingface_hub")


@pytest.fixture
def asked(monkeypatch):
    """Let the Hub refuse, and note what it is asked."""
    questions = []

    def refuse(url, timeout):
        questions.append(url)
        raise OSError("no network")

    monkeypatch.setattr(hub, "get_hf_file_metadata", refuse)
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda origin, name: None)
    return questions


def test_folder_is_here_and_the_hub_is_not_asked(asked, tmp_path):
    assert is_here(str(tmp_path))
    assert not asked


def test_without_network_only_an_earlier_download_is_here(asked, monkeypatch):
    with pytest.raises(OSError, match="no network"):
        is_here("owner/name")
    assert [url.split("/", 3)[3] for url in asked] == ["owner/name/resolve/main/config.json"]
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda origin, name: f"/cache/{origin}/{name}")
    assert is_here("owner/name")


def test_what_the_hub_has_is_not_here(monkeypatch):
    monkeypatch.setattr(hub, "get_hf_file_metadata", lambda url, timeout: None)
    assert not is_here("owner/name")


def test_mistyped_folder_is_not_asked_for_and_the_network_asked_once(asked):
    pytest.importorskip("diffusers")
    with pytest.raises(InputError, match=r"^vae is '\./none/of/these', which cannot be loaded \(there is no such folder\)"):
        load_vae("./none/of/these")
    assert not asked
    with pytest.raises(InputError, match=r"^vae is 'owner/vae', which cannot be loaded \(no network\): name a Hub id or a folder$"):
        load_vae("owner/vae")
    assert len(asked) == 1


@pytest.mark.parametrize("library", ["diffusers", "transformers"])
def test_noise_of_libraries_is_kept_off_and_comes_back(library):
    pytest.importorskip(library)
    shown = importlib.import_module(f"{library}.utils.logging")
    shown.enable_progress_bar()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with quietly(library):
            assert not shown.is_progress_bar_enabled()
            warnings.warn("argument is deprecated", UserWarning, stacklevel=1)
            warnings.warn("overflow", RuntimeWarning, stacklevel=1)
        assert [str(one.message) for one in heard] == ["overflow"]
    assert shown.is_progress_bar_enabled()
    with pytest.raises(ValueError, match="damaged"), quietly(library):
        raise ValueError("damaged")
    assert shown.is_progress_bar_enabled()
