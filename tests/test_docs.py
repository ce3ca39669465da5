"""The documents: every page is in the site, which builds without a broken link, and the list of presets is that of the code."""

import importlib.util
import re
import runpy
import subprocess
import sys
from types import SimpleNamespace

import pytest

from drifting.presets import GROUPS, PRESETS
from tests.support.processes import ROOT

DOCS = ROOT / "docs"
LINKS = runpy.run_path(str(DOCS / "links.py"))


def test_every_page_is_in_the_site_and_every_entry_is_a_page():
    entries = re.findall(r"(\w+\.md)\s*$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert sorted(entries) == sorted(page.name for page in DOCS.glob("*.md"))


def test_first_page_names_every_other():
    text = (DOCS / "README.md").read_text()
    for page in DOCS.glob("*.md"):
        assert page.name in {"README.md", "data.md", "cifar10.md"} or f"({page.name})" in text, page.name


def test_presets_are_those_of_the_code():
    text = (DOCS / "presets.md").read_text()
    rows = []
    for heading, names in GROUPS.items():
        rows += [f"## {heading}", "| preset | what | data | minutes | expected |", "|---|---|---|---|---|"]
        for name in names:
            preset = PRESETS[name]
            expected = preset.expected.replace("(paper)", "(*paper*)")
            rows.append(f"| `{name}` | {preset.what} | {preset.data} | {preset.minutes} | {expected} |")
    assert re.findall(r"^(?:##|\|).*$", text, re.M) == rows


def test_links_to_other_files_lead_to_the_repository_or_stay_as_texts(monkeypatch):
    page = SimpleNamespace(file=SimpleNamespace(src_uri="a.md"))
    text = "see [the loop](../examples/02_own_loop.py) and [data](data.md#x)"
    monkeypatch.setenv("DRIFTING_REPOSITORY", "https://example.org/d")
    changed = LINKS["on_page_markdown"](text, page=page)
    assert changed == "see [the loop](https://example.org/d/blob/main/examples/02_own_loop.py) and [data](data.md#x)"
    monkeypatch.delenv("DRIFTING_REPOSITORY")
    assert LINKS["on_page_markdown"](text, page=page) == "see the loop and [data](data.md#x)"


@pytest.mark.slow
def test_site_builds_without_a_broken_link(tmp_path):
    for library in ("mkdocs", "material", "mkdocstrings"):
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-3000:]
    reference = (tmp_path / "api.html").read_text()
    for name in (
        "drifting.loss.drifting_loss",
        "drifting.runs.train.train",
        "drifting.fields.MeanShift",
        "drifting.fields.backends.mean_shift",
        "drifting.training.Trainer",
    ):
        assert f'id="{name}"' in reference
    assert "training.gif" in (tmp_path / "index.html").read_text()
