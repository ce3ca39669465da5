"""Every Triton kernel compiles for a GPU, without one: the interpreter accepts more than the compiler does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
# What a program may use of an RTX 30 or 40; the others have more.
SHARED_BYTES = 99 * 1024

# The compiler needs a process in which Triton does not interpret.
PROGRAM = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from drifting.fields import triton_kernels as groups, triton_tiles as tiles
from drifting.fields.triton_drifts import _COLUMNS, _PAIRS, _ROWS, _TILE, _TILES, _WARPS, _cut_columns

NUMBERS, SIZE = "*fp32", "i32"

def samples(kind, one):
    # Triton makes an argument that is 1 a constant.
    sizes = ["constexpr"] * 3 + [SIZE, "constexpr", SIZE] if one else [SIZE] * 6
    return groups.Samples(kind, kind, kind, kind, NUMBERS, NUMBERS, *sizes, "fp32", "fp32")

def compile(kernel, signature, constants, warps):
    ones = {(0, index): 1 for index, kind in enumerate(next(iter(signature.values()))) if kind == "constexpr"}
    names = list(signature)
    constants = {(names.index(name),): value for name, value in constants.items()} | ones
    signature = signature | {names[place[0]]: "constexpr" for place in constants if len(place) == 1}
    source = ASTSource(kernel, signature, constexprs=constants)
    done = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    print(kernel.__name__, done.metadata.shared, len(done.asm["cubin"]) > 0, flush=True)

def cut(rows, columns, pieces, own=True, weighted=True, direct=False):
    return groups.Cut(rows, columns, 16, pieces, 3, 4, own, weighted, direct, "ieee")

def small(cut, warps, kind="*fp32", one=False):
    of = {"samples": samples(kind, one)}
    compile(groups.measure_groups, of | {"sums": NUMBERS, "CUT": ""}, {"CUT": cut}, warps)
    names = ("temperatures", "moved", "squares")
    compile(groups.move_groups, of | dict.fromkeys(names, NUMBERS) | {"CUT": ""}, {"CUT": cut}, warps)

def large(cut, warps, kind="*fp32", one=False):
    of, given = {"samples": samples(kind, one)}, {"CUT": cut}
    kernel = {"kernel": groups.Kernel(*[NUMBERS] * 5)}
    compile(groups.center_targets, of | {"CUT": ""}, given, warps)
    compile(tiles.measure_tiles, of | {"sums": NUMBERS, "CUT": ""}, given, warps)
    for axis in (0, 1):
        names = ("temperatures", "nearest", "sums")
        compile(tiles.add_up_tiles, of | dict.fromkeys(names, NUMBERS) | {"AXIS": "", "CUT": ""}, given | {"AXIS": axis}, warps)
    compile(tiles.move_tiles, of | kernel | dict.fromkeys(("sides", "masses"), NUMBERS) | {"CUT": ""}, given, warps)
    compile(tiles.spread_tiles, of | kernel | {"sums": NUMBERS, "CUT": ""}, given, warps)
    compile(tiles.join_sides, of | dict.fromkeys(("sides", "masses", "squares"), NUMBERS) | {"CUT": ""}, given, warps)

small(cut(_ROWS, _TILE, tuple(_cut_columns(min(_COLUMNS, _PAIRS // _ROWS)))), _WARPS[1])
small(cut(16, _TILE, ((0, 32), (32, 16)), weighted=False), _WARPS[0], kind="*bf16")
small(cut(16, _TILE, ((0, 16),), own=False, direct=True), _WARPS[0], one=True)
large(cut(*_TILES, ()), _WARPS[1])
large(cut(16, 32, (), weighted=False), _WARPS[0], kind="*bf16")
large(cut(16, 32, (), own=False, direct=True), _WARPS[0], one=True)
compile(groups.combine, {"moved": NUMBERS, "factors": NUMBERS, "total": NUMBERS, "size": SIZE, "COUNT": "", "BLOCK": ""},
        {"COUNT": 3, "BLOCK": 1024}, _WARPS[1])
"""


@pytest.mark.slow
def test_kernels_compile_for_a_device(tmp_path):
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line.split() for line in done.stdout.splitlines()]
    assert len(rows) == 3 * 2 + 3 * 7 + 1
    assert {made for _, _, made in rows} == {"True"}
    assert max(int(shared) for _, shared, _ in rows) <= SHARED_BYTES
