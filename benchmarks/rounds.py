"""Measure the rows of a report, round by round, each row in processes of its own."""

import os
import tempfile
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
from stage import StageError, progress


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
    """What rows are scored on."""

    store: ClipStore
    split: str
    control: Path | None = None
    perturbed: dict[str, Path] = field(default_factory=dict)
    """Stores of the same clips cut otherwise, by perturbation."""
    _others: dict[Path, ClipStore] = field(default_factory=dict)

    def opened(self, path: Path) -> ClipStore:
        """Return the store at a path; each is read once."""
        if path == self.store.path:
            return self.store
        if path not in self._others:
            self._others[path] = ClipStore(path)
        return self._others[path]

    def of(self, subject: Subject, first_threads: bool) -> dict[str, tuple[Path, str]]:
        """Return the stores and splits that a row is scored on, by the name under which scores come back."""
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
    """Return what a worker measures of a row, on the crops in a file."""
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


def times_alone(task: Task) -> Task:
    """Return what a worker measures of a row once more, in a further round."""
    return task.model_copy(update={"scored": {}, "sustain": 0.0, "profiled": False, "again": True})


class Rounds:
    """What was measured of each row, round by round; a row that failed once is measured no more."""

    def __init__(self, corpora: Corpora, kept: KeptMeasurements) -> None:
        self._corpora, self._kept = corpora, kept
        self._found: dict[int, list[Measurement]] = {}

    def measure(self, subject: Subject, task: Task, number: int = 0) -> None:
        """Measure a row once, in round ``number``, or say in it why it failed."""
        if subject.row.status == "failed":
            return
        # Where the crops lie differs from call to call; what is in them follows from the store.
        said = task.model_dump_json(exclude={"crops", "scored"}) + "".join(sorted(task.scored))
        scored = [self._corpora.opened(path).info.fingerprint for path, _ in task.scored.values()]
        asked = f"{said} {subject.row.sha256} {self._corpora.store.info.fingerprint} {scored} {number}"
        try:
            found = self._kept.once(asked, lambda: self._measured(subject, task), Measurement)
            self._found.setdefault(id(subject), []).append(found)
        except StageError as error:
            subject.row.status, subject.row.reason = "failed", str(error)

    def _measured(self, subject: Subject, task: Task) -> Measurement:
        """Measure a row in a fresh process. Raises StageError if that fails, or if it was of other files than named."""
        found = measure_apart(task)
        refuse_changed(subject.path, subject.row.sha256)
        for path in {path for path, _ in task.scored.values()}:
            refuse_changed_store(self._corpora.opened(path))
        return found

    def fill(self, subjects: Iterable[Subject], reference_auc: float | None, split: str) -> None:
        """Put what was measured into the rows."""
        for subject in subjects:
            if subject.row.status in ("measured", "evaluated"):
                fill_row(subject, self._found[id(subject)], reference_auc, split)


def measure_all(
    subjects: Sequence[Subject], corpora: Corpora, reference_auc: float | None, effort: Effort, kept: KeptMeasurements
) -> None:
    """Measure every row that can be: those with a latency one after another, the others side by side."""
    first, rounds = subjects[0].row.threads, Rounds(corpora, kept)
    with tempfile.TemporaryDirectory() as folder:
        tasks = [
            (
                subject,
                task_of(
                    subject,
                    write_timed_crops(corpora.store, corpora.split, Path(folder), subject.takes),
                    effort,
                    corpora,
                    subject.row.threads == first,
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
                rounds.measure(subject, times_alone(task), number)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            futures = [pool.submit(rounds.measure, *entry) for entry in tasks if not entry[1].timed]
            try:
                for future in progress(futures, "evaluate"):
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    rounds.fill(subjects, reference_auc, corpora.split)
