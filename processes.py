"""Jobs in worker processes of this machine, which end with their parent and leave nothing behind.

This module stands beside ``stage.py``, which alone it uses.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from typing import Any

from stage import StageError, T, progress

_ENDING = threading.Event()
"""In a worker: set once it was told to end."""


class WorkerDied(StageError):
    """A process of a stage was killed, or crashed in native code."""


def _do(function: Callable[..., T], *job: Any) -> T:
    """In a worker: do a job, unless the process is about to end: what another job began would be left where it lies."""
    if _ENDING.is_set():
        sys.exit(1)
    return function(*job)


def do_nothing(*_: object) -> None:
    """Handle a signal that may be pending already, which Python complains of where it is to be ignored."""


def _end_job(*_: object) -> None:
    """In a worker: end its job, which removes its temporary files, and soon the process."""
    signal.signal(signal.SIGTERM, do_nothing)  # the parent passes on what its group got already
    _ENDING.set()
    last = threading.Timer(1.0, os._exit, (1,))
    last.daemon = True
    last.start()
    sys.exit(1)


def _terminate_workers() -> None:
    """In their parent: end the processes that it has started, and their jobs."""
    for child in multiprocessing.active_children():
        child.terminate()


def _end_with_parent() -> None:
    """In a worker: leave Ctrl-C to the parent, and exit when it is killed, which a waiting worker never notices."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_job)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGHUP, _end_job)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def exit_after_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=exit_after_parent, daemon=True).start()


def _start_tracker() -> None:
    """Start Python's tracker of semaphores so that it ignores SIGHUP, as it ignores Ctrl-C and SIGTERM by itself."""
    if threading.current_thread() is threading.main_thread():
        at_hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        resource_tracker.ensure_running()
        signal.signal(signal.SIGHUP, at_hangup)


@contextlib.contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Hold Ctrl-C back for a moment; processes started meanwhile hold it back until they ignore it."""
    previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)


def in_processes(
    function: Callable[..., T], jobs: Iterable[tuple[Any, ...]], workers: int, description: str
) -> list[T]:
    """Call ``function(*job)`` for every job in ``workers`` fresh processes, with progress; return the results in order.

    The first error cancels the jobs that still wait, and Ctrl-C also those that run. Raises WorkerDied if a process
    dies.
    """
    jobs = list(jobs)
    _start_tracker()
    workers, spawn = min(workers, max(1, len(jobs))), multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_end_with_parent) as pool:
        try:
            with _ctrl_c_held_back():
                futures = [pool.submit(_do, function, *job) for job in jobs]
            for future in progress(as_completed(futures), description, len(futures)):
                future.result()
            return [future.result() for future in futures]
        except (BrokenProcessPool, SystemExit) as error:  # the job of a process that got SIGTERM ends with SystemExit
            # Python 3.11 would wait for ever for a process that was being started when the other died.
            _terminate_workers()
            raise WorkerDied(f"{description}: a process was killed, perhaps for want of memory") from error
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            _terminate_workers()
            raise
        except BaseException:
            try:
                pool.shutdown(cancel_futures=True)  # waits: leaving the block before it is done would take it back
            except KeyboardInterrupt:
                _terminate_workers()
                raise
            raise
