"""What a whole clip costs, from the video file to P(fake), step by step.

``python -m benchmarks.budget_worker TASK.json RESULT.json`` measures one row in a fresh process. Nothing is imported
that its model does not need, torch for an artifact, because the process's memory is one of the figures.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from benchmarks.apart import serve
from benchmarks.figures import Budget, ClipStep
from benchmarks.processor import bound_to
from benchmarks.timing import peak_mb, reset_peak
from data.clips import FaceClip, face_clips
from data.crops import CropRule
from data.faces import DETECTORS
from data.picture import Picture
from data.tracks import Tracker
from data.video import Video
from export.runtimes import Method, Runtime, open_artifact, scorer_of
from stage import Modality, Per, Scheme, StageError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
REPEATS = 3
MOST_SECONDS = 5.0
"""A step that takes longer than this is run once."""
MOST_FRAMES = 1000
"""Number of a video's first frames in which a clip must be found."""


class BudgetTask(BaseModel):
    """The task of a worker that measures the clip budget of one row."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    row: str
    path: Path
    sha256: str | None
    runtime: str
    method: Method
    scheme: Scheme
    machine: str
    threads: int
    cores: list[int] | None
    teacher: bool
    modalities: tuple[Modality, ...]
    per: Per
    frames: int
    detector: str
    rule: CropRule
    flow: str
    """Name of the estimator of optical flow."""
    video: Path
    flow_weights: Path | None
    depth_size: str | None
    """Published size of the depth network; None where ``depth_weights`` are given, or no depth is looked at."""
    depth_weights: Path | None
    depth_sha256: str | None
    """Hash of the weights that made the store's depth; None where it has none."""

    def empty(self, reason: str) -> Budget:
        """Return the budget of a row that could not be measured, with the reason."""
        return self._budget((0, 0), 0, [], [], reason)

    def _budget(
        self, picture: tuple[int, int], repeats: int, steps: list[ClipStep], notes: list[str], reason: str = ""
    ) -> Budget:
        return Budget(
            row=self.row,
            runtime=self.runtime,
            scheme=self.scheme,
            machine=self.machine,
            threads=self.threads,
            teacher=self.teacher,
            frames=self.frames,
            video=self.video.name,
            picture=picture,
            repeats=repeats,
            stages=steps,
            notes=notes,
            reason=reason,
        )

    def measured(self) -> Budget:
        """Measure every step in this process, whose OpenCV threads and cores are already set."""
        pictures: list[Picture] = []
        clip = first_clip(self.video, self.detector, self.frames, pictures)
        steps = Steps(self)
        height, width = clip.pictures[0].size
        steps.until_the_faces(pictures)
        pictures.clear()
        crops = steps.until_the_model(clip)
        if self.runtime == "torch":
            steps.torch_model(crops, clip.valid)
        else:
            steps.artifact(crops[0], clip.valid)
        return self._budget((width, height), REPEATS, steps.measured, steps.notes)


def first_clip(path: Path, detector: str, frames: int, kept: list[Picture] | None = None) -> FaceClip:
    """Return a video's first clip of a steady face; ``kept`` takes all frames up to its end.

    What comes after that clip is not decoded: memory is one of the figures, and decoded frames would stay in it. Raises
    StageError if there is no such clip in the first MOST_FRAMES frames.
    """
    with Video(path) as video:

        def pictures() -> Iterator[Picture]:
            for picture in itertools.islice(video.pictures(), MOST_FRAMES):
                if kept is not None:
                    kept.append(picture)
                yield picture

        for clip, *_ in face_clips(Tracker(DETECTORS[detector]()).follow(pictures()), frames):
            if clip.steady and len(clip) == frames:
                if kept is not None:
                    del kept[clip.start + frames :]
                return clip
    raise StageError(f"{path}: no face is seen in {frames} frames on end among its first {MOST_FRAMES}")


