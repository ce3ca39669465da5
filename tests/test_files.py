import pytest

from drifting._files import atomic_path, check_writable
from drifting.errors import InputError


def test_file_appears_with_its_content_and_nothing_beside_it(tmp_path):
    target = tmp_path / "new" / "folder" / "a.txt"
    with atomic_path(target) as scratch:
        scratch.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert list(target.parent.iterdir()) == [target]


def test_temporary_name_keeps_the_suffix(tmp_path):
    with atomic_path(tmp_path / "a.png") as scratch:
        assert scratch.suffix == ".png"
        scratch.touch()


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_failure_keeps_the_old_file_and_leaves_nothing_half_written(tmp_path, failure):
    target = tmp_path / "a.txt"
    target.write_text("old")

    def write():
        with atomic_path(target) as scratch:
            scratch.write_text("ha")
            raise failure

    with pytest.raises(failure):
        write()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_folder_appears_whole(tmp_path):
    with atomic_path(tmp_path / "step-1") as scratch:
        scratch.mkdir()
        (scratch / "x").write_text("1")
    assert (tmp_path / "step-1" / "x").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def test_new_file_takes_the_place_of_an_old_one(tmp_path):
    target = tmp_path / "a.txt"
    for content in ("first", "second"):
        with atomic_path(target) as scratch:
            scratch.write_text(content)
    assert target.read_text() == "second"


def test_link_to_a_folder_stays_and_a_link_to_a_file_does_not(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "old").touch()
    (tmp_path / "kept.txt").write_text("kept")
    (tmp_path / "folder").symlink_to(tmp_path / "disk")
    (tmp_path / "file.txt").symlink_to(tmp_path / "kept.txt")
    with atomic_path(tmp_path / "folder") as scratch:
        scratch.mkdir()
        (scratch / "new").touch()
    with atomic_path(tmp_path / "file.txt") as scratch:
        scratch.write_text("new")
    assert (tmp_path / "folder").is_symlink()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["new"]
    assert not (tmp_path / "file.txt").is_symlink()
    assert ((tmp_path / "file.txt").read_text(), (tmp_path / "kept.txt").read_text()) == ("new", "kept")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "file.txt", "folder", "kept.txt"]


@pytest.mark.parametrize("length", [246, 250, 255])
def test_file_may_have_the_longest_name(tmp_path, length):
    target = tmp_path / "a.txt".rjust(length, "b")
    for content in ("first", "second"):
        with atomic_path(target) as scratch:
            scratch.write_text(content)
    assert target.read_text() == "second"
    assert list(tmp_path.iterdir()) == [target]


def test_writable_folder_is_accepted_and_not_made(tmp_path):
    check_writable(tmp_path / "a" / "b", "save_dir")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["file", "file/run", "file/deep/run", "link", "link/run"])
def test_path_at_or_below_a_file_or_a_link_to_nothing_is_refused(tmp_path, below):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match=r"save_dir is '.*(file|link).*', where nothing can be written: choose a folder"):
        check_writable(tmp_path / below, "save_dir")
