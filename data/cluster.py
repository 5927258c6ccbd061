"""Work on a Ray cluster: the same function on the same jobs as ``processes.in_processes``, through Ray Data."""

import contextlib
import functools
import logging
import math
import os
import platform
import signal
import socket
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from data.parquet import Row
from data.presence import is_there
from data.remote import is_remote
from stage import StageError, WrongArgument, out_of_memory, progress, reason_of, say

Job = TypeVar("Job", bound=tuple[Any, ...])
ROOT = Path(__file__).parents[1]
"""The folder that holds this package."""
LOCAL = "local"
"""Address that starts a cluster on this machine for the duration of the command."""

KNOCK_SECONDS = 5.0
"""Timeout for checking that something listens at an address."""
RETRIES = 3
"""Retries of a job whose worker died. Ray by default retries for ever."""
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray would send the current folder to workers of a command that uv has started, and make an environment there.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_task_oom_retries": str(RETRIES),
    # Ray prints a paragraph about each such event on standard output; the outcome is reported once, at the end.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "worker died or was killed|retries remaining",
}
"""Environment variables for settings that Ray reads when it is imported. A user's own values are kept."""


def check_workers(address: str | None, workers: int) -> None:
    """Raise WrongArgument for a number of processes beside the address of a cluster, which has its own."""
    if workers > 1 and address not in (None, LOCAL):
        raise WrongArgument(
            f"--workers {workers} is for this machine and --ray local: leave it out with --ray {address}"
        )


def seen_from_here(path: Path) -> Row:
    """Return, for a job's result, whether this machine sees its file, and the machine's name."""
    return {"seen": is_remote(path) or is_there(path), "node": platform.node()}


def refuse_not_shared(path: Path, result: Row) -> None:
    """Raise StageError for a file that this machine sees, and the one that gave the result (``seen_from_here``) not."""
    if not result["seen"] and is_there(path):
        raise StageError(f"{path} is not on {result['node']}: share the disk with the cluster, or give a URL")


def on_ray(
    function: Callable[..., Row],
    jobs: Sequence[Job],
    address: str,
    workers: int,
    description: str,
    gpu_share: float = 0.0,
) -> Iterator[tuple[Job, Row | None]]:
    """Call ``function(*job)`` for every job on a Ray cluster; yield each job with its result, in any order.

    The result is None for a job that kills its worker again and again, finally also when run alone. The machines need
    not share a disk. ``workers`` is the number of processes of a local cluster. ``gpu_share``: of a GPU, which a job
    takes if the cluster has any: Ray then shows it that GPU alone. The first error of the function cancels the waiting
    jobs. Raises StageError for it, and if Ray is not installed, no cluster answers, or Ray gives up.
    """
    if not jobs:
        return
    if address == LOCAL:  # whose processes begin in the folder in which Ray was started
        function = functools.partial(_in_folder, Path.cwd(), function)
    ray = _connect(address, workers)
    try:
        needs = _needs(ray.cluster_resources().get("GPU", 0.0), gpu_share, workers if address == LOCAL else None)
        for number, row in progress(_results(ray, function, jobs, description, needs), description, total=len(jobs)):
            if row and row.get("error"):
                raise StageError(row["error"])
            yield jobs[number], row
    except ray.exceptions.RayError as error:
        gave_up = f"{description}: Ray gave up: {reason_of(error).rstrip('.')}"
        raise StageError(f"{gave_up}; what is done is kept, also for a run without --ray") from error
    finally:
        ray.shutdown()


def _in_folder(folder: Path, function: Callable[..., Row], *job: Any) -> Row:
    """Call a function in a folder: environment variables may name paths that are relative to it."""
    os.chdir(folder)
    return function(*job)


def _needs(gpus: float, share: float, workers: int | None) -> dict[str, float]:
    """Return what Ray reserves for a job that takes a ``share`` of a GPU, where the cluster has ``gpus`` of them.

    ``workers``: the number of processes of a local cluster, all of which must find room; None for another.
    """
    if not (gpus and share):
        return {}
    # By default Ray ends a process that has a GPU after each job: it would load its networks anew.
    if workers:  # no job spans two GPUs, and Ray counts their shares in steps of .0001
        share = min(share, math.floor(1e4 / math.ceil(workers / gpus)) / 1e4)
    return {"num_gpus": share, "max_calls": 0}