@dataclass
class Steps:
    """Times one step after another, and collects the steps and notes of the budget."""

    task: BudgetTask
    measured: list[ClipStep] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def timed(self, name: str, run: Callable[[], T], share: float = 1.0, warm: Callable[[], Any] | None = None) -> T:
        """Run a step up to REPEATS times, add its ``ClipStep``, and return its result.

        ``share``: the part of its time that counts, 0..1. ``warm``: run to warm up, in place of the step itself.
        """
        (warm or run)()
        peak_known = reset_peak()
        times: list[float] = []
        results: list[T] = []
        while not times or (len(times) < REPEATS and sum(times) < MOST_SECONDS):
            results.clear()  # two results at once would count in the peak
            before = time.perf_counter()
            results.append(run())
            times.append(time.perf_counter() - before)
        memory = peak_mb() if peak_known else None
        milliseconds = 1e3 * float(np.median(times)) * share
        self.measured.append(ClipStep.model_validate({"name": name, "ms": milliseconds, "peak_memory_mb": memory}))
        return results[0]

    def until_the_faces(self, pictures: list[Picture]) -> None:
        """Time decoding and faces of all frames up to the end of the clip."""
        task, count = self.task, len(pictures)
        share = task.frames / count  # frames before the clip are decoded too, and do not count

        def decode() -> None:
            with Video(task.video) as video:
                for picture in itertools.islice(video.pictures(), count):
                    # Faces are found in the luma, for which a picture converts a turned or 10-bit frame only once.
                    _ = picture.luma

        self.timed("decode", decode, share)
        detector = DETECTORS[task.detector]()
        self.timed("faces", lambda: list(face_clips(Tracker(detector).follow(pictures), task.frames)), share)

    def until_the_model(self, clip: FaceClip) -> list[NDArray[np.uint8]]:
        """Time crops and modalities of a clip; return the pictures of each modality, uint8 [T, S, S, 3]."""
        task, boxes = self.task, clip.boxes

        def cut() -> NDArray[np.uint8]:
            return task.rule.cut_clip([picture.rgb for picture in clip.pictures], boxes)

        rgb = self.timed("crop", cut)
        pictures_of = {"rgb": rgb}
        if "depth" in task.modalities:
            pictures_of["depth"] = self._depth(rgb, clip.valid)
        if "flow" in task.modalities:
            pictures_of["flow"] = self._flow(rgb, clip)
        return [pictures_of[modality] for modality in task.modalities]

    def _depth(self, rgb: NDArray[np.uint8], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
        import torch

        from data.depth import DepthAnything, depth_pictures

        torch.set_num_threads(self.task.threads)
        network = DepthAnything(self.task.depth_size, self.task.depth_weights)
        others = "" if network.weights.sha256 == self.task.depth_sha256 else ", which did not make the store's"
        self.notes.append(f"depth by the weights {network.weights.name}{others}")
        return self.timed("depth", lambda: depth_pictures(network(rgb), valid), warm=lambda: network(rgb[:1]))

    def _flow(self, rgb: NDArray[np.uint8], clip: FaceClip) -> NDArray[np.uint8]:
        from data.flow import flow_estimator
        from data.modalities import flow_pictures

        if weights := self.task.flow_weights:
            import torch

            torch.set_num_threads(self.task.threads)
            self.notes.append(f"flow by the weights {weights.name}")
        estimate, rule = flow_estimator(self.task.flow, weights), self.task.rule
        frames = [picture.rgb for picture in clip.pictures]
        return self.timed("flow", lambda: flow_pictures(rgb, frames, clip.boxes, rule, estimate))

    def artifact(self, crops: NDArray[np.uint8], valid: NDArray[np.bool_]) -> None:
        """Time the programs that an app calls: ``embed`` of each frame and ``score``, or the only one.

        ``crops``: uint8 [T, S, S, 3]; ``valid``: bool [T].
        """
        task = self.task
        programs = open_artifact(task.path, cast(Runtime, task.runtime), task.threads, task.method)
        if task.method == "steps":
            embed, score = programs("embed"), programs("score")
            embeddings = self.timed("embed", lambda: np.concatenate([embed(crops[[t]]) for t in range(task.frames)]))
            self.timed("score", lambda: score(embeddings[None], valid[None].astype(np.float32)))
            return
        run = scorer_of(programs, task.method)
        if task.method == "clip":
            self.timed("score", lambda: run(crops[None], valid[None]))
        else:
            self.timed("score", lambda: [run(crops[[t]]) for t in range(task.frames)])

    def torch_model(self, modalities: Sequence[NDArray[np.uint8]], valid: NDArray[np.bool_]) -> None:
        """Time a run in torch: its backbone on every frame and then its head, or both at once where it scores frames.

        ``modalities``: uint8 [T, S, S, 3] of each; ``valid``: bool [T].
        """
        import torch

        from compress.runs import pixel_detector
        from models.detector import Detector, classify, per_picture
        from models.pixels import fake_probability
        from models.run import Run

        torch.set_num_threads(self.task.threads)
        model = pixel_detector(Run(self.task.path))
        network = model.network
        assert isinstance(network, Detector)
        joined = modalities[0] if len(modalities) == 1 else np.stack(modalities, axis=1)
        pixels, valid_frames = torch.from_numpy(joined), torch.from_numpy(valid)

        def embed() -> "torch.Tensor":
            with torch.inference_mode():
                return torch.cat([per_picture(network.backbone, model.pictures(frame[None])) for frame in pixels])

        def score_frames() -> list["torch.Tensor"]:
            with torch.inference_mode():
                return [model(frame[None]) for frame in pixels]

        if self.task.per == "frame":
            self.timed("score", score_frames)
            return
        embeddings = self.timed("embed", embed)

        def score() -> "torch.Tensor":
            with torch.inference_mode():
                return fake_probability(classify(network.head, embeddings[None], valid_frames[None]))

        self.timed("score", score)


def measure(task: BudgetTask) -> Budget:
    """Measure a row with the threads and on the cores of its task."""
    import cv2

    cv2.setNumThreads(task.threads)
    with bound_to(task.cores):
        return task.measured()


if __name__ == "__main__":
    serve(BudgetTask, measure)
