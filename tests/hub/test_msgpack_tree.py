"""The authors' format, against the library msgpack itself."""

import contextlib

import msgpack
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drifting.errors import InputError
from drifting.hub.msgpack_tree import DTYPES, read_tree, write_tree
from tests.support.artifacts import packed

ONES = np.ones((2, 3), np.float32)


def _written(tmp_path, tree) -> dict[str, torch.Tensor]:
    path = tmp_path / "tree.msgpack"
    path.write_bytes(tree if isinstance(tree, bytes) else msgpack.packb(tree))
    return {name: array.read() for name, array in read_tree(path).items()}


@pytest.mark.parametrize("dtype", DTYPES.values())
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (2, 1, 3), (300, 90)])
def test_arrays_go_there_and_back(tmp_path, dtype, shape):
    arrays = {"b/x": torch.randn(shape).to(dtype), "a": torch.randn(4).to(dtype), "b/a/x": torch.randn(2, 2).T.to(dtype)}
    write_tree(tmp_path / "tree", arrays, arrays.__getitem__)
    found = read_tree(tmp_path / "tree")
    assert list(found) == ["a", "b/a/x", "b/x"]
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (dtype, array.shape)
        assert torch.equal(found[name].read(), array)


def test_file_is_what_the_library_writes(tmp_path):
    arrays = {"a": ONES, "b": {"c": np.arange(4.0), "d": np.zeros(70_000, np.float16)}}
    flat = {"a": torch.tensor(ONES), "b/d": torch.zeros(70_000, dtype=torch.float16), "b/c": torch.arange(4.0).double()}
    write_tree(tmp_path / "tree", flat, flat.__getitem__)
    branch = {name: packed(value) for name, value in arrays["b"].items()}
    assert (tmp_path / "tree").read_bytes() == msgpack.packb({"a": packed(ONES), "b": branch})


def test_bits_that_are_no_numbers_are_kept(tmp_path):
    bits = torch.tensor([0x7FC00001, 0x7F800001, -1, 0], dtype=torch.int32).view(torch.float32)
    write_tree(tmp_path / "tree", ["x"], lambda _: bits)
    assert torch.equal(read_tree(tmp_path / "tree")["x"].read().view(torch.int32), bits.view(torch.int32))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (b"", "is empty"),
        ([1, 2], "does not hold a map"),
        ("text", "does not hold a map"),
        ({"a": {"b": 3}}, "holds a int under 'a/b'"),
        ({"a": [1.0]}, "holds a list under 'a'"),
        ({"a": "text"}, "holds a str under 'a'"),
        ({"a": b"bytes"}, "holds a bytes under 'a'"),
        ({"a": None}, "holds a NoneType under 'a'"),
        ({"a": True}, "holds a bool under 'a'"),
        ({"a": msgpack.Timestamp(1)}, "holds a Timestamp under 'a'"),
        ({"a": packed(ONES, code=2)}, "holds an extension of type 2 under 'a'"),
        ({"a": packed(ONES, code=3)}, "holds an extension of type 3 under 'a'"),
        ({"a": msgpack.ExtType(1, b"\xc1")}, "holds a damaged array under 'a'"),
        ({"a": msgpack.ExtType(1, packed(ONES).data + b"0")}, "holds a damaged array under 'a'"),
        ({"a": packed([[2], "float32"])}, "holds a damaged array under 'a'"),
        ({"a": packed([[-1], "float32", b""])}, "without a shape"),
        ({"a": packed([[True], "float32", b"0000"])}, "without a shape"),
        ({"a": packed([[2.0], "float32", b"00000000"])}, "without a shape"),
        ({"a": packed([3, "float32", b""])}, "holds a damaged array under 'a'"),
        ({"a": packed([[1], "float32", "0000"])}, "without bytes"),
        ({"a": packed([[1], "object", b"00000000"])}, "an array of object, which is none of float32, float16, bfloat16, float64"),
        ({"a": packed([[1], "int32", b"0000"])}, "an array of int32"),
        ({"a": packed([[1], 7, b"0000"])}, "an array of 7"),
        ({"a": packed([[2, 2], "float32", b"000"])}, r"3 bytes for float32 of shape \(2, 2\)"),
        ({1: packed(ONES)}, "has the name '1' under ''"),
        ({b"a": packed(ONES)}, "which is repeated or no plain text"),
        ({"a/b": packed(ONES)}, "which is repeated or no plain text"),
        ({"": packed(ONES)}, "which is repeated or no plain text"),
        (b"\x82\xa1a\x80\xa1a\x80", "has the name 'a' under ''"),
        (b"\x81\x81\xa1a\x80\x80", "which is repeated or no plain text"),
        (b"\x81\xa1\xff\x80", "is not MessagePack"),
        (b"\x81\xa1a\xc1", "is not MessagePack"),
        (b"\x81\xa1a" * 50 + b"\x80", "nests maps more than 32 deep"),
        (b"\xdf\xff\xff\xff\xff\xa1a\x80", "is truncated"),
        (b"\x81\xa1a\xdd\x7f\xff\xff\xff", "is not MessagePack of maps and arrays .*exceeds"),
        (b"\x81\xdd\x7f\xff\xff\xff", "is not MessagePack of maps and arrays .*exceeds"),
        (b"\x81\xa1a\xc9\x7f\xff\xff\xff\x01", "is truncated"),
        (msgpack.packb({"a": packed(ONES)}) + b"\xc0", "has 1 bytes after its end"),
    ],
)
def test_anything_else_is_refused(tmp_path, tree, message):
    with pytest.raises(InputError, match=message) as refusal:
        _written(tmp_path, tree)
    assert "\n" not in str(refusal.value)
    assert "tree.msgpack" in str(refusal.value)


def test_truncated_anywhere_is_refused(tmp_path):
    whole = msgpack.packb({"a": {"b": packed(ONES), "c": packed(ONES)}, "d": packed(ONES)})
    assert len(_written(tmp_path, whole)) == 3
    for length in range(1, len(whole)):
        with pytest.raises(InputError, match="is truncated"):
            _written(tmp_path, whole[:length])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=64))
def test_any_bytes_are_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.msgpack"
    path.write_bytes(data)
    with contextlib.suppress(InputError):
        read_tree(path)


def test_missing_file_and_one_that_shrinks_are_refused(tmp_path):
    with pytest.raises(InputError, match="which is not a file"):
        read_tree(tmp_path / "none")
    write_tree(tmp_path / "tree", ["x"], lambda _: torch.ones(100))
    array = read_tree(tmp_path / "tree")["x"]
    (tmp_path / "tree").write_bytes((tmp_path / "tree").read_bytes()[:-1])
    with pytest.raises(InputError, match="became shorter"):
        array.read()
