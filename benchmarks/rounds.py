"""Measure the rows of a report, round by round, each row in processes of its own."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.kept import KeptMeasurements
from benchmarks.measuring import measure_apart, refuse_changed, refuse_changed_store, write_timed_crops
from benchmarks.processor import cores_for
from benchmarks.rows import Subject, fill_row
from benchmarks.task import Measurement, Task
from data.store import ClipStore
from files import CannotWrite
from stage import StageError, progress, usable_cores


@dataclass(frozen=True)
class Effort:
    """How thoroughly rows are measured: options of ``bench``."""

    repeats: Annotated[
        int, typer.Option(help="Timed frames of a process; slow models stop after 5 s and 10 frames.", min=10)
    ] = 50
    rounds: Annotated[int, typer.Option(help="Processes of each row, one round of all rows after another.", min=1)] = 3
    sustain: Annotated[
        float,
        typer.Option(help="Seconds to run each row without a pause: speed over time, and energy.", min=0, max=86_400),
    ] = 0
    profile: Annotated[bool, typer.Option("--profile", help="Add the slowest operations of each row.")] = False


@dataclass(frozen=True)
class Corpora:
    """The stores that rows are scored on."""

    store: ClipStore
    split: str
    control: Path | None = None
    perturbed: dict[str, Path] = field(default_factory=dict)
    """Stores of the same clips cut in other ways, by the name of the perturbation."""
    _others: dict[Path, ClipStore] = field(default_factory=dict)

    def opened(self, path: Path) -> ClipStore:
        """Return the store at a path; each store is opened once."""
        if path == self.store.path:
            return self.store
        if path not in self._others:
            self._others[path] = ClipStore(path)
        return self._others[path]

    def of(self, subject: Subject, first_threads: bool) -> dict[str, tuple[Path, str]]:
        """Return the stores and splits that a row is scored on, by the name under which the worker returns the scores.

        ``first_threads``: whether the row has the first thread count, for which alone perturbed crops are scored.
        """
        if subject.meaningless is not None:
            return {}
        scored = {self.split: (self.store.path, self.split)}
        if subject.threshold is None:
            scored["val"] = (self.store.path, "val")
        if subject.row.kind == "artifact" and subject.row.status == "measured":
            if self.control is not None:
                scored["control"] = (self.control, "test")
            if first_threads:
                scored |= {name: (path, self.split) for name, path in self.perturbed.items()}
        return scored


def task_of(subject: Subject, crops: Path, effort: Effort, corpora: Corpora, first_threads: bool) -> Task:
    """Return the task of the worker that measures a row; ``crops``: the file of ``write_timed_crops``."""
    timed = subject.row.status == "measured"
    threads = subject.row.threads if timed else 1
    return Task(
        path=subject.path,
        runtime=subject.row.runtime,
        scheme=subject.row.scheme,
        units=subject.units,
        threads=threads,
        cores=cores_for(threads) if timed else None,
        repeats=effort.repeats,
        sustain=effort.sustain if timed else 0,
        profiled=effort.profile,
        size=subject.row.input_size,
        modalities=subject.takes.modalities,
        per=subject.takes.per,
        method=subject.artifact.method if subject.artifact else "forward",
        batch=subject.row.batch,
        frames=corpora.store.frames,
        crops=crops,
        scored=corpora.of(subject, first_threads),
        timed=timed,
    )


def times_alone(task: Task, repeats: int) -> Task:
    """Return the task of a further round, which only times the row again, so many times."""
    return task.model_copy(update={"scored": {}, "sustain": 0.0, "profiled": False, "again": True, "repeats": repeats})


class Rounds:
    """The measurements of each row, one per round; a row that failed is not measured again."""

    def __init__(self, corpora: Corpora, kept: KeptMeasurements) -> None:
        self._corpora, self._kept = corpora, kept
        self._measurements: dict[int, list[Measurement]] = {}

    def measure(self, subject: Subject, task: Task, number: int = 0) -> None:
        """Measure a row in round ``number``; if that fails, set the row's status and reason."""
        if subject.row.status == "failed":
            return
        # The path of the crops differs from call to call; their content follows from the store.
        task_text = task.model_dump_json(exclude={"crops", "scored"}) + "".join(sorted(task.scored))
        fingerprints = [self._corpora.opened(path).info.fingerprint for path, _ in task.scored.values()]
        asked = f"{task_text} {subject.row.sha256} {self._corpora.store.info.fingerprint} {fingerprints} {number}"
        try:
            measurement = self._kept.once(asked, lambda: self._measure_apart(subject, task), Measurement)
            self._measurements.setdefault(id(subject), []).append(measurement)
        except CannotWrite:
            raise
        except StageError as error:
            subject.row.status, subject.row.reason = "failed", str(error)

    def measure_again(self, subject: Subject, task: Task, number: int) -> None:
        """Time a row in round ``number`` as often as in the first: each round then has the same part in percentiles."""
        if subject.row.status == "failed":
            return
        first = self._measurements[id(subject)][0].timing
        assert first is not None
        self.measure(subject, times_alone(task, len(first.times_ms)), number)

    def _measure_apart(self, subject: Subject, task: Task) -> Measurement:
        """Measure a row in a fresh process. Raises StageError if that fails, or if a file changed meanwhile."""
        measurement = measure_apart(task)
        refuse_changed(subject.path, subject.row.sha256)
        for path in {path for path, _ in task.scored.values()}:
            refuse_changed_store(self._corpora.opened(path))
        return measurement

    def fill(self, subjects: Iterable[Subject], reference_auc: float | None, split: str) -> None:
        """Put the measurements into the rows."""
        for subject in subjects:
            if subject.row.status in ("measured", "evaluated"):
                fill_row(subject, self._measurements[id(subject)], reference_auc, split)


def measure_all(
    subjects: Sequence[Subject], corpora: Corpora, reference_auc: float | None, effort: Effort, kept: KeptMeasurements
) -> None:
    """Measure every row that can be: timed rows one after another, the others in parallel."""
    first_threads = subjects[0].row.threads
    rounds = Rounds(corpora, kept)
    with kept.scratch() as folder:
        tasks = [
            (
                subject,
                task_of(
                    subject,
                    write_timed_crops(corpora.store, corpora.split, Path(folder), subject.takes),
                    effort,
                    corpora,
                    subject.row.threads == first_threads,
                ),
            )
            for subject in subjects
            if subject.row.status != "not measured"
        ]
        timed = [(subject, task) for subject, task in tasks if task.timed]
        for subject, task in progress(timed, "bench"):
            rounds.measure(subject, task)
        for number in range(1, effort.rounds):
            for subject, task in progress(timed, f"bench, round {number + 1}"):
                rounds.measure_again(subject, task, number)
        with ThreadPoolExecutor(usable_cores()) as pool:
            futures = [pool.submit(rounds.measure, *entry) for entry in tasks if not entry[1].timed]
            try:
                for future in progress(futures, "evaluate"):
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    rounds.fill(subjects, reference_auc, corpora.split)
