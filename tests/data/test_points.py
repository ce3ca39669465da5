import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from drifting.data.points import Frame, PointsData, frame_of, load_points
from drifting.errors import InputError


def _saved(path, array):
    np.save(path, array)
    return path


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64, np.uint8, ">f4"])
def test_numbers_of_any_kind_are_read_in_float64(tmp_path, dtype):
    array = np.array([[1, 2], [3, 4], [5, 7]], dtype=dtype)
    points = load_points(_saved(tmp_path / "a.npy", array))
    assert points.dtype == torch.float64
    assert points.tolist() == [[1, 2], [3, 4], [5, 7]]


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(4),
        np.zeros((4, 3)),
        np.zeros((2, 2, 2)),
        np.float64(1),
        np.zeros((4, 2), dtype=complex),
        np.array([["a", "b"]] * 3),
        np.zeros((4, 2), dtype=bool),
    ],
    ids=["flat", "three columns", "three axes", "number", "complex", "words", "truth"],
)
def test_anything_but_numbers_of_shape_n_2_is_refused(tmp_path, array):
    said = rf"a\.npy', an array of {re.escape(str(array.dtype))}, shape \(.*\): pass real numbers of shape \[n, 2\]"
    with pytest.raises(InputError, match=said):
        load_points(_saved(tmp_path / "a.npy", array))


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_points_are_refused(tmp_path, count):
    with pytest.raises(InputError, match=f"holds {count} points: pass at least 2"):
        load_points(_saved(tmp_path / "a.npy", np.zeros((count, 2))))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_points_that_are_not_finite_are_refused(tmp_path, value):
    with pytest.raises(InputError, match="NaN or infinite values: remove those points"):
        load_points(_saved(tmp_path / "a.npy", np.array([[0, 1], [value, 2]])))


@pytest.mark.parametrize("content", [b"", b"hello", b"\x93NUMPY\x01\x00", b"1.0,2.0\n3.0,4.0\n"])
def test_file_that_is_no_array_is_refused(tmp_path, content):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.npy', which cannot be read as \.npy"):
        load_points(tmp_path / "a.npy")


def test_truncated_array_is_refused(tmp_path):
    path = _saved(tmp_path / "a.npy", np.zeros((50, 2)))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match="cannot be read"):
        load_points(path)


def test_archive_of_several_arrays_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 2)))
    with pytest.raises(InputError, match=r"a\.npz"):
        load_points(tmp_path / "a.npz")


def test_pickled_objects_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[1, 2], [3, "x"]], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="cannot be read"):
        load_points(tmp_path / "a.npy")


def test_home_folder_of_a_path_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.csv").write_text("1,2\n3,4\n")
    assert load_points(Path("~/a.csv")).tolist() == [[1, 2], [3, 4]]
    found = PointsData(path="~/a.csv").find()
    assert found.path == str((tmp_path / "a.csv").resolve())
    assert len(found.load()) == 2


def test_missing_file_and_folder_are_refused(tmp_path):
    for name in ("none.npy", "a" * 300):
        with pytest.raises(InputError, match="does not exist: pass the path"):
            load_points(tmp_path / name)
    with pytest.raises(InputError, match="not a regular file"):
        load_points(tmp_path)


