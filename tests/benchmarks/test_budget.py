"""What a whole clip costs: the steps, against the same steps called one by one."""

import itertools
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.budget import BudgetTask, first_clip, measure_budget
from data.clips import face_clips
from data.crops import CropRule
from data.faces import DETECTORS
from data.tracks import Tracker
from data.video import Video, write_video
from export.bundle import Bundle
from stage import StageError
from tests.export.clip_student import NAME, clip_bundle

FRAMES = 4


@pytest.fixture(scope="module")
def video(demo_corpus: Path) -> Path:
    return sorted(demo_corpus.rglob("*.mp4"))[0]


def task_of(path: Path, video: Path, **changes: object) -> BudgetTask:
    return BudgetTask.model_validate(
        {
            "row": path.name, "path": path, "runtime": "torch", "method": "forward", "scheme": "fp32",
            "machine": "here", "threads": 1, "cores": None, "teacher": False, "modalities": ("rgb",), "per": "frame",
            "frames": FRAMES, "detector": "dlib", "rule": CropRule(size=64), "flow": "dis", "video": video,
            "depth_weights": None,
        }
        | changes
    )  # fmt: skip


def stages_of(task: BudgetTask) -> dict[str, float]:
    budget = task.measured()
    assert all(stage.ms > 0 for stage in budget.stages)
    assert budget.ms == sum(stage.ms for stage in budget.stages)
    return {stage.name: stage.ms for stage in budget.stages}


def test_steps_of_a_frame_student(bundle_path, student_run, video):
    for task in (
        task_of(student_run, video),
        task_of(bundle_path / "test_byobnet-fp32.onnx", video, runtime="onnxruntime"),
    ):
        assert list(stages_of(task)) == ["decode", "faces", "crop", "score"]


def test_steps_of_a_clip_student_and_what_each_is_given(demo_store, tmp_path_factory, video):
    bundle = Bundle(clip_bundle(demo_store, tmp_path_factory))
    path = bundle.path / f"{NAME}.pte"
    found = stages_of(task_of(path, video, runtime="executorch", method="steps", per="clip"))
    assert list(found) == ["decode", "faces", "crop", "embed", "score"]
    whole = bundle.path / "test_tiny-whole-clip-fp32.pte"
    found = stages_of(task_of(whole, video, runtime="executorch", method="clip", per="clip"))
    assert list(found) == ["decode", "faces", "crop", "score"]


def test_steps_of_a_teacher_of_depth_and_flow(drawn_run, tiny_depth, video, tmp_path):
    run = drawn_run(tmp_path / "run", modalities=("rgb", "depth", "flow"))
    changes = {"modalities": ("rgb", "depth", "flow"), "depth_weights": tiny_depth, "teacher": True}
    budget = task_of(run or tmp_path / "run", video, **changes).measured()
    assert [stage.name for stage in budget.stages] == ["decode", "faces", "crop", "depth", "flow", "score"]
    assert budget.notes == [f"depth by the weights {tiny_depth.name}"]
    assert budget.teacher and budget.picture == (480, 360)


def test_time_of_the_steps_is_that_of_the_same_calls(student_run, video):
    """Within a factor of three: this machine does other things too."""
    found = stages_of(task_of(student_run, video))
    detector = DETECTORS["dlib"]()
    times: dict[str, list[float]] = {"decode": [], "faces": []}
    for _ in range(4):
        before = time.perf_counter()
        with Video(video) as opened:
            pictures = list(itertools.islice(opened.pictures(), FRAMES))
        middle = time.perf_counter()
        list(face_clips(Tracker(detector).follow(pictures), FRAMES))
        times["decode"].append(1e3 * (middle - before))
        times["faces"].append(1e3 * (time.perf_counter() - middle))
    for name, own in times.items():
        assert np.median(own) / 3 < found[name] < 3 * np.median(own)


def test_a_clip_that_begins_later_pays_for_its_own_frames_alone(student_run, video, tmp_path):
    with Video(video) as opened:
        filmed = [picture.rgb for picture in opened.pictures()]
    late = tmp_path / "late.mp4"
    write_video(late, [np.zeros_like(filmed[0])] * 60 + filmed)
    pictures, clip = first_clip(late, "dlib", FRAMES)
    assert clip.start >= 60 and len(pictures) == clip.start + FRAMES
    assert stages_of(task_of(student_run, late))["decode"] < 3 * stages_of(task_of(student_run, video))["decode"]


def test_a_video_without_a_face_is_said(student_run, tmp_path):
    empty = tmp_path / "empty.mp4"
    write_video(empty, [np.zeros((120, 160, 3), np.uint8)] * 8)
    with pytest.raises(StageError, match=r"empty.mp4: no face is seen in 4 frames on end"):
        task_of(student_run, empty).measured()


def test_what_fails_in_its_process_says_why(student_run, tmp_path):
    budget = measure_budget(task_of(student_run, tmp_path / "none.mp4"))
    assert (budget.stages, budget.row) == ([], student_run.name)
    assert "none.mp4" in budget.reason
