"""Preparing on a Ray cluster: the store of one machine, byte for byte, whatever is killed; and what is said else."""

import os
import pickle
import platform
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from data.cluster import _called, check_workers, on_ray
from data.parquet import Row
from stage import StageError, WrongArgument
from tests.data.commands import ended, files, killing, processes_of, started, wait_for_rows


@pytest.fixture(scope="module")
def corpus(demo_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight videos, one that is none, and one that kills the process which opens it."""
    root = tmp_path_factory.mktemp("ten") / "corpus"
    for n, path in enumerate(sorted(demo_corpus.rglob("*.mp4"))[:8]):
        target = root / ("real", "fake")[n % 2] / f"{n}.mp4"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    (root / "real/text.mp4").write_text("not a video")
    (root / "real/killer.mp4").write_text("short")  # so that it comes last
    return root


def test_a_cluster_goes_on_after_a_killed_command_and_killed_workers(corpus: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    stub, whole, out = killing(tmp_path / "stub"), tmp_path / "whole", tmp_path / "store"
    ended(started(corpus, whole, stub=stub))
    here = started(corpus, out, stub=stub)
    wait_for_rows(here, out, 2)
    os.killpg(here.pid, signal.SIGKILL)
    here.communicate(timeout=20)
    run = started(corpus, out, "--ray=local", stub=stub)
    while not (workers := processes_of(run, "ray::", "(work)")):
        assert run.poll() is None
    workers[0].kill()
    said = [line for line in ended(run).splitlines() if not re.fullmatch(r"prepare: \d of \d", line)]
    assert re.fullmatch(r"prepare: no result for 1 of \d, tried 4 times; trying each alone", said[0])
    assert said[1].startswith(f"{out}: 10 files (8 ok, 0 no_face, 0 too_short, 2 unreadable, 0 left_out)")
    assert all(line.startswith("note: ") for line in said[2:])
    assert files(out) == files(whole)


def _where(_: int) -> Row:
    return {"folder": str(Path.cwd())}


@pytest.mark.parametrize(("address", "folder"), [("local", "."), ("auto", "/")])
def test_the_processes_of_a_local_cluster_work_in_the_folder_of_the_command(
    address: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As variables like GOOGLE_APPLICATION_CREDENTIALS may be paths relative to it."""
    monkeypatch.chdir(tmp_path)
    ray = SimpleNamespace(
        cluster_resources=dict, shutdown=lambda: None, exceptions=SimpleNamespace(RayError=ZeroDivisionError)
    )

    def started_elsewhere(*_: object) -> Any:
        os.chdir("/")
        return ray

    monkeypatch.setattr("data.cluster._connect", started_elsewhere)
    monkeypatch.setattr("data.cluster._results", lambda _, function, jobs, *__: [(0, _called(function, jobs[0]))])
    assert list(on_ray(_where, [(1,)], address, 1, "x")) == [((1,), {"folder": str((tmp_path / folder).resolve())})]


def test_an_error_of_the_function_comes_back_as_text(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert _called(Path.read_text, (missing,)) == {"error": f"[Errno 2] No such file or directory: '{missing}'"}
    bug = "a bug: ZeroDivisionError: integer division or modulo by zero; without --ray it shows where"
    assert _called(divmod, (1, 0)) == {"error": bug}


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
    said = ended(started(corpus, tmp_path / "store", f"--ray={address}", "--workers=1"), code=1)
    assert said == f"error: --ray {address}: no cluster answers there: Connection refused\n"
    assert time.monotonic() - since < 20
    assert not (tmp_path / "store").exists()


def test_auto_does_not_wait_for_a_cluster_that_has_died(
    closed_port: int, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port}")
    since = time.monotonic()
    said = ended(started(corpus, tmp_path / "store", "--ray=auto", "--workers=1"), code=1)
    assert said == "error: --ray auto: no cluster answers there: Connection refused\n"
    assert time.monotonic() - since < 60


@pytest.mark.parametrize(
    ("address", "error", "said"),
    [
        (
            "local",
            FileNotFoundError(2, "No such file or directory", "/nohome"),
            "Ray cannot be started here: No such file or directory: /nohome; set HOME to a folder that is kept",
        ),
        ("local", RuntimeError("no port is free"), "Ray cannot be started here: no port is free"),
        (
            "head",
            ConnectionError("Failed to connect to Ray cluster"),
            "no cluster answers there: Failed to connect to Ray cluster; if it asks for a token, set "
            "RAY_AUTH_MODE=token",
        ),
    ],
)
def test_why_ray_was_not_connected_is_said(
    address: str, error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = ModuleType("ray")

    def init(*_: object, **__: object) -> None:
        assert os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] == os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
        raise error

    for name in ("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "RAY_USAGE_STATS_ENABLED"):
        monkeypatch.delenv(name, raising=False)

    monkeypatch.setattr(ray, "init", init, raising=False)
    monkeypatch.setattr(ray, "data", ModuleType("ray.data"), raising=False)
    for name in ("ray", "ray.data"):
        monkeypatch.setitem(sys.modules, name, ray)
    with pytest.raises(StageError, match=f"^--ray {address}: {said}$"):
        list(on_ray(len, [("a",)], address, 1, "prepare"))


def test_workers_are_for_this_machine() -> None:
    with pytest.raises(WrongArgument, match="--workers 2 is for this machine and --ray local: leave it out with --ray"):
        check_workers("auto", 2)
    for address, workers in ((None, 2), ("local", 2), ("auto", 1)):
        check_workers(address, workers)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(StageError, match=r"--ray needs the extra: pip install 'pocketproof\[ray\]'"):
        list(on_ray(len, [("a",)], "local", 1, "prepare"))


def test_nothing_to_do_needs_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert list(on_ray(len, [], "local", 1, "prepare")) == []


@pytest.mark.parametrize(
    ("gpus", "share", "workers", "needs"),
    [
        (2.0, 0.25, None, {"num_gpus": 0.25, "max_calls": 0}),
        (1.0, 0.25, 16, {"num_gpus": 0.0625, "max_calls": 0}),  # --ray local --workers 16: all of them
        (1.0, 0.25, 6, {"num_gpus": 0.1666, "max_calls": 0}),
        (2.0, 0.25, 9, {"num_gpus": 0.2, "max_calls": 0}),
        (1.0, 0.25, 2, {"num_gpus": 0.25, "max_calls": 0}),
        (2.0, 0.0, None, {}),
        (0.0, 0.25, None, {}),
    ],
)
def test_networks_take_their_share_of_a_gpu_where_the_cluster_has_any(
    gpus: float, share: float, workers: int | None, needs: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it all networks of a machine with eight GPUs would run on the first; what is reserved reaches Ray."""
    reserved: list[dict[str, Any]] = []
    options: list[dict[str, Any]] = []

    class Rows:
        def map(self, _work: object, **asked: Any) -> "Rows":
            reserved.append(asked)
            return self

        def iter_rows(self) -> Iterator[Row]:
            yield {"id": 0, "row": ""}

    class Remote:
        def remote(self, *_: object) -> Row:
            return {"row": "alone"}

    def remote(**asked: Any) -> Callable[..., Remote]:
        options.append(asked)
        return lambda _function: Remote()

    cluster = SimpleNamespace(
        cluster_resources=lambda: {"CPU": 8.0} | ({"GPU": gpus} if gpus else {}),
        shutdown=lambda: None,
        remote=remote,
        get=lambda found: found,
        cloudpickle=pickle,
        data=SimpleNamespace(
            DataContext=SimpleNamespace(get_current=SimpleNamespace), from_items=lambda *_, **__: Rows()
        ),
        exceptions=SimpleNamespace(
            RayError=ZeroDivisionError, WorkerCrashedError=ZeroDivisionError, OutOfMemoryError=ZeroDivisionError
        ),
    )
    monkeypatch.setattr("data.cluster._connect", lambda *_: cluster)
    address = "local" if workers else "auto"
    found = list(on_ray(abs, [(1,), (2,)], address, workers or 1, "x", share))
    assert found == [((1,), {"row": ""}), ((2,), {"row": "alone"})]
    assert reserved == [{"max_retries": 3} | needs] and options == [{"max_retries": 0} | needs]


def test_a_worker_without_memory_is_no_bug() -> None:
    def full() -> Row:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    assert _called(full, ()) == {
        "error": f"a worker on {platform.node()} has not enough memory (CUDA out of memory. Tried to allocate 2 GiB)"
    }
