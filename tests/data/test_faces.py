"""Faces and tracks, against landmarks marked by hand, rasters of boxes and known movements of a photo."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from data.faces import DlibHog, Face, Track, iou
from data.video import Frame, Video

EYES_AND_MOUTH = np.array([[204, 101], [247, 103], [225, 146]])
NOSE = np.array([225, 120])
TALKING = Path(__file__).parents[3] / "shared" / "data" / "talking"


def centre(face: Face | None) -> NDArray[np.float64]:
    assert face is not None
    return (face.box[:2] + face.box[2:]) / 2


def assert_is_her_face(box: NDArray[np.float64], shift: tuple[int, int] = (0, 0), zoom: float = 1.0) -> None:
    """Assert that a box has the landmarks inside, their middle near its own, and the face's width."""
    box = (box - np.tile(shift, 2)) / zoom
    assert (box[:2] < EYES_AND_MOUTH).all()
    assert (box[2:] > EYES_AND_MOUTH).all()
    assert np.abs((box[:2] + box[2:]) / 2 - NOSE).max() < 12
    assert 80 < box[2] - box[0] < 110


def on_canvas(photo: Frame, x: int, y: int, height: int = 360, width: int = 640) -> Frame:
    """Put the photo's head, 180 x 180 pixels from (140, 30) on, on a grey canvas with its corner at (x, y)."""
    canvas = np.full((height, width, 3), 128, np.uint8)
    canvas[y : y + 180, x : x + 180] = photo[30:210, 140:320]
    return canvas


@pytest.mark.parametrize("scale", [0.9, 1.0, 1.5, 2.0])
def test_dlib_finds_the_astronaut_at_every_scale_in_frame_pixels(astronaut: Frame, scale: float) -> None:
    best = max(DlibHog().detect(astronaut, scale), key=lambda face: face.score)
    assert_is_her_face(best.box)
    assert best.score > 1.0


def test_dlib_finds_nothing_without_a_face() -> None:
    assert DlibHog().detect(np.full((360, 480, 3), 90, np.uint8), 1.0) == []


@pytest.mark.parametrize("size", [(1, 1), (3000, 2), (2, 3000)])
def test_track_finds_nothing_in_a_sliver(size: tuple[int, int]) -> None:
    assert Track(DlibHog()).find(np.zeros((*size, 3), np.uint8)) is None


def test_iou_is_the_share_of_common_pixels() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        corners = np.sort(rng.integers(0, 30, (2, 2, 2)), axis=1)
        corners[:, 1] += 1
        rasters = np.zeros((2, 32, 32), bool)
        for raster, ((x0, y0), (x1, y1)) in zip(rasters, corners, strict=True):
            raster[y0:y1, x0:x1] = True
        expected = (rasters[0] & rasters[1]).sum() / (rasters[0] | rasters[1]).sum()
        a, b = corners.reshape(2, 4).astype(float)
        assert iou(a, b) == pytest.approx(expected, abs=1e-12)


def test_track_follows_a_moving_face(astronaut: Frame) -> None:
    track = Track(DlibHog())
    corners = [(40 + 18 * n, 20 + 9 * n) for n in range(12)]
    for x, y in corners:
        face = track.find(on_canvas(astronaut, x, y))
        assert face is not None
        assert_is_her_face(face.box, (x - 140, y - 30))


def test_track_goes_on_after_frames_without_the_face(astronaut: Frame) -> None:
    track, empty = Track(DlibHog()), np.full((360, 640, 3), 128, np.uint8)
    assert track.find(empty) is None
    assert track.find(on_canvas(astronaut, 200, 80)) is not None
    assert [track.find(empty) for _ in range(3)] == [None] * 3
    face = track.find(on_canvas(astronaut, 210, 86))
    assert face is not None
    assert_is_her_face(face.box, (210 - 140, 86 - 30))


def test_track_stays_with_its_face_when_another_comes(astronaut: Frame) -> None:
    track = Track(DlibHog())
    first = centre(track.find(on_canvas(astronaut, 20, 90)))
    two = on_canvas(astronaut, 20, 90)
    two[:, 300:] = on_canvas(astronaut, 400, 90)[:, 300:]
    assert len(DlibHog().detect(two, 1.0)) == 2
    np.testing.assert_allclose(centre(track.find(two)), first, atol=6)
    assert track.find(on_canvas(astronaut, 400, 90)) is None


def test_track_starts_with_the_largest_face(astronaut: Frame) -> None:
    frame = on_canvas(astronaut, 20, 20)
    frame[30:318, 300:588] = cv2.resize(astronaut[30:210, 140:320], (288, 288))
    assert len(DlibHog().detect(frame, 1.0)) == 2
    face = Track(DlibHog()).find(frame)
    assert face is not None
    assert_is_her_face(face.box, (round(300 - 1.6 * 140), round(30 - 1.6 * 30)), zoom=1.6)


def test_a_face_too_small_for_the_first_look_is_found_at_full_size(astronaut: Frame) -> None:
    frame = on_canvas(astronaut, 700, 400, height=1080, width=1280)
    assert DlibHog().detect(frame, 360 / 1080) == []
    face = Track(DlibHog()).find(frame)
    assert face is not None
    assert_is_her_face(face.box, (700 - 140, 400 - 30))


@pytest.mark.parametrize(
    ("height", "looked_at"),
    [(200, [200]), (1080, [360, 720, 1080]), (1440, [360, 720, 1440]), (2160, [360, 720, 1440])],
)
def test_no_height_is_searched_twice(height: int, looked_at: list[int]) -> None:
    class Noting(DlibHog):
        heights: list[int]

        def detect(self, frame: Frame, scale: float) -> list[Face]:
            self.heights.append(round(frame.shape[0] * scale))
            return super().detect(frame, scale)

    detector = Noting()
    detector.heights = []
    assert Track(detector).find(np.zeros((height, 90, 3), np.uint8)) is None
    assert detector.heights == looked_at


def tracked(path: Path, count: int) -> Iterator[tuple[Frame, Face | None]]:
    track = Track(DlibHog())
    with Video(path) as video:
        for frame in islice(video.frames(), count):
            yield frame, track.find(frame)


@pytest.mark.skipif(not TALKING.is_dir(), reason=f"{TALKING} is missing")
@pytest.mark.parametrize("name", ["d10.mp4", "s18.mp4"])
def test_track_in_a_real_video_is_where_full_size_dlib_sees_the_face(name: str) -> None:
    for frame, face in tracked(TALKING / name, 4):
        assert face is not None
        assert max(iou(face.box, other.box) for other in DlibHog().detect(frame, 1.0)) > 0.6
