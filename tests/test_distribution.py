"""The distribution: its metadata, the README as a package index shows it, and a wheel that works without the sources."""

import email
import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest

import drifting
from tests.support import processes

ROOT = processes.ROOT
PROJECT = (ROOT / "pyproject.toml").read_text()
README = (ROOT / "README.md").read_text()
SETUP = runpy.run_path(str(ROOT / "setup.py"))
HOME = "https://example.org/drifting"
# Folders of the repository beside src/.
FOLDERS = ("benchmarks", "docs", "examples", "experiments", "tests")


def test_every_file_of_the_package_is_in_the_wheel():
    """A page or a script beside the code is missing from an installation without a pattern for its suffix."""
    patterns = re.findall(r'"([^"]+)"', re.findall(r"^drifting = \[(.*)\]$", PROJECT, re.M)[0])
    files = [path.relative_to(ROOT / "src/drifting").as_posix() for path in (ROOT / "src/drifting").rglob("*") if path.is_file()]
    others = [name for name in files if not name.endswith(".py") and "__pycache__" not in name]
    assert "plotting/report.html" in others
    assert [name for name in others if not any(fnmatch(name, pattern) for pattern in patterns)] == []


def test_first_version_of_the_changelog_is_that_of_the_package():
    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert versions[0] == drifting.__version__
    assert f"version: {drifting.__version__}" in (ROOT / "CITATION.cff").read_text()


def test_pythons_of_the_metadata_are_those_of_the_workflow():
    named = re.findall(r"Python :: (3\.\d+)", PROJECT)
    assert f'requires-python = ">={named[0]}"' in PROJECT
    assert re.findall(r'"(3\.\d+)"', re.findall(r"python: (\[.*\])", (ROOT / ".github/workflows/ci.yml").read_text())[0]) == named


def test_readme_of_the_index_has_absolute_links_to_files_that_exist():
    shown = SETUP["readme_for_index"](README, HOME, "v1")
    targets = re.findall(r"\]\(([^)]+)\)", shown)
    ours = [target for target in targets if target.startswith(HOME)]
    assert len(ours) > 10
    assert all(re.match(r"https?://|#", target) for target in targets)
    for target in ours:
        kind, revision, path = target.removeprefix(f"{HOME}/").split("/", 2)
        assert (ROOT / path.partition("#")[0]).exists()
        assert revision == "v1"
        assert (kind == "raw") == path.endswith((".png", ".gif"))


def test_readme_of_the_index_keeps_texts_if_the_address_is_unknown():
    shown = SETUP["readme_for_index"](README, None, "main")
    assert all(re.match(r"https?://|#", target) for target in re.findall(r"\]\(([^)]+)\)", shown))
    assert "docs/paper_to_code.md maps every equation" in shown
    assert SETUP["addresses"](None, "main") == {"Paper": SETUP["PAPER"]}


WITHOUT_SOURCES = """
import sys
from pathlib import Path
import drifting, torch
from drifting.cli import main
assert "site" in Path(drifting.__file__).parts, drifting.__file__
short = ["--steps", "4", "--batch-size", "40", "--log-every", "2"]
main(["presets"])
main(["train", "toy", "--dataset", "moons", *short, "--save-dir", "moons"])
main(["train", "digits", *short, "--save-dir", "digits"])
main(["sample", "digits", "--num-samples", "10", "--out", "grid.png"])
print(sorted(path.as_posix() for path in Path().glob("*/report.html")), Path("grid.png").stat().st_size > 0)
"""


def _call(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Return the wheel and the source distribution, built without a network."""
    for library in ("build", "setuptools"):
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    place = tmp_path_factory.mktemp("distributions")
    # A build writes beside the sources.
    clone = shutil.copytree(
        ROOT / "src", place / "clone" / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__")
    ).parent
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, clone / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, clone)
    made = _call([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(place)], clone, DRIFTING_REPOSITORY=HOME)
    assert made.returncode == 0, made.stderr[-3000:]
    (wheel,), (sources,) = place.glob("*.whl"), place.glob("*.tar.gz")
    return wheel, sources


@pytest.mark.slow
def test_wheel_works_without_the_sources(built, tmp_path):
    with zipfile.ZipFile(built[0]) as wheel:
        wheel.extractall(tmp_path / "site")
    (tmp_path / "empty").mkdir()
    result = _call([sys.executable, "-c", WITHOUT_SOURCES], tmp_path / "empty", PYTHONPATH=str(tmp_path / "site"))
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.splitlines()[-1] == "['digits/report.html', 'moons/report.html'] True"


@pytest.mark.slow
def test_metadata_of_the_wheel_names_addresses(built):
    with zipfile.ZipFile(built[0]) as wheel:
        (name,) = [each for each in wheel.namelist() if each.endswith("/METADATA")]
        metadata = email.message_from_bytes(wheel.read(name))
    assert (metadata["Name"], metadata["Version"]) == ("drifting-models", drifting.__version__)
    assert f"Issues, {HOME}/issues" in metadata.get_all("Project-URL")
    assert f"]({HOME}/blob/main/docs/results.md)" in metadata.get_payload()


@pytest.mark.slow
def test_source_distribution_holds_tests_examples_and_documents(built):
    with tarfile.open(built[1]) as sources:
        names = {Path(*Path(name).parts[1:]).as_posix() for name in sources.getnames()}
    wanted = [path for folder in ("src", *FOLDERS) for path in (ROOT / folder).rglob("*")]
    files = {path.relative_to(ROOT).as_posix() for path in wanted if path.is_file()}
    generated = {name for name in files if "__pycache__" in name or ".egg-info" in name}
    assert files - generated - names == set()
    assert {"CHANGELOG.md", "CITATION.cff", "LICENSE", "Makefile", "constraints.txt", "README.md", "setup.py"} <= names