def test_frame_gives_points_the_size_of_the_toys():
    points = 1000 + 50 * torch.randn(500, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    standard = frame_of(points, "x.npy").standardize(points)
    assert standard.dtype == torch.float32
    torch.testing.assert_close(standard.mean(0), torch.zeros(2), rtol=0, atol=1e-6)
    assert float(standard.square().mean().sqrt()) == pytest.approx(0.5)


def test_both_axes_are_scaled_alike():
    points = torch.tensor([[0.0, 0.0], [8.0, 0.0], [0.0, 2.0], [8.0, 2.0]], dtype=torch.float64)
    standard = frame_of(points, "x.npy").standardize(points)
    width, height = standard.amax(0) - standard.amin(0)
    assert float(width / height) == pytest.approx(4)


def test_frame_goes_there_and_back():
    frame = Frame((1000.0, -3000.0), 50.0)
    points = torch.tensor([[1.0, 2.0], [950.5, -3100.25]], dtype=torch.float64)
    restored = frame.restore(frame.standardize(points))
    assert restored.dtype == torch.float64
    torch.testing.assert_close(restored, points, rtol=0, atol=50 * 1e-5)


@pytest.mark.parametrize(
    ("center", "spread"),
    [(1.7e9, 20.0), (-1.7e9, 1e-3), (6e6, 1e-4), (0.0, 1e-250), (0.0, 1e250), (1e250, 1e240), (1e-200, 1e-205)],
)
def test_points_keep_their_digits_wherever_they_lie(center, spread):
    # On a grid of 0.01 of the spread, which float32 could not tell apart around most of the centers.
    points = center + spread * 0.01 * torch.randperm(400, generator=torch.Generator().manual_seed(0)).double().view(200, 2)
    frame = frame_of(points, "x.npy")
    assert frame.scale == pytest.approx(2 * spread * 0.01 * np.sqrt((400**2 - 1) / 12), rel=0.01)
    restored = frame.restore(frame.standardize(points))
    assert float((restored - points).abs().max()) < 1e-5 * spread + 4 * np.spacing(abs(center))
    assert len(restored.unique()) == 400


def test_points_in_float32_are_standardized_from_the_digits_they_have():
    center = 2.0**24
    points = torch.tensor([[center + 2, center + 4]])
    assert Frame((center + 1, center + 1), 2.0).standardize(points).tolist() == [[0.5, 1.5]]


@pytest.mark.parametrize("spread", [1e-300, 1e305])
def test_points_whose_unit_is_at_the_end_of_the_numbers_are_refused(spread):
    with pytest.raises(InputError, match="choose another unit"):
        frame_of(spread * torch.tensor([[0.0, 1], [2, 3]], dtype=torch.float64), "x.npy")


@pytest.mark.parametrize("far", [[1e308, 1e308], [-1e308, 1e308]])
def test_points_too_large_to_subtract_are_refused_as_such(far):
    with pytest.raises(InputError, match="whose values are too large: choose another unit"):
        frame_of(torch.tensor([[1e308, -1e308], far, [0, 0]], dtype=torch.float64), "x.npy")


@pytest.mark.skipif(np.finfo(np.longdouble).max == np.finfo(np.float64).max, reason="no extended precision here")
def test_numbers_too_large_for_float64_are_refused(tmp_path):
    path = _saved(tmp_path / "a.npy", np.array([[1, 2], [3, 1]]) * np.longdouble("1e400"))
    with pytest.raises(InputError, match="NaN or infinite"):
        load_points(path)


@pytest.mark.parametrize("value", [1.0, 0.1, 1.7e9 + 0.1])
def test_one_point_many_times_is_refused(value):
    with pytest.raises(InputError, match="one point many times"):
        frame_of(torch.full((7, 2), value, dtype=torch.float64), "x.npy")


@pytest.mark.parametrize(
    "text",
    [
        "1,2\n3,4\n5,7\n",
        "x,y\n1,2\n3,4\n5,7",
        "\ufefflongitude;latitude\r\n1;2\r\n3;4\r\n5;7\r\n",
        "1\t2\n3\t4\n\n5\t7\n",
        "# of numpy.savetxt\n1.0 2e0\n 3  4\n5 7\n",
        ",x,y\n0,1,2\n1,3,4\n2,5,7\n",
        '"name","Y","X"\n"a",2,1\n"b","4","3"\n"c",7,5\n',
        "1, 2\n3, 4\n5, 7\n",
        "y,x\n2,1\n4,3\n7,5\n",
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "TXT", "tsv"])
def test_tables_of_text_are_read(tmp_path, text, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(text.encode())
    assert load_points(path).tolist() == [[1, 2], [3, 4], [5, 7]]
    assert load_points(path).dtype == torch.float64


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds 0 points"),
        (b"x,y\n", "holds 0 points"),
        (b"1,2\n", "holds 1 points"),
        (b"1,2,3\n4,5,6\n", "a table of 3 columns: keep two columns, or name two of them x and y in a header"),
        (b"a,b,c\n4,5,6\n", "a table of columns a, b, c: keep two"),
        (b"1\n2\n", "a table of 1 columns"),
        (b"a,b,x,y\n1,2\n", "line 2 has 2 columns where others have 4"),
        (b"1,2\n3\n", "line 2 has 1 columns where others have 2"),
        (b"x,y\n1,2\n3,four\n", "line 3 holds 'four', which is not a number"),
        (b"1,5;2,5\n3,5;4,5\n", "line 2 holds '3,5', which is not a number: write it like 1.5"),
        (b"1,2\n3,\n", "line 2 holds '', which is not a number"),
        (b"1,2\nnan,4\n", "NaN or infinite values"),
        (b"\xff\xfe1,2", "cannot be read as text .*: save it as UTF-8"),
    ],
)
def test_tables_that_are_no_points_are_refused(tmp_path, content, message):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_points(tmp_path / "a.csv")


def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")  # opening it would wait for ever
    for path in (tmp_path / "pipe.csv", tmp_path, Path("/dev/zero")):
        with pytest.raises(InputError, match="which is not a regular file: pass the path of a"):
            load_points(path)


def test_heads_that_declare_more_than_there_is_are_refused(tmp_path):
    whole = _saved(tmp_path / "a.npy", np.zeros((10, 2))).read_bytes()
    (tmp_path / "a.npy").write_bytes(whole.replace(b"(10, 2), }" + b" " * 12, b"(1000000000000, 2), }".ljust(22)))
    with pytest.raises(InputError, match=r"cannot be read as \.npy"):
        load_points(tmp_path / "a.npy")
    for wrong in (whole.replace(b"(10, 2), }", b"(10, 2\x09, }"), whole.replace(b"'shape'", b"\xffshape'")):
        (tmp_path / "a.npy").write_bytes(wrong)
        with pytest.raises(InputError, match=r"cannot be read as \.npy"):
            load_points(tmp_path / "a.npy")
