"""Preparing on a Ray cluster: the store of one machine, byte for byte, whatever is killed; and what is said else."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from data.cluster import on_ray
from data.prepare import prepare
from stage import StageError

ROOT = Path(__file__).parents[2]


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def started(corpus: Path, out: Path, *ray: str) -> "subprocess.Popen[str]":
    """Start the command in a process group of its own, so that Ray does not stay in the process of the tests."""
    options = ["--frames=4", "--size=32", "--ratios=0.5,0,0.5", "--seed=7", "--workers=2", *ray]
    return subprocess.Popen(
        [sys.executable, "-m", "data.prepare", str(corpus), f"--out={out}", *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ended(run: "subprocess.Popen[str]", code: int = 0) -> str:
    try:
        said, _ = run.communicate(timeout=90)
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)
        raise
    assert run.returncode == code, said
    return said


def at_work(run: "subprocess.Popen[str]") -> list[psutil.Process]:
    """Return the command's processes in which Ray runs our function."""
    found = []
    for child in psutil.Process(run.pid).children(recursive=True):
        try:
            if any(word.startswith("ray::") and "(work)" in word for word in child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def wait_for_rows(run: "subprocess.Popen[str]", out: Path, rows: int) -> None:
    while len(list(out.with_name(f".{out.name}.unfinished").glob("rows/*.json"))) < rows:
        assert run.poll() is None
        time.sleep(0.01)


@pytest.fixture(scope="module")
def corpus(demo_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight videos, and one that is none."""
    root = tmp_path_factory.mktemp("eight") / "corpus"
    for n, path in enumerate(sorted(demo_corpus.rglob("*.mp4"))[:8]):
        target = root / ("real", "fake")[n % 2] / f"{n}.mp4"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    (root / "real/text.mp4").write_text("not a video")
    return root


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files of the store of ``corpus``, made by two processes without Ray."""
    out = tmp_path_factory.mktemp("whole") / "store"
    prepare([corpus], out, frames=4, size=32, ratios="0.5,0,0.5", seed=7, workers=2)
    return files(out)


def test_a_cluster_goes_on_after_a_killed_command_and_a_killed_worker(
    corpus: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    out = tmp_path / "store"
    here = started(corpus, out)
    wait_for_rows(here, out, 2)
    os.killpg(here.pid, signal.SIGKILL)
    here.wait(timeout=20)
    run = started(corpus, out, "--ray=local")
    while not (workers := at_work(run)):
        assert run.poll() is None
    workers[0].kill()
    said = ended(run)
    assert said.splitlines()[-1].startswith(f"{out}: 9 files (8 ok, 0 no_face, 0 too_short, 1 unreadable)")
    assert "Traceback" not in said
    assert files(out) == whole


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of this machine on which nothing listens, and nothing will: it is bound."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nothing_listens_ends_with_one_line(
    scheme: str, closed_port: int, corpus: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    address, since = f"{scheme}127.0.0.1:{closed_port}", time.monotonic()
    said = ended(started(corpus, tmp_path / "store", f"--ray={address}"), code=1)
    assert said == f"error: --ray {address}: no cluster answers there: Connection refused\n"
    assert time.monotonic() - since < 20
    assert not (tmp_path / "store").exists()


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(StageError, match=r"--ray needs the extra: pip install 'pocketproof\[ray\]'"):
        list(on_ray(len, [("a",)], "local", 1, "prepare"))


def test_nothing_to_do_needs_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert list(on_ray(len, [], "local", 1, "prepare")) == []
