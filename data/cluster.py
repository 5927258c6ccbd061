"""Work on a Ray cluster: the same function on the same jobs as ``stage.in_processes``, through Ray Data."""

import logging
import os
import socket
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from stage import StageError, progress, reason_of, say

Row = dict[str, Any]
Job = TypeVar("Job", bound=tuple[Any, ...])
LOCAL = "local"
"""Address that starts a cluster of this machine's own, for the time of the command."""

KNOCK_SECONDS = 5.0
RETRIES = 3
"""Times that a job is tried again whose worker died. Ray's own way is to try for ever."""
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_task_oom_retries": str(RETRIES),
    # Ray prints a paragraph of these on standard output each time; what comes of them is said once, at the end.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "worker died or was killed|retries remaining",
}
"""How Ray, as it is imported, is told what it has no argument for. A user's own values stay."""


def on_ray(
    function: Callable[..., Row], jobs: Sequence[Job], address: str, workers: int, description: str
) -> Iterator[tuple[Job, Row | None]]:
    """Call ``function(*job)`` for every job on a Ray cluster; yield the jobs, in any order, each with what it returned.

    None stands for a job that kills its worker again and again, at last also alone. The machines need share no disk.
    ``workers`` is the number of processes of a local cluster. The first error of the function drops the jobs that wait.
    Raises StageError for that, if Ray is not installed, if no cluster answers at the address, and if it gives up.
    """
    if not jobs:
        return
    ray = _connect(address, workers)
    try:
        for number, row in progress(_results(ray, function, jobs, description), description, total=len(jobs)):
            if row and row.get("error"):
                raise StageError(row["error"])
            yield jobs[number], row
    except ray.exceptions.RayError as error:
        gave_up = f"{description}: Ray gave up: {reason_of(error).rstrip('.')}"
        raise StageError(f"{gave_up}; what is done is kept, also for a run without --ray") from error
    finally:
        ray.shutdown()


def _results(
    ray: Any, function: Callable[..., Row], jobs: Sequence[Job], description: str
) -> Iterator[tuple[int, Row | None]]:
    """Yield the number of every job with its row. Raises RayError if Ray itself fails, or if every worker dies."""
    lost = set(range(len(jobs)))
    for number, row in _together(ray, function, jobs):
        lost.remove(number)
        yield number, row
    if lost:
        say(f"{description}: no result for {len(lost)} of {len(jobs)}, tried {1 + RETRIES} times; trying each alone")
    alone = ray.remote(max_retries=0)(_called)
    for number in sorted(lost):
        try:
            row = ray.get(alone.remote(function, jobs[number]))
            lost.remove(number)
            yield number, row
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
            if 1 < len(jobs) == len(lost):  # nothing at all came back: it is not this job
                raise
            yield number, None


def _together(ray: Any, function: Callable[..., Row], jobs: Sequence[Job]) -> Iterator[tuple[int, Row]]:
    """Yield rows as they come, with the numbers of their jobs. Ray Data leaves out a job that it could not do."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1
    # Each row brings its own job: a list of all of them would be read anew for each.
    rows = [{"id": number, "job": ray.cloudpickle.dumps(job)} for number, job in enumerate(jobs)]

    def work(row: Row) -> Row:
        return {"id": row["id"]} | _called(function, ray.cloudpickle.loads(row["job"]))

    results = ray.data.from_items(rows, override_num_blocks=len(rows)).map(work, max_retries=RETRIES)
    for row in results.iter_rows():
        yield row.pop("id"), row


def _called(function: Callable[..., Row], job: tuple[Any, ...]) -> Row:
    """Call ``function(*job)``; give its error as text: Ray would wrap it several times over, and Ray Data ignore it."""
    try:
        return function(*job)
    except (StageError, OSError) as error:
        return {"error": str(error)}
    except Exception as error:
        return {"error": f"a bug: {type(error).__name__}: {reason_of(error)}; without --ray it shows where"}


def _connect(address: str, workers: int) -> Any:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise StageError("--ray needs the extra: pip install 'pocketproof[ray]'") from error
    # Ray 2.60 gives no other way to say max_retries than the one of which it warns.
    warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    options: dict[str, Any] = {"num_cpus": workers} if address == LOCAL else {}
    try:
        _knock(address)
        ray.init(address, include_dashboard=False, log_to_driver=False, logging_level="ERROR", **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise StageError(f"--ray {address}: no cluster answers there: {reason_of(error)}") from error
    return ray


def _knock(address: str) -> None:
    """Raise OSError if nothing listens at host:port or ray://host:port: Ray itself would try for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), KNOCK_SECONDS).close()
