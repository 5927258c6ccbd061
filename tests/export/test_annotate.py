"""The annotated copy: every frame, the box where the face is, the score as a line and as a word."""

import numpy as np
import pytest

from data.video import Video, write_video
from export.annotate import BLUE, RED
from export.bundle import Bundle
from export.detect import detect
from stage import StageError

FILE = "test_byobnet-fp32.onnx"


@pytest.fixture(scope="module")
def frames(astronaut):
    black = np.zeros((256, 256, 3), np.uint8)
    return [*[black] * 6, *[astronaut[:256, 80:336]] * 12]


def _near(pixels, colour):
    return (np.abs(pixels.astype(int) - colour).max(axis=-1) < 40).sum()


def test_the_copy_shows_box_and_scores(frames, bundle_path, tmp_path, capsys):
    write_video(tmp_path / "face.mp4", frames, 30)
    detect([tmp_path / "face.mp4"], bundle_path, FILE, annotate=tmp_path / "out.mp4")
    threshold = Bundle(bundle_path).artifact(FILE).threshold.value
    colour = RED if float(capsys.readouterr().out.split("P(fake) ")[1].split()[0]) > threshold else BLUE
    with Video(tmp_path / "out.mp4") as video:
        drawn = [picture.rgb for picture in video.pictures()]
        assert video.info.fps == 30 and (video.info.width, video.info.height) == (256, 304)
    assert len(drawn) == 18
    assert np.abs(drawn[0][30:256].astype(int)).mean() < 3  # below the verdict: no face, no box
    assert _near(drawn[0][256:], colour) == 0
    assert _near(drawn[-1][:256], colour) > 100
    assert _near(drawn[-1][256:], colour) > _near(drawn[9][256:], colour) > 20  # the line grows
    inside = np.abs(drawn[-1][:256].astype(int) - frames[-1]).max(axis=-1) < 40
    assert inside.mean() > 0.8


def test_a_rate_that_is_not_known_is_said(frames, bundle_path, tmp_path, capsys, monkeypatch):
    write_video(tmp_path / "face.mp4", frames, 30)
    monkeypatch.setattr("data.video.LARGEST_RATE", 0.0)
    detect([tmp_path / "face.mp4"], bundle_path, FILE, annotate=tmp_path / "out.mp4")
    assert "face.mp4 tells no frame rate: " in (said := capsys.readouterr().err)
    assert said.endswith("out.mp4 has 25 frames a second\n")
    monkeypatch.undo()
    with Video(tmp_path / "out.mp4") as video:
        assert (video.info.fps, video.count()) == (25.0, 18)


def test_nothing_is_overwritten(frames, bundle_path, tmp_path):
    write_video(tmp_path / "face.mp4", frames)
    with pytest.raises(StageError, match=r"--annotate .*face.avi is not an .mp4: name one"):
        detect([tmp_path / "face.mp4"], bundle_path, FILE, annotate=tmp_path / "face.avi")
    with pytest.raises(StageError, match=r"face.mp4 already exists: remove it or give another --annotate$"):
        detect([tmp_path / "face.mp4"], bundle_path, FILE, annotate=tmp_path / "face.mp4")
    with pytest.raises(StageError, match="--annotate is for one video, without --out"):
        detect([tmp_path / "face.mp4", tmp_path / "b.mp4"], bundle_path, FILE, annotate=tmp_path / "x.mp4")
