"""What a whole clip costs: its steps, and the time of each."""

import itertools
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.budget_worker import BudgetTask, Steps, first_clip
from benchmarks.clip_budget import measure_budget
from data.crops import CropRule
from data.tracks import STRIDE
from data.video import Video, write_video
from export.bundle import Bundle
from files import sha256_of
from models.run import Run
from stage import StageError
from tests.export.clip_student import NAME, clip_bundle

FRAMES = 4


@pytest.fixture(scope="module")
def video(demo_corpus: Path) -> Path:
    return sorted(demo_corpus.rglob("*.mp4"))[0]


def task_of(path: Path, video: Path, **changes: object) -> BudgetTask:
    sha256 = Run(path).sha256 if path.is_dir() else sha256_of(path)
    return BudgetTask.model_validate(
        {
            "row": path.name, "path": path, "sha256": sha256, "runtime": "torch", "method": "forward", "scheme": "fp32",
            "machine": "here", "threads": 1, "cores": None, "teacher": False, "modalities": ("rgb",), "per": "frame",
            "frames": FRAMES, "detector": "dlib", "rule": CropRule(size=64), "flow": "dis", "video": video,
            "flow_weights": None, "depth_size": None, "depth_weights": None, "depth_sha256": None,
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
    changes["depth_sha256"] = sha256_of(tiny_depth / "model.safetensors")
    budget = task_of(run or tmp_path / "run", video, **changes).measured()
    assert [stage.name for stage in budget.stages] == ["decode", "faces", "crop", "depth", "flow", "score"]
    assert budget.notes == [f"depth by the weights {tiny_depth.name}"]
    others = task_of(run or tmp_path / "run", video, **changes | {"depth_sha256": "0"}).measured()
    assert others.notes == [f"depth by the weights {tiny_depth.name}, which did not make the store's"]
    assert budget.teacher and budget.picture == (480, 360)


def test_the_process_of_an_artifact_does_without_torch():
    code = "import sys, benchmarks.budget_worker; sys.exit(bool({'torch', 'timm', 'sklearn'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_step_s_time_is_the_median_and_its_own_frames_share(student_run, video, monkeypatch):
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr("benchmarks.budget_worker.time", clock)
    steps, spent = Steps(task_of(student_run, video)), iter([9.0, 0.25, 1.0, 0.5, 8.0])

    def run():
        clock.now += next(spent)
        return "found"

    assert steps.timed("faces", run, share=0.25) == "found"
    assert steps.measured[0].ms == 125.0  # of .25, 1 and .5 s; the first call warms up
    steps.timed("depth", run, warm=lambda: None)
    assert steps.measured[1].ms == 8000.0  # too long to be run again


def test_a_clip_that_begins_later_is_found(student_run, video, tmp_path):
    with Video(video) as opened:
        filmed = [picture.rgb for picture in opened.pictures()]
    late = tmp_path / "late.mp4"
    write_video(late, [np.zeros_like(filmed[0])] * 60 + filmed)
    pictures = []
    clip = first_clip(late, "dlib", FRAMES, pictures)
    assert clip.start >= 60 and len(pictures) == clip.start + FRAMES


def test_what_comes_after_the_clip_is_not_decoded_and_so_not_in_memory(video, monkeypatch):
    decoded = itertools.count()
    pictures_of = Video.pictures

    def counted(opened):
        for picture in pictures_of(opened):
            next(decoded)
            yield picture

    monkeypatch.setattr(Video, "pictures", counted)
    clip = first_clip(video, "dlib", FRAMES)
    assert next(decoded) <= clip.start + FRAMES + STRIDE < 30


def test_of_a_clip_that_begins_later_its_own_frames_share_of_reading_and_looking_counts(video, tmp_path, monkeypatch):
    with Video(video) as opened:
        filmed = [picture.rgb for picture, _ in zip(opened.pictures(), range(FRAMES), strict=False)]
    late = tmp_path / "late.mp4"
    write_video(late, [np.zeros_like(filmed[0])] * 12 + filmed)
    steps = Steps(task_of(video, late))
    monkeypatch.setattr(
        "benchmarks.budget_worker.time", SimpleNamespace(perf_counter=itertools.count().__next__)
    )  # 1 s each
    pictures = []
    clip = first_clip(late, "dlib", FRAMES, pictures)
    steps.until_the_faces(pictures)
    steps.until_the_model(clip)
    assert {step.name: step.ms for step in steps.measured} == {"decode": 250.0, "faces": 250.0, "crop": 1000.0}


def test_a_video_without_a_face_is_said(student_run, tmp_path):
    empty = tmp_path / "empty.mp4"
    write_video(empty, [np.zeros((120, 160, 3), np.uint8)] * 8)
    with pytest.raises(StageError, match=r"empty.mp4: no face is seen in 4 frames on end"):
        task_of(student_run, empty).measured()


def test_a_budget_is_of_what_its_row_names(student_run, video, monkeypatch):
    found = task_of(student_run, video).empty("")
    environments = []
    monkeypatch.setattr("benchmarks.clip_budget.answer_of", lambda *task: environments.append(task[3]) or found)
    assert measure_budget(task_of(student_run, video)) == found
    assert environments == [os.environ | {"CUDA_VISIBLE_DEVICES": ""}]  # networks run where all other steps are
    with pytest.raises(StageError, match=rf"{student_run} was changed while it was measured"):
        measure_budget(task_of(student_run, video, sha256="0" * 64))
