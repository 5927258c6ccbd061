"""Time rows on a phone, with runners that are copied to it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import typer
from pydantic import BaseModel

from benchmarks.adb import Phone
from benchmarks.figures import RUNS_FOR_P90, RUNS_FOR_P99, Latency, spread_of
from benchmarks.kept import KeptMeasurements
from benchmarks.measuring import refuse_changed
from benchmarks.native_runners import RunnerTimes, Tool, tool_of
from benchmarks.rounds import Effort
from benchmarks.rows import Subject
from benchmarks.schema import Row
from export.manifest import Artifact, Program
from files import CannotWrite, sha256_of
from stage import StageError, WrongArgument, progress

ACCURACY = "timed on the phone; its accuracy is that of the row measured on this machine"


@dataclass(frozen=True)
class PhoneTimer:
    """A phone, and the runners that time models on it."""

    phone: Phone
    runners: dict[Tool, Path]

    @classmethod
    def connect(cls, runners: Sequence[Path]) -> "PhoneTimer":
        """Connect to the phone.

        Raises WrongArgument if no runner is given, or two of a kind or one of no known kind, StageError if one is
        missing or there is no phone.
        """
        if not runners:
            raise WrongArgument(
                "--device adb needs --runner FILE: executor_runner for .pte, onnxruntime_perf_test for .onnx"
            )
        tools = {tool_of(runner): runner for runner in runners}
        if len(tools) < len(runners):
            raise WrongArgument("--runner: give one runner of each kind")
        return cls(Phone(), tools)

    @property
    def properties(self) -> dict[str, str]:
        """The phone's manufacturer, model, Android version and chip, as it reports them."""
        return self.phone.properties

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the report: what a reader must know about rows of a phone."""
        return (f"On {self.phone.name} runners time models on inputs that they make up, and choose their own cores.",)

    def tool_for(self, subject: Subject) -> Tool | str:
        """Return the kind of runner that times a row, or the reason why none does."""
        if subject.artifact is None:
            return "a run in torch does not run on a phone"
        if subject.artifact.in_core_ml:
            return "Core ML does not run on Android"
        for tool in self.runners:
            if tool.runtime == subject.artifact.runtime:
                return tool
        return f"no --runner was given for {subject.artifact.runtime}"

    def measure(self, subjects: Sequence[Subject], effort: Effort, kept: KeptMeasurements) -> None:
        """Time every row that can be, round by round; set the status and reason of the others."""
        timed: list[tuple[Subject, Artifact, Tool]] = []
        for subject in subjects:
            row, tool = subject.row, self.tool_for(subject)
            row.device = self.phone.name
            row.status, row.reason = ("not measured", tool) if isinstance(tool, str) else ("measured", ACCURACY)
            if isinstance(tool, Tool) and subject.artifact:
                if obstacle := subject.artifact.cannot_run():
                    row.reason = f"timed on the phone; its accuracy is not known: {obstacle}"
                timed.append((subject, subject.artifact, tool))
        with self.phone.folder() as folder:
            for tool in {tool for _, _, tool in timed}:
                self.phone.push(self.runners[tool], f"{folder}/{tool.in_name}")
                self.phone.shell(["chmod", "755", f"{folder}/{tool.in_name}"])
            calls = [_Calls(self.phone, folder, number, *entry) for number, entry in enumerate(timed)]
            runners = {tool.in_name: sha256_of(runner) for tool, runner in self.runners.items()}
            where = f"{self.phone.name} {self.phone.serial} {runners}"
            for round_number in range(effort.rounds):
                for call in progress(calls, f"bench on the phone, round {round_number + 1}"):
                    call.add_round(effort.repeats, kept, f"{where} {round_number}")
        for call in calls:
            call.fill()


class _Round(BaseModel):
    """What a runner told in one round, of each program of an artifact."""

    programs: list[RunnerTimes]


class _Calls:
    """The calls of one row's runner: in each round, one for each program of the artifact."""

    def __init__(
        self, phone: Phone, folder: str, number: int, subject: Subject, artifact: Artifact, tool: Tool
    ) -> None:
        self._phone, self._folder, self._number = phone, folder, number
        self._subject, self._artifact, self._tool = subject, artifact, tool
        self._pushed: set[str] = set()
        self._rounds: list[list[RunnerTimes]] = []

    def add_round(self, runs: int, kept: KeptMeasurements, where: str) -> None:
        """Call the runner for one round of ``runs`` timed runs; a row that failed is not called again.

        ``where``: text that names the phone, the runners and the round, under which the times are kept. Raises
        StageError if the phone has gone: what was measured is kept.
        """
        row = self._subject.row
        if row.status != "measured":
            return
        try:
            asked = f"{where} {row.name} {row.sha256} {row.threads} {runs}"
            self._rounds.append(kept.once(asked, lambda: self._time_round(runs), _Round).programs)
        except CannotWrite:
            raise
        except StageError as error:
            self._phone.require()
            row.status, row.reason = "failed", str(error)

    def _time_round(self, runs: int) -> _Round:
        return _Round(programs=[self._time_program(program, runs) for program in self._artifact.programs])

    def _time_program(self, program: Program, runs: int) -> RunnerTimes:
        # The file gets a new name on the phone: the user's may contain any character.
        name = f"{self._number}-{program.name}{Path(program.file).suffix}"
        if name not in self._pushed:
            self._pushed.add(name)
            self._phone.push(self._subject.path.parent / program.file, f"{self._folder}/{name}")
            refuse_changed(self._subject.path, self._subject.row.sha256)
        tool = self._tool
        command = [f"./{tool.in_name}", *tool.arguments(name, program.name, self._subject.row.threads, runs)]
        output = self._phone.run(command, self._folder, tool.log_tag)
        try:
            return tool.read(output)
        except ValueError as error:
            raise StageError(f"{tool.in_name} told no times ({error}): {tool.silent}") from error

    def fill(self) -> None:
        """Put the times of all rounds into the row."""
        row = self._subject.row
        if row.status != "measured":
            return
        frames = self._subject.frames or 1
        frames_per_run = [_frames_of(program, frames) for program in self._artifact.programs]
        _fill_row(row, self._rounds, frames_per_run)
        if any(times.mean_alone for round_times in self._rounds for times in round_times):
            count, runs = len(self._rounds), self._rounds[0][0].runs
            means = f"the mean of {runs} runs" if count == 1 else f"the median of {count} means of {runs} runs each"
            warmed = ", warm-ups included" if self._artifact.runtime == "executorch" else ""
            row.reason += f"; p50 is {means}{warmed}, the only figure that {self._tool.in_name} told"


