"""What works with the core dependencies alone, and what is said where an extra is missing."""

import re

import pytest

from drifting._extras import missing_extra
from tests.support import processes

CORE = {"torch", "numpy", "jaxtyping"}
# Distribution -> the name that is imported, where they differ.
IMPORTED = {"scikit-learn": "sklearn", "pillow": "PIL"}

# Finds all that is installed but for some libraries.
BLOCK = """
import sys
class But:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {blocked} else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = [But(finder) for finder in sys.meta_path]
assert not {blocked} & set(sys.modules)
"""

LOSS = """
import torch, drifting
from drifting.fields import MeanShift, mean_shift
from drifting.generators import MLP
samples = MLP(noise_dim=2, width=4, depth=1, sample_shape=(3,))(torch.randn(6, 2), None, None)
loss = drifting.DriftingLoss(field=MeanShift(affinity_floor=0.0), temperatures=(0.1, 0.5))
loss({"a": samples}, {"a": torch.randn(7, 3)}, statistics=True).loss.backward()
print(mean_shift(samples, torch.randn(7, 3), temperature=0.5).shape)
"""


def _sections() -> dict[str, list[str]]:
    """Return the dependencies of the core and of every extra in pyproject.toml, without versions."""
    text = (processes.ROOT / "pyproject.toml").read_text()
    found = {name: re.findall(r'"([^"]+)"', body) for name, body in re.findall(r"^(\w+) = \[(.*?)\]$", text, re.M | re.S)}
    return {name: [re.split(r"[<>=\[]", each)[0] for each in values] for name, values in found.items()}


def _run(code: str, blocked: set[str]) -> processes.Done:
    return processes.run(BLOCK.format(blocked=blocked) + code)


def _libraries(*extras: str) -> set[str]:
    return {IMPORTED.get(name, name) for extra in extras for name in _sections()[extra]}


BEYOND = ("train", "images", "encoders", "vae")


def test_extras_are_those_of_the_sentences():
    assert set(_sections()["dependencies"]) == CORE
    for extra in BEYOND:
        for library in _libraries(extra):
            sentence = missing_extra(ModuleNotFoundError("x", name=f"{library}.part"))
            assert sentence == f"the library {library} is not installed: pip install 'drifting-models[{extra}]'"
    assert missing_extra(ModuleNotFoundError("x", name="torch")) is None
    assert missing_extra(ImportError("x", name="rich")) is None


def test_loss_needs_the_core_alone():
    result = _run(LOSS, _libraries(*BEYOND) | {"einops"})
    assert (result.returncode, result.stdout) == (0, "torch.Size([6, 3])\n"), result.stderr[-2000:]


@pytest.mark.parametrize("name", ["preset", "train", "load"])
def test_name_that_misses_an_extra_says_which(name):
    result = _run(f"import drifting\ndrifting.{name}", _libraries("train"))
    last = result.stderr.splitlines()[-1]
    assert result.returncode == 1
    assert f"drifting.{name} cannot be imported: the library" in last
    assert "pip install 'drifting-models[train]'" in last


@pytest.mark.parametrize("library", ["tyro", "rich", "safetensors"])
def test_command_that_misses_an_extra_says_which_in_one_sentence(library):
    result = _run("from drifting.cli import main\nmain(['presets'])", {library})
    sentence = f"drifting: the library {library} is not installed: pip install 'drifting-models[train]'\n"
    assert (result.returncode, result.stdout, result.stderr) == (2, "", sentence)
