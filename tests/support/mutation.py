"""Break the method's source in small ways, and show which tests notice.

Command: python -m tests.support.mutation [--count 24] [--seed 0] [--save mutants.json | --mutants mutants.json]

Draws mutants of the source files of fields, loss, guidance, training and data: an operator, a comparison, a number or a boolean
changed, `min` and `max` exchanged, two arguments exchanged, `not` or `.detach()` removed. For each mutant the tests that import
its module run against a copy of the source, the module's own test file first, until one of them fails or the limit of processor
time is reached. The tests must pass on the source as it is. A mutant that survives is either equivalent to the original or
shows a test that is missing. A saved draw can be repeated after the source or the tests have moved: a mutant is found again by
the line that it changes.
"""

import argparse
import ast
import dataclasses
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[2]
PARTS = ("fields", "loss.py", "guidance.py", "training", "data")
OPERATORS = {ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"), ast.FloorDiv: ("//", "*")}
COMPARISONS = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
}
OPPOSITES = {
    "min": "max",
    "amin": "amax",
    "minimum": "maximum",
    "clamp_min": "clamp_max",
    "any": "all",
    "floor": "ceil",
    "zeros": "ones",
}
OPPOSITES |= {opposite: name for name, opposite in OPPOSITES.items()}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One change of one line.

    Attributes:
        path: The file, below src/drifting.
        kind: What sort of change it is.
        line: The line as it is, without indentation.
        mutated: The line as it becomes.
        occurrence: Which of the equal lines of the file is meant, counted from zero.
    """

    path: str
    kind: str
    line: str
    mutated: str
    occurrence: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=int, default=60, help="processor time that the tests of one mutant may take")
    parser.add_argument("--save", type=Path, help="write the drawn mutants to this file")
    parser.add_argument("--mutants", type=Path, help="repeat the mutants of this file in place of a draw")
    options = parser.parse_args()
    if options.mutants:
        mutants = [Mutant(**fields) for fields in json.loads(options.mutants.read_text())]
    else:
        mutants = draw(ROOT / "src/drifting", options.count, options.seed)
    if options.save:
        options.save.write_text(json.dumps([dataclasses.asdict(mutant) for mutant in mutants], indent=1))
    print("| # | file | kind | mutant | result |\n|---|---|---|---|---|", flush=True)
    results = []
    for number, mutant in enumerate(mutants):
        results.append(outcome(mutant, options.seconds))
        change = f"`{mutant.line}` to `{mutant.mutated}`".replace("|", "\\|")
        print(f"| {number} | {mutant.path} | {mutant.kind} | {change} | {results[-1]} |", flush=True)
    killed = sum(result.startswith("killed") for result in results)
    print(f"\n{killed} of {len(results)} mutants killed.")


def draw(package: Path, count: int, seed: int) -> list[Mutant]:
    """Draw different mutants: each part of the package in turn, in it a kind of change, then a place."""
    rng = random.Random(seed)
    pools: list[dict[str, list[Mutant]]] = []
    for part in PARTS:
        files = sorted((package / part).glob("*.py")) if (package / part).is_dir() else [package / part]
        pools.append({})
        for file in files:
            for mutant in mutants_of(file.read_text(), file.relative_to(package).as_posix()):
                pools[-1].setdefault(mutant.kind, []).append(mutant)
    drawn: list[Mutant] = []
    while len(drawn) < count:
        pool = pools[len(drawn) % len(pools)]
        mutant = rng.choice(pool[rng.choice(sorted(pool))])
        if mutant not in drawn:
            drawn.append(mutant)
    return drawn


def mutants_of(source: str, path: str) -> Iterator[Mutant]:
    """Yield every change of one line that the tool knows; messages of errors and annotations stay as they are."""
    lines = source.splitlines()
    for node in _code(ast.parse(source)):
        for kind, start, end, text in _changes(node, lines):
            row = start[0] - 1
            if start[0] != end[0]:
                continue
            line = lines[row]
            # Columns of the syntax tree count bytes.
            before, after = line.encode()[: start[1]].decode(), line.encode()[end[1] :].decode()
            occurrence = sum(other.strip() == line.strip() for other in lines[:row])
            yield Mutant(path, kind, line.strip(), (before + text + after).strip(), occurrence)


def _code(node: ast.AST) -> Iterator[ast.AST]:
    """Walk what is computed: no messages of errors, no annotations, no formatted strings."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, ast.Raise | ast.JoinedStr):
                yield child
                yield from _code(child)


Change = tuple[str, tuple[int, int], tuple[int, int], str]


def _start(node: ast.expr) -> tuple[int, int]:
    return node.lineno, node.col_offset


def _end(node: ast.expr) -> tuple[int, int]:
    return node.end_lineno or 0, node.end_col_offset or 0


