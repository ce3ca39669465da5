import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import drifting
from tests.support import processes

IMPORT = """
import sys
events = []
def watch(event, arguments):
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        events.append(f"writes {arguments[0]}")
    elif event in ("os.mkdir", "os.remove", "os.rename", "socket.connect", "socket.getaddrinfo", "subprocess.Popen"):
        events.append(f"{event} {arguments}")
sys.addaudithook(watch)
import torch
del events[:]
before = torch.get_num_threads(), torch.get_default_dtype(), torch.initial_seed(), torch.get_rng_state().tolist()
import drifting
after = torch.get_num_threads(), torch.get_default_dtype(), torch.initial_seed(), torch.get_rng_state().tolist()
heavy = {"matplotlib", "sklearn", "tyro", "rich", "PIL", "safetensors", "huggingface_hub", "transformers"} & set(sys.modules)
print([*events, *sorted(heavy), *(["state"] if before != after else []), *(["cuda"] if torch.cuda.is_initialized() else [])])
"""

SHAPES = """
import jaxtyping
jaxtyping.install_import_hook("drifting", "beartype.beartype")
import dataclasses, sys, tempfile
from pathlib import Path
from tests.support.small_runs import shrunk, without_pictures
from tests.support.image_folders import write_images
from drifting import presets, runs
from drifting.data import BankConfig, ImageFilesData
from drifting.encoders import PixelsConfig
from drifting.runs.compare import write_comparison
place = Path(tempfile.mkdtemp())
"""


# A run of points, sampled and evaluated.
POINTS = """
points = presets.adjust(shrunk(presets.preset("toy")), steps=2)
with without_pictures():
    runs.train(points, place / "toy")
runs.load(place / "toy").evaluate(count=100)
"""

# Every kind of data, with pictures; a bank, a resumption, extractors and a comparison.
EVERYTHING = """
for name in ("toy", "digits"):
    folder = Path(tempfile.mkdtemp()) / name
    runs.train(presets.adjust(shrunk(presets.preset(name)), steps=2), folder)
    for out in ("s.png", "s.npy"):
        runs.write_samples(runs.load(folder), folder / out, 20)
data = str(write_images(place / "gray", {"a": 30, "b": 30, "c": 30}))
run = presets.adjust(shrunk(presets.preset("images", data=data)), steps=2)
files = ImageFilesData(path=data, image_size=8)
runs.train(dataclasses.replace(run, data=files, encoder=PixelsConfig(), bank=BankConfig(capacity_per_class=6)), place / "files")
runs.load(place / "files").evaluate(extractor="pixels", count=20)
runs.train(run, place / "plain")
banked = dataclasses.replace(run, bank=BankConfig(capacity_per_class=6), cache_features=False)
runs.train(banked, place / "bank")
runs.train(presets.adjust(banked, steps=3), place / "bank", resume=True)
runs.train(shrunk(presets.preset("mnist-classifier", data=data)), place / "extractor")
for extractor in ("pixels", str(place / "extractor")):
    runs.load(place / "bank").evaluate(extractor=extractor, count=20)
write_comparison([place / "plain", place / "bank"], place / "out")
"""


def test_importing_writes_nothing_and_loads_nothing_heavy():
    result = processes.run(IMPORT)
    assert (result.stdout, result.stderr) == ("[]\n", "")


HELP = """
import contextlib, io
from drifting.cli import main
with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
    main(["train", "{preset}", "--help"])
print("--learning-rate" in shown.getvalue())
"""
HEAVY = """
import sys
heavy = {"torch._dynamo", "sympy", "matplotlib", "sklearn", "scipy", "transformers", "datasets", "diffusers"}
print(heavy & set(sys.modules))
"""


@pytest.mark.parametrize("preset", ["toy", "digits", "imagenet256-ablation"])
def test_help_of_a_preset_loads_nothing_heavy(preset):
    result = processes.run(HELP.format(preset=preset) + HEAVY)
    assert (result.stdout, result.stderr) == ("True\nset()\n", "")