def _frames_of(program: Program, frames: int) -> int:
    """Return how many frames one run of a program scores, where a clip has ``frames``."""
    samples = program.output.shape[0] or 1
    return samples * (1 if program.of_frame else frames)


def _all_or_none(values: Sequence[float | None]) -> list[float]:
    """Return the values; an empty list if any of them is None."""
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else []


def _fill_row(row: Row, rounds: Sequence[Sequence[RunnerTimes]], frames_per_run: Sequence[int]) -> None:
    """Fill a row from the times of each round, one entry per program; ``frames_per_run`` has one entry per program."""

    def per_frame(values: Sequence[float]) -> float:
        return sum(value / frames for value, frames in zip(values, frames_per_run, strict=True))

    def percentile(values: Sequence[float | None], least_runs: int) -> float | None:
        known = _all_or_none(values)
        # Percentiles of two programs do not add up to those of both.
        if not known or len(frames_per_run) > 1 or min(programs[0].runs for programs in rounds) < least_runs:
            return None
        return float(np.median(known)) / frames_per_run[0]

    first = rounds[0]
    row.medians_ms = [per_frame([times.p50_ms for times in programs]) for programs in rounds]
    row.latency_ms = Latency(
        p50=float(np.median(row.medians_ms)),
        p90=percentile([programs[0].p90_ms for programs in rounds], RUNS_FOR_P90),
        p99=percentile([programs[0].p99_ms for programs in rounds], RUNS_FOR_P99),
    )
    if len(rounds) > 1:
        row.spread = spread_of(row.medians_ms)
    row.repeats = sum(programs[0].runs for programs in rounds)
    row.throughput = 1e3 / float(np.mean([per_frame([times.mean_ms for times in programs]) for programs in rounds]))
    row.load_ms = sum(_all_or_none([times.load_ms for times in first])) or None
    first_ms = first[0].first_run_ms
    # Elsewhere a first run of two programs is of all frames of a clip: a runner's is of one.
    row.first_run_ms = None if first_ms is None or len(first) > 1 else first_ms / frames_per_run[0]
    row.peak_memory_mb = max(_all_or_none([times.peak_memory_mb for times in first]), default=None)


@dataclass(frozen=True)
class DeviceOptions:
    """The device that rows are timed on: options of ``bench``."""

    device: Annotated[
        Literal["local", "adb"], typer.Option(help="adb: time artifacts on the Android phone that adb sees.")
    ] = "local"
    runner: Annotated[
        list[Path] | None,
        typer.Option(help="With --device adb: executor_runner (.pte) or onnxruntime_perf_test (.onnx). Repeatable."),
    ] = None

    def phone(self, only_here: dict[str, object]) -> PhoneTimer | None:
        """Return the timer of the phone; None for this machine.

        ``only_here``: the values of options, by name, that work on this machine alone. Raises WrongArgument if options
        do not go together, StageError if there is no usable phone.
        """
        if self.device == "local":
            if self.runner:
                raise WrongArgument("--runner is for --device adb: leave it out, or give --device adb")
            return None
        if refused := [option for option, value in only_here.items() if value]:
            raise WrongArgument(f"{', '.join(refused)}: measured on this machine alone, leave it out with --device adb")
        return PhoneTimer.connect(self.runner or [])