def _results(
    ray: Any, function: Callable[..., Row], jobs: Sequence[Job], description: str, needs: dict[str, float]
) -> Iterator[tuple[int, Row | None]]:
    """Yield the number of every job with its result. ``needs``: resources that Ray reserves for each.

    Raises RayError if Ray fails, or if every worker dies.
    """
    missing = set(range(len(jobs)))
    for number, row in _together(ray, function, jobs, needs):
        missing.remove(number)
        yield number, row
    if missing:
        say(f"{description}: no result for {len(missing)} of {len(jobs)}, tried {1 + RETRIES} times; trying each alone")
    run_alone = ray.remote(max_retries=0, **needs)(_called)
    for number in sorted(missing):
        try:
            row = ray.get(run_alone.remote(function, jobs[number]))
            missing.remove(number)
            yield number, row
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
            if 1 < len(jobs) == len(missing):  # no job gave a result: the fault is not this job's
                raise
            yield number, None


def _together(
    ray: Any, function: Callable[..., Row], jobs: Sequence[Job], needs: dict[str, float]
) -> Iterator[tuple[int, Row]]:
    """Yield results as they come, with their jobs' numbers. Ray Data leaves out jobs that it could not do."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1
    # Each row carries its own job: a shared list of jobs would be read anew for each row.
    rows = [{"id": number, "job": ray.cloudpickle.dumps(job)} for number, job in enumerate(jobs)]

    def work(row: Row) -> Row:
        return {"id": row["id"]} | _called(function, ray.cloudpickle.loads(row["job"]))

    results = ray.data.from_items(rows, override_num_blocks=len(rows)).map(work, max_retries=RETRIES, **needs)
    for row in results.iter_rows():
        yield row.pop("id"), row


def _called(function: Callable[..., Row], job: tuple[Any, ...]) -> Row:
    """Call ``function(*job)``; return an error as text, as Ray would wrap it several times, and Ray Data ignore it."""
    try:
        return function(*job)
    except (StageError, OSError) as error:
        return {"error": str(error)}
    except Exception as error:
        if out_of_memory(error):
            return {"error": f"a worker on {platform.node()} has not enough memory ({reason_of(error)})"}
        return {"error": f"a bug: {type(error).__name__}: {reason_of(error)}; without --ray it shows where"}


def _connect(address: str, workers: int) -> Any:
    """Import Ray and connect it to a cluster; return the module. Raises StageError if that fails."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise StageError("--ray needs the extra: pip install 'pocketproof[ray]'") from error
    # Ray 2.60 warns of its only way to set max_retries.
    warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    options: dict[str, Any] = {"num_cpus": workers} if address == LOCAL else {}
    at_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        _knock(_place_of(address))
        # Workers import from the current folder first, in which a user's data/ would hide ours.
        with contextlib.chdir(ROOT):
            ray.init(address, include_dashboard=False, log_to_driver=False, logging_level="ERROR", **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise StageError(f"--ray {address}: {_why_not_connected(address, error)}") from error
    signal.signal(signal.SIGTERM, at_sigterm)  # Ray's own handler would end this process without a clear line
    return ray


def _why_not_connected(address: str, error: Exception) -> str:
    """Return what is wrong, with the mend where Ray's own error does not name it."""
    reason = reason_of(error)
    if address == LOCAL:
        place = getattr(error, "filename", None)  # Ray keeps a token in the home folder
        return f"Ray cannot be started here: {reason}{f': {place}; set HOME to a folder that is kept' if place else ''}"
    # Once it has made a token, as --ray local does, Ray starts clusters that ask for it, and hands it only to ``auto``.
    asks = "; if it asks for a token, set RAY_AUTH_MODE=token" if "Failed to connect" in reason else ""
    return f"no cluster answers there: {reason}{asks}"


def _place_of(address: str) -> str:
    """Return the address that ``auto`` means to Ray, perhaps of a cluster that has died; others as they are.

    Raises ConnectionError if Ray knows of none.
    """
    if address != "auto":
        return address
    from ray._private.services import get_ray_address_from_environment

    return str(get_ray_address_from_environment(address, None))


def _knock(address: str) -> None:
    """Raise OSError if nothing listens at host:port or ray://host:port: Ray itself would try for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), KNOCK_SECONDS).close()
