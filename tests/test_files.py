"""Files on disk: whole or not at all, hashed, and where none may be written."""

import errno
import hashlib
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from files import (
    OF_BUNDLES,
    bytes_of,
    check_output,
    name_of,
    put_in_place,
    refuse_existing,
    require_writable,
    scratch_beside,
    sha256_of,
    shortest_names,
    write_raw,
    writing,
    written_whole,
)
from stage import StageError


def make_tree(root: Path, **contents: bytes) -> Path:
    for name, content in contents.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_replaces_the_old_one_only_when_whole(tmp_path: Path) -> None:
    target = tmp_path / "new/a.txt"
    with written_whole(target) as aside:
        aside.write_text("one")
        assert not target.exists()
    with written_whole(target) as aside:
        aside.write_text("two")
        assert target.read_text() == "one"
    assert target.read_text() == "two"
    assert names(target.parent) == ["a.txt"]


def test_a_folder_appears_with_all_its_files(tmp_path: Path) -> None:
    with written_whole(tmp_path / "a") as aside:
        (aside / "b").mkdir(parents=True)
        (aside / "b/c").write_text("d")
        assert names(tmp_path) == [aside.name]
    assert (tmp_path / "a/b/c").read_text() == "d"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("folder", [False, True])
def test_an_error_leaves_everything_as_it_was(tmp_path: Path, folder: bool) -> None:
    target = tmp_path / "a"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), written_whole(target) as aside:
        if folder:
            aside.mkdir()
        (aside / "part" if folder else aside).write_text("half")
        raise ZeroDivisionError
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_what_cannot_be_written_says_where(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(StageError, match=r"cannot write .*file/a\.txt: File exists"),
        written_whole(tmp_path / "file/a.txt") as aside,
    ):
        aside.write_text("nowhere")


def test_a_folder_does_not_replace_a_full_one(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/mine").touch()
    with (
        pytest.raises(StageError, match=r"cannot write .*a: Directory not empty"),
        written_whole(tmp_path / "a") as aside,
    ):
        aside.mkdir()
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["mine"]


def test_only_nothing_or_an_empty_folder_is_not_refused(tmp_path: Path) -> None:
    refuse_existing(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    refuse_existing(tmp_path / "empty")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    for name in ("full", "full/file"):
        with pytest.raises(StageError, match=f"{name} already exists: remove it or give another --out"):
            refuse_existing(tmp_path / name)


def test_an_empty_folder_that_one_stands_in_or_that_is_a_mount_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for out in (tmp_path, Path(), Path("../") / tmp_path.name):
        with pytest.raises(StageError, match=r"is an empty folder that cannot be replaced \(it is the current one\)"):
            refuse_existing(out)
    mount = tmp_path / "mount"
    mount.mkdir()

    def busy(path: Path) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))

    monkeypatch.setattr(Path, "rmdir", busy)
    with pytest.raises(StageError, match=r"mount is an empty folder that cannot be replaced \(Device or resource busy"):
        refuse_existing(mount)


def test_hash_and_size_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert bytes_of(tmp_path / "a") == 3


def test_hash_and_size_of_a_folder(tmp_path: Path) -> None:
    root = make_tree(tmp_path, b=b"1", a__z=b"22", a__c=b"333")
    lines = [f"{n}\0{hashlib.sha256(c).hexdigest()}\n" for n, c in (("a/c", b"333"), ("a/z", b"22"), ("b", b"1"))]
    assert sha256_of(root) == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert bytes_of(root) == 6


def test_hash_of_a_folder_tells_content_names_and_borders_apart(tmp_path: Path) -> None:
    trees = [
        {"a": b"1", "b": b"2"},
        {"a": b"2", "b": b"1"},
        {"a": b"12", "b": b""},
        {"a": b"1", "c": b"2"},
        {"a": b"1"},
    ]
    hashes = [sha256_of(make_tree(tmp_path / str(n), **tree)) for n, tree in enumerate(trees)]
    assert len(set(hashes)) == len(trees)
    assert sha256_of(make_tree(tmp_path / "again", **trees[0])) == hashes[0]


def test_nothing_has_no_hash_and_no_size(tmp_path: Path) -> None:
    for measure in (sha256_of, bytes_of):
        with pytest.raises(FileNotFoundError, match="missing"):
            measure(tmp_path / "missing")


