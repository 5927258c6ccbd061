"""Faces in frames: dlib's HOG detector (Dalal & Triggs, CVPR 2005) and one track through a video."""

import functools
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from data.video import Frame

SEARCH_HEIGHTS = (360, 720, 1440)
"""Heights in pixels at which a face is searched while none is known: large faces first, because that is cheap."""
TRACKED_FACE = 110
"""Width in pixels to which a known face is scaled; dlib's HOG window needs 80."""
SAME_FACE_IOU = 0.3


@dataclass(frozen=True)
class Face:
    """One detected face: box float64 [4] as x0, y0, x1, y1 in frame pixels, and the detector's score."""

    box: NDArray[np.float64]
    score: float


def iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the intersection over union of two boxes ``[x0, y0, x1, y1]``."""
    overlap = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    if (overlap <= 0).any():
        return 0.0
    intersection = float(overlap.prod())
    return intersection / (float((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod()) - intersection)


@functools.cache
def _frontal_face_detector() -> Any:
    """Build dlib's detector once a process: it takes a third of a second."""
    import dlib

    return dlib.get_frontal_face_detector()


class DlibHog:
    """dlib's frontal face detector on a grey picture scaled by the caller."""

    def __init__(self) -> None:
        self._detector = _frontal_face_detector()

    def detect(self, frame: Frame, scale: float) -> list[Face]:
        """Find faces in a frame, uint8 [H, W, 3] RGB, scaled by ``scale``; boxes come back in frame pixels."""
        if min(frame.shape[:2]) * scale < 1:
            return []
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        if scale != 1.0:
            kernel = cv2.INTER_AREA if scale < 1.0 else cv2.INTER_LINEAR
            grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=kernel)
        rectangles, scores, _ = self._detector.run(grey, 0, 0.0)
        return [
            Face(np.array([r.left(), r.top(), r.right() + 1, r.bottom() + 1], np.float64) / scale, float(score))
            for r, score in zip(rectangles, scores, strict=True)
        ]


class Track:
    """The largest face of the first frame that has one, followed through the frames after it."""

    def __init__(self, detector: DlibHog) -> None:
        self._detector = detector
        self._last: Face | None = None

    def _search(self, frame: Frame) -> Face | None:
        height = frame.shape[0]
        for target in sorted({min(known, height) for known in SEARCH_HEIGHTS}):
            faces = self._detector.detect(frame, target / height)
            if faces:
                return max(faces, key=lambda face: float((face.box[2:] - face.box[:2]).prod()))
        return None

    def find(self, frame: Frame) -> Face | None:
        """Return the tracked face in the next frame, uint8 [H, W, 3] RGB, or None where it is not seen."""
        if self._last is None:
            self._last = self._search(frame)
            return self._last
        last = self._last.box
        scale = min(1.0, TRACKED_FACE / float(last[2] - last[0]))
        same = [face for face in self._detector.detect(frame, scale) if iou(face.box, last) > SAME_FACE_IOU]
        if not same:
            return None
        self._last = max(same, key=lambda face: iou(face.box, last))
        return self._last