def test_presets_and_the_loss_load_nothing_heavy():
    result = processes.run("import drifting\ndrifting.preset('digits'), drifting.DriftingLoss(), drifting.Trainer\n" + HEAVY)
    assert (result.stdout, result.stderr) == ("set()\n", "")


LOAD = """
from pathlib import Path
from drifting.checkpoint import load_network, save_tensors
from drifting.generators import DecoderMLPConfig
build = lambda: DecoderMLPConfig(width=8).build(sample_shape=(1, 8, 8), num_classes=3, guided=True)
saved = build().state_dict()
save_tensors(Path({path!r}), saved)
print(all(bool((saved[name] == value).all()) for name, value in load_network(build, Path({path!r})).state_dict().items()))
"""


def test_loading_a_network_loads_no_compiler(tmp_path):
    """Embeddings of labels start with normal numbers, for which torch would load its compiler on the meta device."""
    result = processes.run(LOAD.format(path=str(tmp_path / "weights.safetensors")) + HEAVY)
    assert (result.stdout, result.stderr) == ("True\nset()\n", "")


@pytest.mark.parametrize("code", [POINTS, pytest.param(EVERYTHING, marks=pytest.mark.slow)], ids=["points", "everything"])
def test_shapes_in_signatures_hold_throughout_a_run(code):
    """Core functions tell of wrong shapes themselves, so that the checks of the signatures run in a process of their own."""
    pytest.importorskip("beartype")
    result = processes.run(SHAPES + code)
    assert result.returncode == 0, result.stderr[-3000:]


def test_public_names_are_there_documented_and_sorted():
    assert sorted(drifting.__all__) == list(drifting.__all__)
    assert len(set(drifting.__all__)) == len(drifting.__all__)
    for name in drifting.__all__:
        value = getattr(drifting, name)
        assert isinstance(value, str) or value.__doc__


PACKAGES = (
    *("fields", "generators", "encoders", "metrics", "data", "training", "pretraining", "plotting", "evaluation", "hub", "runs"),
    "presets",
)


@pytest.mark.parametrize("name", PACKAGES)
def test_packages_offer_what_they_list(name):
    package = importlib.import_module(f"drifting.{name}")
    assert package.__all__
    for public in package.__all__:
        value = getattr(package, public)
        assert not inspect.ismodule(value), public
        assert public in dir(package)


def test_names_for_type_checkers_are_those_that_are_loaded():
    text = Path(drifting.__file__).read_text()
    (checked,) = [node for node in ast.parse(text).body if isinstance(node, ast.If)]
    imported = {alias.name: node.module for node in checked.body for alias in node.names}
    assert {*imported} <= {*drifting.__all__}
    for public, module in imported.items():
        assert getattr(importlib.import_module(module), public) is getattr(drifting, public)


def test_top_level_is_short():
    assert len(drifting.__all__) <= 24


def test_unknown_name_is_no_attribute():
    for package in (drifting, importlib.import_module("drifting.metrics")):
        with pytest.raises(AttributeError, match="has no attribute 'nothing_of_the_kind'"):
            _ = package.nothing_of_the_kind


def test_function_hides_the_module_of_its_name_whichever_comes_first():
    code = "import drifting.fields.mean_shift\nfrom drifting.fields import mean_shift\n"
    result = processes.run(code + "print(callable(mean_shift))")
    assert result.stdout == "True\n", result.stderr


def test_package_offers_no_other_public_functions_or_classes():
    offered = {name for name, value in vars(drifting).items() if callable(value) and not name.startswith("_")}
    assert offered <= set(drifting.__all__)


def test_every_module_can_be_imported():
    names = [module.name for module in pkgutil.walk_packages(drifting.__path__, "drifting.")]
    assert len(names) > 20
    for name in names:
        if not name.endswith("__main__"):
            assert importlib.import_module(name).__doc__


def test_errors_that_a_user_can_fix_are_value_errors():
    assert issubclass(drifting.InputError, ValueError)
