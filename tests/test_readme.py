"""The README's Python runs as it stands, its commands exist, and its files are there."""

import functools
import re
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

import drifting
import drifting.presets
from drifting.runs import Run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.S), ids=["train and sample", "own loop"])
def test_python_of_the_readme_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for long, short in {"steps=500": "steps=20", "batch_size=512": "batch_size=64", "evaluate()": "evaluate(count=200)"}.items():
        code = code.replace(long, short)
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})


def test_first_python_of_the_readme_is_short():
    code = re.findall(r"```python\n(.*?)```", README, re.S)[0]
    assert len(code.splitlines()) <= 12


def test_both_commands_of_the_readme_are_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.M):
        assert re.search(rf"^{target}:", makefile, re.M)
    assert set(re.findall(r"^make (\w+)", README, re.M)) == {"demo", "test"}


DOCUMENTS = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")))


def _anchors(document: Path) -> set[str]:
    """Return the anchors that GitHub makes of the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", document.read_text(), flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_links_of_the_documents_exist(document):
    for link, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", document.read_text()):
        target = document.parent / link if link else document
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), f"{link}#{anchor}"


def test_equations_point_to_code_that_exists():
    text = (ROOT / "docs/paper_to_code.md").read_text()
    for name in set(
        re.findall(r"`((?:fields|training|data|encoders|metrics|generators)/\w*|loss|guidance|sampling)(?=[.`/])", text)
    ):
        path = ROOT / "src/drifting" / name
        assert path.is_dir() or path.with_suffix(".py").exists(), name


@pytest.mark.parametrize("script", sorted((ROOT / "experiments").glob("*.py")), ids=lambda path: path.stem)
def test_experiments_answer_from_the_root(script, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(script), run_name="__main__")
    assert not left.value.code
    assert "--save-dir" in capsys.readouterr().out


@pytest.mark.parametrize("script", ["00_one_file", "02_own_loop", "03_labeled_batches", "04_own_network", "05_conditions"])
def test_examples_run(script, capsys):
    runpy.run_path(str(ROOT / "examples" / f"{script}.py"))["main"](steps=100, n=64)
    assert "step 100" in capsys.readouterr().out


@pytest.mark.parametrize("options", [{"autocast": True}, {"backend": "eager"}], ids=["autocast", "compiled"])
def test_own_loop_runs_under_autocast_and_compiled(options, capsys):
    runpy.run_path(str(ROOT / "examples" / "02_own_loop.py"))["main"](steps=100, n=64, **options)
    assert "step 100" in capsys.readouterr().out


def test_animation_runs(tmp_path, capsys):
    out = tmp_path / "training.gif"
    runpy.run_path(str(ROOT / "examples" / "06_animation.py"))["main"](out, steps=20, n=32, frames=3)
    assert "3 frames" in capsys.readouterr().out
    with Image.open(out) as animation:
        assert animation.n_frames == 3


def test_library_example_runs(tmp_path, capsys, monkeypatch):
    train = drifting.presets.preset
    monkeypatch.setattr(drifting, "preset", lambda name, **settings: train(name, **{**settings, "steps": 20, "batch_size": 64}))
    monkeypatch.setattr(Run, "evaluate", functools.partialmethod(Run.evaluate, count=200))
    runpy.run_path(str(ROOT / "examples" / "01_library.py"))["main"](tmp_path / "run")
    assert "energy_distance" in capsys.readouterr().out
