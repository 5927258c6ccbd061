"""The clip budget of a report: the options of ``bench`` that ask for it, and the choice of rows to measure."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.apart import answer_of
from benchmarks.budget_worker import BudgetTask, first_clip
from benchmarks.figures import Budget
from benchmarks.kept import KeptMeasurements
from benchmarks.measuring import refuse_changed
from benchmarks.processor import cores_for
from benchmarks.rows import Subject
from data.depth import find_weights
from data.store import ClipStore
from files import CannotWrite, sha256_of
from stage import Modality, StageError, WrongArgument, progress


@dataclass(frozen=True)
class BudgetOptions:
    """The video whose first clip is timed: options of ``bench``."""

    video: Annotated[
        Path | None, typer.Option(help="A video: adds what a whole clip costs, from decoding to P(fake).")
    ] = None
    depth_weights: Annotated[
        Path | None, typer.Option(help="With --video: folder of Depth Anything V2's weights, for teachers of depth.")
    ] = None
    flow_weights: Annotated[
        Path | None, typer.Option(help="With --video: weights of RAFT, which made the store's flow.")
    ] = None

    def check(self, subjects: list[Subject], store: ClipStore) -> None:
        """Raise StageError if a file cannot be used, WrongArgument for weights that are missing or superfluous."""
        for option, weights in (("--depth-weights", self.depth_weights), ("--flow-weights", self.flow_weights)):
            if weights and not self.video:
                raise WrongArgument(f"{option} is for --video, which times networks: leave it out, or give --video")
        if self.video:
            timed = _to_time(subjects)
            if not timed:
                raise WrongArgument("--video: no file or run of one sample at once is timed here: leave it out")
            modalities = {modality for subject in timed for modality in subject.takes.modalities}
            self._check_flow(modalities, store)
            if self.depth_weights or "depth" in modalities:
                find_weights(self._depth_size(store), self.depth_weights)
            first_clip(self.video, store.info.settings.detector, store.frames)

    def _check_flow(self, modalities: set[Modality], store: ClipStore) -> None:
        """Raise WrongArgument unless there are weights for flow of RAFT, where it is looked at, and for no other."""
        name, sha256 = store.info.settings.flow_and_weights
        if self.flow_weights and not self.flow_weights.is_file():
            raise WrongArgument(f"--flow-weights {self.flow_weights} is not a file")
        if self.flow_weights and sha256_of(self.flow_weights) != sha256:
            raise WrongArgument(f"--flow-weights {self.flow_weights} did not make the flow of {store.path}")
        if sha256 and not self.flow_weights and "flow" in modalities:
            raise WrongArgument(
                f"--video times the flow of {store.path} too, which {name} made: give its weights, --flow-weights"
            )

    def _depth_size(self, store: ClipStore) -> str | None:
        """Return the published size of the network that made the store's depth; None where weights are given.

        Raises WrongArgument if the network is none of the published ones, and must be given.
        """
        made_by = store.info.settings.depth
        if self.depth_weights or made_by is None:
            return None
        if made_by.published_size:
            return made_by.published_size
        raise WrongArgument(
            f"--video times the depth of {store.path} too, which {made_by.name} made: give its folder, --depth-weights"
        )

    def measure(self, subjects: list[Subject], store: ClipStore, kept: KeptMeasurements) -> list[Budget]:
        """Return the budget of each timed artifact and fp32 run, on the first number of threads; [] without a video."""
        if self.video is None:
            return []
        tasks = [
            BudgetTask(
                row=subject.row.name,
                path=subject.path,
                sha256=subject.row.sha256,
                runtime=subject.row.runtime,
                method=subject.artifact.method if subject.artifact else "forward",
                scheme=subject.row.scheme,
                machine=subject.row.machine,
                threads=subject.row.threads,
                cores=cores_for(subject.row.threads),
                teacher=subject.teacher,
                modalities=subject.takes.modalities,
                per=subject.takes.per,
                frames=store.frames,
                detector=store.info.settings.detector,
                rule=store.info.settings.crop,
                flow=store.info.settings.flow_and_weights[0],
                video=self.video,
                flow_weights=self.flow_weights,
                depth_size=self._depth_size(store) if "depth" in subject.takes.modalities else None,
                depth_weights=self.depth_weights,
                depth_sha256=store.info.settings.depth.sha256 if store.info.settings.depth else None,
            )
            for subject in _to_time(subjects)
        ]
        hashes = " ".join(sha256_of(path) for path in (self.video, self.depth_weights, self.flow_weights) if path)
        return [_measure(task, hashes, kept) for task in progress(tasks, "budget")]


def _to_time(subjects: list[Subject]) -> list[Subject]:
    """Return the subjects whose budget is measured: timed artifacts and fp32 runs, once each, one sample at once."""
    return [
        subject
        for subject in subjects
        if subject.row.status == "measured" and subject.row.batch == 1
        if subject.row.threads == subjects[0].row.threads
        if subject.row.kind == "artifact" or subject.row.scheme == "fp32"
        if subject.row.runtime != "coreml" or subject.units == "all"
    ]


def measure_budget(task: BudgetTask) -> Budget:
    """Measure a budget in a fresh process, all of it on the CPU, where the first steps of each are.

    Raises StageError if the worker fails, or if the model's file changed.
    """
    budget = answer_of("benchmarks.budget_worker", task, Budget, os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    refuse_changed(task.path, task.sha256)
    return budget


def _measure(task: BudgetTask, hashes: str, kept: KeptMeasurements) -> Budget:
    """Return a measured budget, or an empty one with the reason; ``hashes``: of the video and the weights."""
    try:
        return kept.once(f"{task.model_dump_json()} {hashes}", lambda: measure_budget(task), Budget)
    except CannotWrite:
        raise
    except StageError as error:
        return task.empty(str(error))
