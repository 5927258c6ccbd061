"""What all stages share: whole-or-nothing files, hashes, progress, processes and the way errors end."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from stage import StageError, bytes_of, call, in_processes, progress, refuse_existing, sha256_of, written_whole

ROOT = Path(__file__).parents[1]


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


def test_hash_and_size_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert bytes_of(tmp_path / "a") == 3


def make_tree(root: Path, **contents: bytes) -> Path:
    for name, content in contents.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


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


def test_progress_says_a_plain_line_every_fifteen_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 4))
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    assert list(progress([10] * 12, "count")) == [10] * 12
    assert list(progress(iter("ab" * 5), "letters")) == list("ab" * 5)
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("count")] == [
        "count: 4 of 12",
        "count: 8 of 12",
        "count: 12 of 12",
    ]
    assert lines[-1].startswith("letters: ")
    assert lines[-1].endswith(" of ?")


def test_progress_of_short_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(range(5), "count")) == list(range(5))
    assert capsys.readouterr() == ("", "")


def test_processes_do_every_job(tmp_path: Path) -> None:
    in_processes(os.mkdir, [(str(tmp_path / str(n)),) for n in range(5)], 2, "make")
    assert names(tmp_path) == ["0", "1", "2", "3", "4"]


def test_the_first_error_drops_the_jobs_that_wait() -> None:
    start = time.monotonic()
    with pytest.raises(TypeError, match="str"):
        in_processes(time.sleep, [("x",)] + [(0.3,)] * 60, 1, "sleep")
    assert time.monotonic() - start < 9


def test_a_process_that_dies_is_one_clear_error() -> None:
    with pytest.raises(StageError, match="burn: a process was killed, perhaps for want of memory"):
        in_processes(os._exit, [(1,)], 1, "burn")


@pytest.mark.parametrize(("kind", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_a_stopped_command_stops_its_processes(kind: signal.Signals, code: int) -> None:
    work = (
        "import signal, time, typer, stage; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "  # ignored where the tests run in the background
        "typer.run(lambda: stage.in_processes(time.sleep, [(0.2,)] * 300, 1, 'sleep'))"
    )
    with subprocess.Popen([sys.executable, "-c", work], cwd=ROOT, stderr=subprocess.PIPE) as command:
        children: list[psutil.Process] = []
        while not any(child.num_threads() > 1 for child in children):
            assert command.poll() is None
            time.sleep(0.05)
            children = psutil.Process(command.pid).children(recursive=True)
        command.send_signal(kind)
        assert command.wait(timeout=20) == code
    assert psutil.wait_procs(children, timeout=20)[1] == []


def test_a_stage_error_ends_with_one_line_and_one(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise StageError("a.mp4 breaks:\n  mend it  ")

    with pytest.raises(SystemExit) as ended:
        call(fail)
    assert ended.value.code == 1
    assert capsys.readouterr() == ("", "error: a.mp4 breaks: mend it\n")


def test_a_missing_file_ends_with_one_line_and_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        call((tmp_path / "a.txt").read_text)
    assert ended.value.code == 1
    assert capsys.readouterr().err == f"error: No such file or directory: {tmp_path / 'a.txt'}\n"


def test_a_name_that_is_not_utf_8_ends_with_one_line_and_one(capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"caf\xe9.mp4")
    with pytest.raises(SystemExit) as ended:
        call(lambda: name.encode())
    assert ended.value.code == 1
    said = "error: 'caf\\udce9.mp4' cannot be written in UTF-8: rename it, or set a locale of UTF-8 (LC_ALL=C.UTF-8)\n"
    assert capsys.readouterr().err == said


def test_a_defect_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        call(lambda: 1 // 0)
