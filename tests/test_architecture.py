"""The budgets of the house: size of files, functions and argument lists, and where things may be named."""

import ast
import functools
import graphlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import processes

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "drifting"
FOLDERS = ("src", "tests", "benchmarks", "examples", "experiments")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
CORE_FILES = ("loss.py", "labeled_batch.py", "guidance.py", "_checks.py")
CORE = sorted([*(SOURCE / name for name in CORE_FILES), *(SOURCE / "fields").glob("*.py")])

# The core has 700 lines for the method of the paper, and 10 for the further options of its field.
FILE_LINES, FUNCTION_LINES, LOOP_LINES, ARGUMENTS, CORE_LINES, EXPERIMENT_LINES = 400, 60, 100, 8, 710, 15
# The training loop, and the loop over it.
LOOPS = {("training/loop.py", "train"), ("runs/train.py", "follow")}
# The function whose arguments are the method, with its oracle, and the class whose arguments are all that a training is made of.
MANY_ARGUMENTS = {("loss.py", "drifting_loss"), ("drifting_oracle.py", "drifting_loss"), ("training/trainer.py", "__init__")}
# Tests of the class of a configuration: an object is asked, not inspected.
CONFIGURATION_BRANCHES = 7
# Files that `drifting train toy` enters before its first optimizer step, and changes of file on the way: these may only shrink.
LIFE_FILES, LIFE_CHANGES = 36, 150
FORBIDDEN_NAMES = {"utils", "helpers", "misc", "common", "experimental", "legacy"}
# jaxtyping is notation.
CORE_LIBRARIES = {"torch", "jaxtyping", "drifting"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines())


@functools.cache
def _functions(path: Path) -> list[Function]:
    return [node for node in ast.walk(_tree(path)) if isinstance(node, Function)]


def _place(path: Path, node: Function) -> tuple[str, str]:
    return (path.relative_to(SOURCE).as_posix() if path.is_relative_to(SOURCE) else path.name, node.name)


def _length(node: Function) -> int:
    """Count the lines of a function from `def` to its end, without the docstring."""
    first = node.body[0]
    documented = ast.get_docstring(node) is not None
    return node.end_lineno - node.lineno + 1 - (first.end_lineno - first.lineno + 1 if documented else 0)


def _arguments(node: Function) -> int:
    names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def _imported(path: Path) -> set[str]:
    """Return the top-level names that a file imports anywhere."""
    names = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def _modules(path: Path) -> set[str]:
    """Return the modules of two names, such as torch.nn, that a file imports anything from or names as attributes."""
    found = set()
    for node in ast.walk(_tree(path)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names = [f"{node.value.id}.{node.attr}"]
        found |= {".".join(name.split(".")[:2]) for name in names}
    return found


def _public(path: Path) -> Iterator[ast.AST]:
    """Yield the public functions and classes of a file, and the public methods of those."""
    waiting = list(_tree(path).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (Function, ast.ClassDef)) and not node.name.startswith("_"):
            yield node
            waiting += node.body if isinstance(node, ast.ClassDef) else []


def test_there_is_something_to_hold():
    assert len(FILES) > 50
    assert len(CORE) > 5


def test_files_are_short():
    assert {str(path.relative_to(ROOT)): _lines(path) for path in FILES if _lines(path) > FILE_LINES} == {}


def test_functions_are_short():
    long = {}
    for path in FILES:
        for node in _functions(path):
            budget = LOOP_LINES if _place(path, node) in LOOPS else FUNCTION_LINES
            if _length(node) > budget:
                long[f"{path.relative_to(ROOT)}:{node.name}"] = _length(node)
    assert long == {}


def test_functions_take_few_arguments():
    many = {
        f"{path.relative_to(ROOT)}:{node.name}": _arguments(node)
        for path in FILES
        for node in _functions(path)
        if _arguments(node) > ARGUMENTS and _place(path, node) not in MANY_ARGUMENTS
    }
    assert many == {}


def test_exemptions_are_still_needed():
    found = {_place(path, node): node for path in FILES if path.is_relative_to(SOURCE) for node in _functions(path)}
    assert found.keys() >= LOOPS
    assert {_place(path, node) for path in FILES for node in _functions(path) if _arguments(node) > ARGUMENTS} == MANY_ARGUMENTS


def test_method_itself_is_small():
    parts = {path.name: _lines(path) for path in (SOURCE / "fields" / "mean_shift.py", SOURCE / "loss.py", SOURCE / "guidance.py")}
    assert sum(parts.values()) <= CORE_LINES, parts


def _names(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


@functools.cache
def _configuration_classes() -> set[str]:
    """Return the names of configuration classes and of unions of them."""
    trees = [_tree(path) for path in SOURCE.rglob("*.py")]
    names = {
        node.name
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and (node.name.endswith(("Config", "Data")))
    }
    unions = [
        (node.targets[0], node.value)
        for tree in trees
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.BinOp)
    ]
    for _ in unions:
        names |= {target.id for target, value in unions if isinstance(target, ast.Name) and _names(value) & names}
    return names


def _branches_on_configurations(path: Path) -> int:
    """Count isinstance, issubclass and case on configuration classes, and comparisons of `type`."""
    tested: list[ast.AST] = []
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Call) and _names(node.func) & {"isinstance", "issubclass"}:
            tested.append(node.args[1])
        elif isinstance(node, ast.match_case):
            tested.append(node.pattern)
        elif isinstance(node, ast.Compare):
            tested += [side for side in node.comparators if "type" in _names(node.left)]
    return sum(bool(_names(node) & _configuration_classes()) for node in tested)