def _changes(node: ast.AST, lines: list[str]) -> Iterator[Change]:
    match node:
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            yield from _between("operator", left, right, *OPERATORS[type(op)], lines)
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in COMPARISONS:
            yield from _between("comparison", left, right, *COMPARISONS[type(op)], lines)
        case ast.BoolOp(op=op, values=[left, right, *_]):
            old, new = ("and", "or") if isinstance(op, ast.And) else ("or", "and")
            yield from _between("comparison", left, right, old, new, lines)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield "removed not", _start(node), _start(operand), ""
        case ast.UnaryOp(op=ast.USub(), operand=operand) if not isinstance(operand, ast.Constant):
            yield "operator", _start(node), _start(operand), ""
        case ast.Constant(value=bool(value)):
            yield "boolean", _start(node), _end(node), str(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield "number", _start(node), _end(node), str(value + 1)
            yield "number", _start(node), _end(node), f"({value - 1})"
        case ast.Call(func=func, args=args):
            yield from _changes_of_call(node, func, args, lines)


def _changes_of_call(call: ast.Call, func: ast.expr, args: list[ast.expr], lines: list[str]) -> Iterator[Change]:
    if isinstance(func, ast.Attribute) and func.attr == "detach":
        yield "removed detach", _end(func.value), _end(call), ""
    name = func.id if isinstance(func, ast.Name) else func.attr if isinstance(func, ast.Attribute) else ""
    if name in OPPOSITES:
        line, column = _end(func)
        yield "opposite", (line, column - len(name)), (line, column), OPPOSITES[name]
    if len(args) >= 2 and not any(isinstance(arg, ast.Starred) for arg in args[:2]) and name not in ("isinstance", "getattr"):
        first, second = args[:2]
        if first.lineno == second.end_lineno:
            texts = [lines[arg.lineno - 1].encode()[arg.col_offset : arg.end_col_offset].decode() for arg in (first, second)]
            if texts[0] != texts[1] and name not in ("min", "max"):
                yield "exchanged arguments", _start(first), _end(second), ", ".join(reversed(texts))


def _between(kind: str, left: ast.expr, right: ast.expr, old: str, new: str, lines: list[str]) -> Iterator[Change]:
    """Yield the change of the operator between two operands of one line."""
    if left.end_lineno != right.lineno:
        return
    gap = lines[right.lineno - 1].encode()[left.end_col_offset : right.col_offset].decode()
    if gap.count(old) == 1:
        yield kind, _end(left), _start(right), gap.replace(old, new)


def outcome(mutant: Mutant, seconds: int) -> str:
    """Run the tests of a mutant's module against it, and say what came of it."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(shutil.copytree(ROOT / "src", f"{folder}/src", ignore=shutil.ignore_patterns("__pycache__"))) / "drifting"
        file = find(package, mutant)
        if file is None:
            return "not found: its line has changed"
        file.write_text(apply(file.read_text(), mutant))
        tests = tests_of(file.relative_to(package).as_posix())
        if not tests:
            return "survived: no test imports it"
        environment = os.environ | {"PYTHONPATH": f"{folder}/src", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=no", "-rfE", *map(str, tests)]
        limit = partial(resource.setrlimit, resource.RLIMIT_CPU, (seconds, seconds))
        try:
            run = subprocess.run(
                command,
                cwd=ROOT,
                env=environment,
                preexec_fn=limit,
                timeout=20 * seconds,
                capture_output=True,
                text=True,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "killed: hangs"
    if run.returncode < 0:
        return f"survived {seconds} s of {len(tests)} files"
    if run.returncode == 0:
        return f"survived all of {len(tests)} files"
    failed = [line.split(" ")[1] for line in run.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return f"killed by {failed[0]}" if failed else f"killed at import ({run.returncode})"


def find(package: Path, mutant: Mutant) -> Path | None:
    """Return the file that holds a mutant's line: its own, or the first one that the line has moved to."""
    files = [package / mutant.path, *sorted(package.rglob("*.py"), key=lambda file: (file.name != Path(mutant.path).name, file))]
    for file in files:
        if file.exists() and any(line.strip() == mutant.line for line in file.read_text().splitlines()):
            return file
    return None


def apply(source: str, mutant: Mutant) -> str:
    """Return the source with the mutant's line in place of the original."""
    lines = source.splitlines()
    rows = [row for row, line in enumerate(lines) if line.strip() == mutant.line]
    row = rows[min(mutant.occurrence, len(rows) - 1)]
    lines[row] = lines[row].replace(mutant.line, mutant.mutated)
    return "\n".join(lines) + "\n"


def tests_of(path: str) -> list[Path]:
    """Return the test files of a module: its own by name and folder, then those that import it, the shortest first."""
    module = ".".join(("drifting", *Path(path).with_suffix("").parts)).removesuffix(".__init__")
    package, _, name = module.rpartition(".")
    found = []
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        beside = file.parent.relative_to(ROOT / "tests") == Path(path).parent
        own = beside and file.stem.startswith(f"test_{name.lstrip('_')}")
        imported = False
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported = imported or any(alias.name == module for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                imported = (
                    imported or node.module == module or (node.module == package and name in {alias.name for alias in node.names})
                )
        if own or imported or (beside and "." in package):
            found.append((not own, not imported, file.stat().st_size, file))
    return [file for *_, file in sorted(found)]


if __name__ == "__main__":
    main()
