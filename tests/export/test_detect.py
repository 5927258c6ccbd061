"""detect: the same crops, frames and scores as prepare and the artifact give."""

import json

import numpy as np
import pytest

from data.store import ClipStore
from export.bundle import Bundle
from export.detect import detect, detect_video
from export.runtimes import evaluated_by
from stage import StageError

TALKING = "../shared/data/talking"


@pytest.fixture(scope="module")
def bundle(bundle_path):
    return Bundle(bundle_path)


def test_first_clip_scores_as_the_prepared_clip(bundle, demo_corpus, demo_store):
    store = ClipStore(demo_store)
    artifact = bundle.artifact("test_byobnet-fp32.onnx")
    runner = bundle.load(artifact)
    video = demo_corpus / "manipulated_sequences/SelfBlended/c23/videos/003_003.mp4"
    result = detect_video(video, bundle, artifact, runner)
    clips = [clip for split in ("train", "val", "test") for clip in store.clips(split)]
    prepared = next(clip for clip in clips if clip.video_id.startswith("SelfBlended-003-003"))
    assert result["clips"][0]["score"] == pytest.approx(float(runner(store.pixels(prepared)).mean()), abs=1e-6)
    assert result["frames"] == 30
    assert [clip["start_frame"] for clip in result["clips"]] == [0, 4, 8, 12, 16, 20, 24, 28]
    mean = np.average([clip["score"] for clip in result["clips"]], weights=[clip["frames"] for clip in result["clips"]])
    assert result["score"] == pytest.approx(mean)
    assert result["verdict"] == ("fake" if result["score"] > artifact.threshold.value else "real")


def test_smallest_runnable_artifact_is_the_default(bundle):
    chosen = bundle.chosen(None)
    assert chosen.scheme == "int8"
    assert evaluated_by(chosen.runtime) is None


def test_json_line_per_video_and_a_bad_file_does_not_stop_the_rest(bundle_path, demo_control, tmp_path, capsys):
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    good = demo_control / "real" / "000.mp4"
    with pytest.raises(StageError, match=r"text.mp4 cannot be read as a video: Invalid data"):
        detect([text, good], bundle_path, "test_byobnet-fp32.onnx", as_json=True)
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["video"] for line in lines] == [str(good)]


def test_unknown_artifact_lists_the_known(bundle):
    with pytest.raises(StageError, match=r"has no artifact 'x.pte'; it has test_byobnet-int8.pte"):
        bundle.chosen("x.pte")


def test_a_video_scored_by_evaluation_says_so(bundle_path, demo_control, capsys):
    if evaluated_by("coreml"):
        detect([demo_control / "real" / "000.mp4"], bundle_path, "test_byobnet-fp32.mlpackage", as_json=True)
        said = json.loads(capsys.readouterr().out)
        assert said["evaluated_by"] == "by Pocketproof, not by Core ML, which needs macOS"
        assert said["milliseconds"]["score_per_frame"] is None