def test_configurations_are_asked_and_not_inspected():
    branches = {
        path.relative_to(SOURCE).as_posix(): count for path in SOURCE.rglob("*.py") if (count := _branches_on_configurations(path))
    }
    assert {"MLPConfig", "RunConfig", "ImagesData"} <= _configuration_classes()
    assert sum(branches.values()) <= CONFIGURATION_BRANCHES, branches


def test_experiments_are_a_few_lines_over_the_presets():
    assert {path.name: _lines(path) for path in (ROOT / "experiments").glob("*.py") if _lines(path) > EXPERIMENT_LINES} == {}


def test_no_module_is_named_after_nothing():
    names = {part for path in FILES for part in path.relative_to(ROOT).with_suffix("").parts}
    assert names & FORBIDDEN_NAMES == set()


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.name)
def test_core_imports_torch_alone(path):
    assert _imported(path) - CORE_LIBRARIES - sys.stdlib_module_names == set()


def test_only_the_command_line_knows_tyro():
    assert [path.name for path in SOURCE.rglob("*.py") if "tyro" in _imported(path) and path.parent.name != "cli"] == []


def test_one_place_knows_torch_distributed():
    named = [path for path in SOURCE.rglob("*.py") if "torch.distributed" in _modules(path)]
    assert [path.name for path in named] == ["distributed.py"]


def test_package_imports_nothing_that_stands_outside_it():
    outside = {"tests", "benchmarks", "examples", "experiments"}
    assert [path.name for path in SOURCE.rglob("*.py") if _imported(path) & outside] == []


def _from_package(node: ast.AST) -> Iterator[str]:
    """Return what a module imports from the package, also inside functions; imports for types alone are none."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.ImportFrom) and child.module and child.module.split(".")[0] == "drifting":
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        yield from _from_package(child)


def test_no_module_imports_one_that_imports_it():
    paths = {".".join(path.relative_to(SOURCE.parent).with_suffix("").parts): path for path in SOURCE.rglob("*.py")}
    modules = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    imports = {
        module: {name if name in modules else name.rpartition(".")[0] for name in _from_package(_tree(path))}
        for module, path in modules.items()
    }
    assert sum(map(len, imports.values())) > len(modules)
    graphlib.TopologicalSorter(imports).prepare()


def test_example_in_one_file_does_not_need_the_package():
    assert [path.name for path in (ROOT / "examples").glob("00_*.py") if "drifting" in _imported(path)] == []


def test_everything_public_has_a_docstring():
    bare = [
        f"{path.relative_to(SOURCE)}:{node.name}"
        for path in SOURCE.rglob("*.py")
        for node in _public(path)
        if not (ast.get_docstring(node) or "").strip()
        and not any("overload" in _names(decorator) for decorator in node.decorator_list)
    ]
    assert bare == []


def test_every_module_tells_what_it_is():
    assert [str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*.py") if not ast.get_docstring(_tree(path))] == []


def test_life_of_a_run_is_short_to_follow():
    walked = processes.run("import runpy; runpy.run_module('tests.support.life_of_a_run', run_name='__main__')")
    assert walked.returncode == 0, walked.stderr
    life = json.loads(walked.stdout.splitlines()[-1])
    assert 10 < life["files"] <= LIFE_FILES, life
    assert life["files"] < life["changes"] <= LIFE_CHANGES, f"{life}: python -m tests.support.life_of_a_run --calls lists them"
