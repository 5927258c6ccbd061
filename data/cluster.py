"""Work on a Ray cluster: the same function on the same jobs as ``stage.in_processes``, through Ray Data."""

import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from stage import StageError, progress, reason_of

Row = dict[str, Any]
LOCAL = "local"
"""Address that starts a cluster of this machine's own, for the time of the command."""

KNOCK_SECONDS = 5.0
RETRIES = 3
"""Times that a job is tried again whose worker died. Ray Data's own way is to try for ever."""


def on_ray(
    function: Callable[..., Row], jobs: Sequence[tuple[Any, ...]], address: str, workers: int, description: str
) -> Iterator[Row]:
    """Call ``function(*job)`` for every job on a Ray cluster and yield what it returns, in any order, with progress.

    The machines need share no disk. Ray calls a job again whose worker died. The first error drops the jobs that wait.
    ``workers`` is the number of processes of a local cluster. Raises StageError if Ray is not installed, if no cluster
    answers at the address, or if a worker keeps dying.
    """
    if not jobs:
        return
    ray = _connect(address, workers)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        shared = ray.put(list(jobs))

        def work(row: Row) -> Row:
            try:
                return function(*ray.get(shared)[row["id"]])
            except (StageError, OSError) as error:  # as text: Ray would wrap it several times over
                return {"refused": str(error)}

        results = ray.data.range(len(jobs), override_num_blocks=len(jobs)).map(work, max_retries=RETRIES)
        for row in progress(results.iter_rows(), description, total=len(jobs)):
            if row.get("refused"):
                raise StageError(row["refused"])
            yield row
    except ray.exceptions.RayError as error:
        raise StageError(f"{description}: Ray gave up: {reason_of(error)}; what is done is kept") from error
    finally:
        ray.shutdown()


def _connect(address: str, workers: int) -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise StageError("--ray needs the extra: pip install 'pocketproof[ray]'") from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
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
