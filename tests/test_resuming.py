"""One process makes a thing at a time."""

import fcntl
import platform
from pathlib import Path
from typing import IO

import pytest

from resuming import Lock, alone, discard, go_on_with, unfinished_of
from stage import StageError


def test_two_processes_do_not_make_one_thing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with alone(out):
        with (
            pytest.raises(StageError, match=r"out is being made by another process: wait for it or give another"),
            alone(out),
        ):
            pass
        assert [path.name for path in tmp_path.iterdir()] == [".out.lock"]
    assert not list(tmp_path.iterdir())


def test_a_lock_file_that_its_holder_removes_meanwhile_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = Lock(tmp_path / "out")
    flock = fcntl.flock

    def removed_meanwhile(file: IO[str], operation: int) -> None:
        monkeypatch.undo()
        holder.remove()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", removed_meanwhile)
    with Lock(tmp_path / "out"), pytest.raises(StageError, match=r"out is being made by another process"):
        Lock(tmp_path / "out")


def test_what_another_process_made_meanwhile_is_not_made_again(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("of another")
    with (
        pytest.raises(StageError, match=r"out already exists: remove it or give another --out"),
        alone(tmp_path / "out"),
    ):
        pytest.fail("it would be overwritten")
    with Lock(tmp_path / "out", may_exist=True) as lock:
        lock.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_process_left_is_removed_beside_what_may_exist(tmp_path: Path) -> None:
    left = tmp_path / f".out.{platform.node()}.{2**22 + 1}.partial"  # more than Linux gives as a process's number
    left.write_text("half")
    with Lock(tmp_path / "out", may_exist=True):
        assert not left.exists()


@pytest.mark.parametrize("out", ["/dev/null/x", "x" * 251])
def test_a_place_that_cannot_be_locked_is_named(tmp_path: Path, out: str) -> None:
    with pytest.raises(StageError, match=rf"cannot write .*{out}: "):
        Lock(tmp_path / out)


def test_links_where_work_would_be_locked_or_grow_are_not_followed(tmp_path: Path) -> None:
    """As in a folder that somebody sent: what they lead to stays as it is."""
    precious = tmp_path / "precious"
    precious.write_text("kept")
    (tmp_path / ".out.lock").symlink_to(precious)
    with pytest.raises(StageError, match=r"cannot write .*out: Too many levels of symbolic links"):
        Lock(tmp_path / "out")
    assert precious.read_text() == "kept"
    (tmp_path / ".store.unfinished").symlink_to(tmp_path)
    with pytest.raises(StageError, match=r"\.store\.unfinished is a link, where unfinished work would grow: remove it"):
        unfinished_of(tmp_path / "store")


def test_work_goes_on_with_its_own_settings_alone(tmp_path: Path) -> None:
    folder, work = tmp_path / ".out.unfinished", tmp_path / ".out.unfinished" / "rows" / "a"
    go_on_with(folder, "asked.json", '{"seed": 0}', work.exists, {})
    go_on_with(folder, "asked.json", '{"seed": 1}', work.exists, {})  # nothing is lost yet
    work.parent.mkdir()
    work.touch()
    go_on_with(folder, "asked.json", '{"seed": 1}', work.exists, {})
    with pytest.raises(
        StageError, match=r"is unfinished work of another call \(seed was 1\): call the command as then"
    ):
        go_on_with(folder, "asked.json", '{"seed": 2}', work.exists, {})
    with pytest.raises(StageError, match="is unfinished work of another command: give another --out"):
        go_on_with(folder, "checkpoints/asked.json", "{}", lambda: False, {})
    assert work.exists()


def test_what_a_kill_left_before_any_work_is_no_work(tmp_path: Path) -> None:
    folder = tmp_path / ".out.unfinished"
    (folder / "clips").mkdir(parents=True)
    (folder / "clips" / ".a.host.1.partial").touch()
    go_on_with(folder, "asked.json", "{}", lambda: False, {})
    assert [path.name for path in folder.iterdir()] == ["asked.json"]


def test_work_that_is_thrown_away_is_gone_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed within, a removal file by file might leave rows without the mark that says whose they are."""
    folder = tmp_path / ".out.unfinished"
    go_on_with(folder, "asked.json", "{}", lambda: False, {})
    (folder / "rows").mkdir()
    (folder / "rows" / "a").touch()
    monkeypatch.setattr("resuming.remove", lambda _: None)  # as a kill in its midst
    discard(folder)
    assert not folder.exists()
    go_on_with(folder, "asked.json", "{}", lambda: False, {})
    monkeypatch.undo()
    discard(folder)
    assert not list(tmp_path.iterdir())
