"""detect: the same crops, frames and scores as prepare and the artifact give, and where the time went."""

import contextlib
import functools
import json
import shutil
from types import SimpleNamespace

import dlib
import numpy as np
import pytest
from PIL import Image

from data.store import ClipStore
from data.video import write_video
from export.bundle import Bundle
from export.detect import detect
from export.runtimes import evaluated_by
from export.scorer import EmbeddingCache, NothingToScore, VideoScorer
from stage import StageError


@pytest.fixture(scope="module")
def bundle(bundle_path):
    return Bundle(bundle_path)


def test_first_clip_scores_as_the_prepared_clip(bundle, demo_corpus, demo_store):
    store = ClipStore(demo_store)
    artifact = bundle.artifact("test_byobnet-fp32.onnx")
    runner = bundle.load(artifact)
    video = demo_corpus / "manipulated_sequences/SelfBlended/c23/videos/003_003.mp4"
    found = VideoScorer.load(bundle, artifact.file).detect(video)
    result = found.model_dump()
    clips = [clip for split in ("train", "val", "test") for clip in store.clips(split)]
    prepared = next(clip for clip in clips if clip.video_id.startswith("SelfBlended-003-003"))
    assert result["clips"][0]["score"] == pytest.approx(float(runner(store.pixels(prepared)).mean()), abs=1e-6)
    assert (found.frames_read, found.frames_used, found.faces_missed) == (30, 30, 0)
    assert [clip["start_frame"] for clip in result["clips"]] == [0, 4, 8, 12, 16, 20, 24, 28]
    mean = np.average([clip["score"] for clip in result["clips"]], weights=[clip["frames"] for clip in result["clips"]])
    assert result["score"] == pytest.approx(mean)
    assert result["verdict"] == ("fake" if result["score"] > artifact.threshold.value else "real")
    spent = found.milliseconds
    assert min(spent.decode, spent.faces, spent.crop, spent.score) > 0 and spent.embed is None
    assert spent.whole >= spent.decode + spent.faces + spent.crop + spent.score


def test_milliseconds_are_neither_of_a_download_nor_of_building_the_detector(bundle, astronaut, tmp_path, monkeypatch):
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr("export.stopwatch.time", clock)

    @contextlib.contextmanager
    def slow(path):
        clock.now += 60.0
        yield path

    def build():
        clock.now += 60.0
        return dlib.get_frontal_face_detector()

    monkeypatch.setattr("export.scorer.fetched", slow)
    monkeypatch.setattr("data.faces._frontal_face_detector", functools.cache(build))
    write_video(tmp_path / "face.mp4", [astronaut[:256, 80:336]] * 4)
    found = VideoScorer.load(bundle, "test_byobnet-fp32.onnx").detect(tmp_path / "face.mp4")
    assert clock.now == 120.0 and found.milliseconds.whole == found.milliseconds.faces == 0.0


def test_frames_without_a_face_are_counted(bundle, astronaut, tmp_path):
    black = np.zeros((256, 256, 3), np.uint8)
    face = astronaut[:256, 80:336]
    write_video(tmp_path / "gap.mp4", [*[black] * 12, *[face] * 18, *[black] * 12])
    found = VideoScorer.load(bundle, "test_byobnet-fp32.onnx").detect(tmp_path / "gap.mp4")
    assert found.frames_read == 42 and 22 <= found.faces_missed <= 26
    assert found.frames_used + found.faces_missed >= 42 and found.clips[0].start_frame in (11, 12, 13)
    write_video(tmp_path / "black.mp4", [black] * 7)
    with pytest.raises(NothingToScore, match=r"no face was found in .*black.mp4: there is nothing to score"):
        VideoScorer.load(bundle, "test_byobnet-fp32.onnx").detect(tmp_path / "black.mp4")


def test_an_artifact_that_gives_no_number_gives_no_verdict(bundle, astronaut, tmp_path):
    write_video(tmp_path / "face.mp4", [astronaut[:256, 80:336]] * 4)
    scorer = VideoScorer(
        bundle.manifest,
        bundle.artifact("test_byobnet-fp32.onnx"),
        lambda _: lambda crops: np.full(len(crops), np.nan, np.float32),
    )
    with pytest.raises(StageError, match=r"test_byobnet-fp32.onnx gives no number for frames of .*face.mp4"):
        scorer.detect(tmp_path / "face.mp4")


def test_a_photo_is_a_clip_of_one_frame(bundle, astronaut, tmp_path, capsys):
    Image.fromarray(astronaut).save(tmp_path / "face.png")
    detect([tmp_path / "face.png"], bundle.path, as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert (said["frames_read"], said["frames_used"], len(said["clips"])) == (1, 1, 1)
    with pytest.raises(StageError, match=r"--annotate is for videos, and .*face.png is a photo"):
        detect([tmp_path / "face.png"], bundle.path, annotate=tmp_path / "x.mp4")


def test_folders_stand_for_what_is_below_them(bundle, demo_control, tmp_path, capsys):
    detect([demo_control / "real"], bundle.path, "test_byobnet-fp32.onnx")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [str(demo_control / "real" / f"00{n}.mp4") for n in range(3)]
    with pytest.raises(StageError, match=r"holds no video and no photo$"):
        detect([tmp_path], bundle.path)


def test_files_of_formats_that_are_not_read_are_named(bundle, demo_control, tmp_path, capsys):
    (tmp_path / "IMG_1.HEIC").touch()
    with pytest.raises(StageError, match=r"no photo of a format that is read \(it has IMG_1.HEIC\)"):
        detect([tmp_path], bundle.path)
    shutil.copy(demo_control / "real" / "000.mp4", tmp_path)
    (tmp_path / "notes.txt").touch()
    (tmp_path / "folder.gif").mkdir()
    detect([tmp_path], bundle.path, "test_byobnet-fp32.onnx")
    said = capsys.readouterr()
    assert said.err.strip() == f"note: 1 files of {tmp_path} are of formats that are not read: IMG_1.HEIC."
    assert [line.split(":")[0] for line in said.out.splitlines()] == [str(tmp_path / "000.mp4")]


def test_what_was_embedded_is_not_embedded_again():
    calls = []

    def embed(crops):
        calls.append(crops[:, 0, 0, 0].tolist())
        return crops.reshape(len(crops), -1)[:, :2].astype(np.float32)

    crops = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    remembered = EmbeddingCache(embed)
    for places in ([0, 1, 2, 3], [2, 3, 4, 5], [5, 5, 0]):
        np.testing.assert_array_equal(remembered(crops[places])[:, 0], places)
    assert calls == [[0, 1, 2, 3], [4, 5], [0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 2}, "--workers and --ray are for a table of many videos: give --out scores.parquet too"),
        ({"ray": "local"}, "--workers and --ray are for a table"),
        ({"annotate": "a.mp4", "out": "t.parquet"}, "--annotate is for one video, without --out"),
        ({"as_json": True, "out": "t.parquet"}, "--json is for what is printed: the table of --out has the same"),
    ],
)
def test_options_that_do_not_go_together(bundle, demo_control, tmp_path, options, message):
    given = {name: tmp_path / value if name in ("annotate", "out") else value for name, value in options.items()}
    with pytest.raises(StageError, match=message):
        detect([demo_control / "real" / "000.mp4"], bundle.path, **given)
    assert list(tmp_path.iterdir()) == []


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
        assert said["milliseconds"]["score"] is None and said["milliseconds"]["decode"] > 0
