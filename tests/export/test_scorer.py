"""Videos scored by a clip student: in steps as its runner does, each frame embedded once, and what has no score."""

import dataclasses

import av
import numpy as np
import pytest

from data.video import Video, write_video
from export.bundle import Bundle
from export.scorer import NothingToScore, VideoScorer
from stage import StageError
from tests.export.clip_student import NAME, clip_bundle


@pytest.fixture(scope="module")
def of_clips(demo_store, tmp_path_factory):
    """The bundle of a clip student."""
    return Bundle(clip_bundle(demo_store, tmp_path_factory))


def test_a_clip_student_s_score_is_the_runner_s(of_clips, demo_corpus, opened_store):
    artifact = of_clips.artifact(f"{NAME}-onnx")
    runner = of_clips.load(artifact)
    video = demo_corpus / "manipulated_sequences/SelfBlended/c23/videos/003_003.mp4"
    found = VideoScorer.load(of_clips, artifact.file).detect(video)
    clips = [clip for split in ("train", "val", "test") for clip in opened_store.clips(split)]
    prepared = next(clip for clip in clips if clip.video_id.startswith("SelfBlended-003-003"))
    expected = float(runner(opened_store.pixels(prepared)[None], prepared.valid[None])[0])
    assert found.clips[0].score == pytest.approx(expected, abs=1e-6)
    # One begins every two frames; the last ends with the video.
    assert [clip.start_frame for clip in found.clips] == list(range(0, 28, 2))
    assert {clip.frames for clip in found.clips} == {4}
    assert found.score == pytest.approx(np.mean([clip.score for clip in found.clips]))
    assert (found.frames_read, found.frames_used) == (30, 30)
    assert found.milliseconds.embed > 0 and found.milliseconds.score > 0


def test_a_clip_student_embeds_each_frame_once(of_clips, demo_corpus):
    video = demo_corpus / "manipulated_sequences/SelfBlended/c23/videos/003_003.mp4"
    scorer, embedded = VideoScorer.load(of_clips, f"{NAME}-onnx"), []

    def counted(name):
        program = scorer.programs(name)
        return (lambda crops: embedded.append(len(crops)) or program(crops)) if name == "embed" else program

    found = dataclasses.replace(scorer, programs=counted).detect(video)
    assert sum(embedded) == 30 and len(found.clips) == 14
    whole = VideoScorer.load(of_clips, "test_tiny-whole-clip-fp32.onnx").detect(video)
    assert [clip.score for clip in whole.clips] == pytest.approx([clip.score for clip in found.clips], abs=1e-5)
    assert whole.milliseconds.embed is None


def test_a_photo_is_refused_by_a_clip_student(of_clips, tmp_path):
    with pytest.raises(StageError, match=r"face.jpg is a photo, and test_tiny-clip-fp32-onnx scores clips"):
        VideoScorer.load(of_clips, f"{NAME}-onnx").detect(tmp_path / "face.jpg")


def test_clip_with_too_few_frames_is_nothing_to_score(of_clips, demo_corpus):
    video = demo_corpus / "manipulated_sequences/SelfBlended/c23/videos/003_003.mp4"
    manifest = of_clips.manifest
    longer = manifest.model_copy(update={"clip": manifest.clip.model_copy(update={"frames": 61})})
    scorer = dataclasses.replace(VideoScorer.load(of_clips, f"{NAME}-onnx"), manifest=longer)
    with pytest.raises(NothingToScore, match=r"^there are only 30 of a clip's 61 frames in .*003_003\.mp4: ") as found:
        scorer.detect(video)
    assert (found.value.status, found.value.what) == ("too_short", "there are only 30 of a clip's 61 frames")


def test_what_is_to_be_known_of_frames_is_told(of_clips, demo_corpus, tmp_path):
    video, interlaced = demo_corpus / "manipulated_sequences/SelfBlended/c23/videos/003_003.mp4", tmp_path / "a.mp4"
    with Video(video) as opened, av.open(str(interlaced), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"x264-params": "interlaced=1", "crf": "10"})
        stream.height, stream.width = next(opened.pictures()).rgb.shape[:2]
        stream.pix_fmt = "yuv420p"
        for picture in opened.pictures(1):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture.rgb, format="rgb24")))
        container.mux(stream.encode(None))
    scorer = VideoScorer.load(of_clips, f"{NAME}-onnx")
    assert scorer.detect(video).reason == ""
    assert scorer.detect(interlaced).reason == "interlaced: what moves has combs"


def test_clip_whose_face_goes_away_has_no_face(of_clips, astronaut, tmp_path):
    write_video(tmp_path / "gone.mp4", [astronaut[:256, 80:336]] * 3 + [np.zeros((256, 256, 3), np.uint8)] * 33)
    manifest = of_clips.manifest
    longer = manifest.model_copy(update={"clip": manifest.clip.model_copy(update={"frames": 40})})
    scorer = dataclasses.replace(VideoScorer.load(of_clips, f"{NAME}-onnx"), manifest=longer)
    wanted = r"^no face was found in half of 40 frames on end, of which there are 36 in .*gone\.mp4: "
    with pytest.raises(NothingToScore, match=wanted) as found:
        scorer.detect(tmp_path / "gone.mp4")
    assert found.value.status == "no_face"