def test_what_a_killed_process_was_writing_is_removed_by_the_next(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    name = f".out.{platform.node()}"
    pids = (ended.pid, os.getpid(), os.getppid())
    stale, of_this_number, running = (tmp_path / f"{name}.{pid}.partial" for pid in pids)
    elsewhere = tmp_path / ".out.other-machine.1.partial"
    for folder in (stale, of_this_number, running, elsewhere):
        folder.mkdir()
        (folder / "half").write_text("half")
    refuse_existing(tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == sorted([running, elsewhere])


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the system does not tell a file by its number")
def test_everything_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, steps = make_tree(tmp_path / "made", a=b"1", b__c=b"2"), []
    rename, flush = Path.replace, os.fsync

    def flushed(file: int) -> None:
        steps.append(str(Path(f"/proc/self/fd/{file}").readlink()))
        flush(file)

    def renamed(path: Path, to: Path) -> Path:
        steps.append("rename")
        return rename(path, to)

    monkeypatch.setattr(Path, "replace", renamed)
    monkeypatch.setattr(os, "fsync", flushed)
    put_in_place(made, tmp_path / "whole")
    assert set(steps[:2]) == {str(made / "a"), str(made / "b/c")}
    assert steps[2:] == ["rename", str(tmp_path)]


@pytest.mark.parametrize("links", [True, False])
def test_the_first_file_stays_also_where_files_cannot_have_two_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if not links:
        monkeypatch.setattr(os, "link", refused)
    for text in ("first", "second"):
        with written_whole(tmp_path / "a", keep_existing=True) as aside:
            aside.write_text(text)
    assert (tmp_path / "a").read_text() == "first"
    assert names(tmp_path) == ["a"]


def test_a_scratch_folder_is_removed_at_the_end_or_after_a_kill_by_the_next_command(tmp_path: Path) -> None:
    code = "import os, pathlib, sys, files\nwith files.scratch_beside(pathlib.Path(sys.argv[1])) as folder:\n"
    code += "    (folder / 'face.png').touch()\n    os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, tmp_path / "out"], cwd=Path(__file__).parents[1], check=False)
    assert [path.name for path in tmp_path.rglob("*.png")] == ["face.png"]
    refuse_existing(tmp_path / "out")
    with pytest.raises(KeyError), scratch_beside(tmp_path / "out") as folder:
        (folder / "face.png").touch()
        raise KeyError
    assert not list(tmp_path.iterdir())
    with (
        pytest.raises(StageError, match=r"cannot write /dev/null/out: Not a directory"),
        scratch_beside(Path("/dev/null/out")),
    ):
        pass


@pytest.mark.parametrize("target", ["nowhere", "empty"])
def test_a_link_is_no_place_to_write_to(tmp_path: Path, target: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / target)
    with pytest.raises(StageError, match=r"out is a link: give the path that it leads to"):
        refuse_existing(tmp_path / "out")


@pytest.mark.parametrize("array", [np.arange(70_000, dtype=np.int64).reshape(700, 100)[:, ::2], np.zeros(3, np.uint8)])
def test_raw_values_are_read_back_by_numpy(array: np.ndarray, tmp_path: Path) -> None:
    write_raw(tmp_path / "raw.bin", array)
    np.testing.assert_array_equal(np.fromfile(tmp_path / "raw.bin", array.dtype).reshape(array.shape), array)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_raw_values_on_a_full_disk_end_with_one_line() -> None:
    with (
        pytest.raises(StageError, match=r"cannot write /dev/full: No space left on device"),
        writing(Path("/dev/full")),
    ):
        write_raw(Path("/dev/full"), np.zeros(100_000, np.uint8))


@pytest.mark.parametrize("name", ["scores.parquet", "golden/report", "link/report"])
def test_nothing_is_written_into_a_bundle(name: str, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    (bundle / "golden").mkdir(parents=True)
    (bundle / "link").symlink_to(bundle / "golden")
    check_output(bundle / name)
    for file in OF_BUNDLES:
        (bundle / file).touch()
    with pytest.raises(StageError, match=r"is in the bundle .+, which stays as it was exported: give a path beside it"):
        check_output(bundle / name)
    check_output(tmp_path / name)


def test_nothing_is_written_under_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"^.+/run\\xff/report is not valid UTF-8: rename it, or give another path$"):
        check_output(tmp_path / os.fsdecode(b"run\xff") / "report")


@pytest.mark.skipif(sys.platform == "darwin", reason="the file system takes no such name")
def test_names_are_valid_utf_8_and_never_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / os.fsdecode(b"run\xff")
    odd.mkdir()
    (tmp_path / "link").symlink_to(odd)
    monkeypatch.chdir(odd)
    assert {name_of(path) for path in (odd, tmp_path / "link", Path(), Path("../link/."))} == {"run\\xff"}


def test_a_path_below_a_file_or_a_broken_link_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for name in ("file", "link"):
        with pytest.raises(StageError, match=rf"as \S+/{name} is no folder: give --out, a folder"):
            require_writable(tmp_path / name / "figures", "--out")
    require_writable(tmp_path / "file", "--out")


def test_what_cannot_be_written_is_said_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_writable(tmp_path / "new" / "folder", "--out")
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path)  # as on a disk that is mounted to be read
    with pytest.raises(
        StageError, match=rf"folder cannot be written, as {tmp_path} may not: give --out, a folder that"
    ):
        require_writable(tmp_path / "new" / "folder", "--out")


def test_a_link_to_itself_has_a_name(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert name_of(tmp_path / "loop") == "loop"
    assert shortest_names([tmp_path / "loop"]) == {tmp_path / "loop": "loop"}
