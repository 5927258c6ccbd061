"""Face tracking through a stream of frames: detection on key frames, and in between only where something changed.

On a key frame (every STRIDE-th) a known face is detected around its last place, on a part of the frame scaled so that
the face has the width that suits the detector. If two detections agree and the pictures in between look alike, the
boxes in between are interpolated; otherwise the detector runs on each frame. Only new faces are sought in whole frames.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from data.faces import Box, Face, FaceDetector, area, iou, whole
from data.picture import Picture, UnreadableVideo

STRIDE = 6
"""Frames from one key frame to the next."""
SEARCH_EVERY = 30
"""Frames between searches for new faces at the cheapest scale, or at all scales while no face is known."""
SEARCH_ALL_EVERY = 150
"""Frames between searches for new faces at all scales while a face is known."""
FORGET_AFTER = 30
"""Frames without a face after which its track ends."""
REACH = 0.3
"""Margin, as a share of a box's width, of the region around it in which its face is detected again."""
LARGEST_SCALE = 2.0
"""Largest factor by which a region is enlarged for the detector."""
SAME_FACE_IOU = 0.3
"""IoU above which two boxes are of the same face."""
STEADY_IOU = 0.55
"""Least IoU of a face's boxes on two key frames for interpolation; above it, a face belongs to another track."""
ALIKE = 0.6
"""Least correlation of a face with its picture on the nearer key frame for it to be followed without detection."""
ON_THE_LINE = 0.03
"""A box stays on the line between two detections unless the correlation beside it is larger by this much."""
SHIFT = 0.25
"""Share of the box's size by which a face may be off that line."""
PATCH = 32
"""Width in pixels to which faces are scaled for correlation."""


@dataclass
class Seen:
    """A frame and its faces, by track number."""

    picture: Picture
    faces: dict[int, Face] = field(default_factory=dict)


@dataclass
class _Live:
    """A track that may go on: its last face, that face's frame number, and its face on the last key frame or None."""

    last: Face
    last_number: int
    on_key: Face | None


def _around(picture: Picture, box: Box, grow: float) -> NDArray[np.float32]:
    """Return the luma of a box grown by ``grow`` of its size on each side, float32 [n, n], the box PATCH wide."""
    size = box[2:] - box[:2]
    x0, y0, x1, y1 = np.rint(np.concatenate([box[:2] - grow * size, box[2:] + grow * size])).astype(int)
    height, width = picture.size
    region = picture.luma[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)]
    if region.size == 0:
        return np.zeros((PATCH, PATCH), np.float32)
    side = round(PATCH * (1 + 2 * grow))
    step = max(1, min(region.shape) // (2 * side))  # for a large face every step-th pixel is enough
    edges = (max(0, -y0), max(0, y1 - height), max(0, -x0), max(0, x1 - width))
    if any(edges):
        region = np.asarray(cv2.copyMakeBorder(region, *edges, cv2.BORDER_REPLICATE), np.uint8)
    return np.asarray(cv2.resize(region[::step, ::step], (side, side), interpolation=cv2.INTER_AREA), np.float32)


def _placed(picture: Picture, box: Box, template: NDArray[np.float32]) -> Box | None:
    """Return the box moved to the place of highest correlation with its face's template, or None if it is too low."""
    correlation = cv2.matchTemplate(_around(picture, box, SHIFT), template, cv2.TM_CCOEFF_NORMED)
    _, best, _, (x, y) = cv2.minMaxLoc(correlation)
    middle = correlation.shape[0] // 2
    if best < ALIKE:
        return None
    if correlation[middle, middle] > best - ON_THE_LINE:
        return box
    shift = (np.array([x, y]) - middle) / PATCH * (box[2:] - box[:2])
    return np.asarray(box + np.tile(shift, 2), np.float64)


class Tracker:
    """Follows the faces of one stream; with ``every_face`` small ones are sought even while a large one is known."""

    def __init__(self, detector: FaceDetector, every_face: bool = False) -> None:
        self._detector = detector
        self._every_face = every_face
        self._live: dict[int, _Live] = {}
        self._tracks = 0
        self._key: Picture | None = None

    def follow(self, pictures: Iterable[Picture]) -> Iterator[Seen]:
        """Yield every frame with its faces, at most STRIDE frames after it was read.

        Raises UnreadableVideo where the stream of pictures breaks, after the frames before.
        """
        pending: list[Seen] = []
        number = -1
        try:
            for number, picture in enumerate(pictures):
                if pending and pending[-1].picture.size != picture.size:
                    yield from self._find_faces(pending, number - 1)
                    pending = []
                pending.append(Seen(picture))
                if number % STRIDE == 0:
                    yield from self._find_faces(pending, number)
                    pending = []
        except UnreadableVideo:
            yield from self._find_faces(pending, number)  # they may end a clip
            raise
        yield from self._find_faces(pending, number)

    def _find_faces(self, pending: list[Seen], number: int) -> list[Seen]:
        """Find the faces on the pending frames, of which the last is the key frame ``number``; return these frames."""
        if not pending:
            return pending
        key = pending[-1].picture
        if self._key is not None and self._key.size != key.size:
            self._live, self._key = {}, None
        had_face = any(track.on_key for track in self._live.values())
        for track, live in self._live.items():
            self._extend(track, live, self._detect_near(key, live.last.box), pending, number)
        for face in self._search(key, number, had_face, pending[-1].faces):
            self._start_track(face, pending, number)
        self._live = {t: live for t, live in self._live.items() if number - live.last_number <= FORGET_AFTER}
        self._key = key
        return pending

    def _extend(self, track: int, live: _Live, face: Face | None, pending: list[Seen], number: int) -> None:
        """Extend a track up to the key frame ``number``; ``face`` is its face there, or None."""
        before = live.on_key
        if face is not None and self._is_taken(face, pending[-1]):
            face = None
        if before is None and face is None:
            return
        faces = self._interpolated(before, face, pending) or self._detected_each(before, face, pending)
        if faces[-1] is not None and self._is_taken(faces[-1], pending[-1]):
            faces[-1] = None
        first = number + 1 - len(pending)
        for frame_number, (frame, frame_face) in enumerate(zip(pending, faces, strict=True), start=first):
            if frame_face is not None:
                frame.faces[track] = live.last = frame_face
                live.last_number = frame_number
        live.on_key = faces[-1]

    @staticmethod
    def _is_taken(face: Face, frame: Seen) -> bool:
        """Tell whether a face on a frame already belongs to another track."""
        return any(iou(face.box, known.box) > STEADY_IOU for known in frame.faces.values())

    def _interpolated(self, before: Face | None, after: Face | None, pending: list[Seen]) -> list[Face | None] | None:
        """Return faces near the line from one detection to the next, or None if a picture in between is unlike both."""
        if before is None or after is None or self._key is None or iou(before.box, after.box) < STEADY_IOU:
            return None
        templates = _around(self._key, before.box, 0.0), _around(pending[-1].picture, after.box, 0.0)
        faces: list[Face | None] = []
        for frame, share in zip(pending[:-1], np.linspace(0.0, 1.0, len(pending) + 1)[1:-1], strict=True):
            line = before.box + share * (after.box - before.box)
            box = _placed(frame.picture, line, templates[int(share > 0.5)])
            if box is None:
                return None
            faces.append(Face(box, float("nan")))
        return [*faces, after]

    def _detected_each(self, before: Face | None, after: Face | None, pending: list[Seen]) -> list[Face | None]:
        """Detect a face on each frame from the ends where it is known: first back from the key frame, then forwards."""
        faces: list[Face | None] = [*[None] * (len(pending) - 1), after]
        indices = range(len(pending))
        for last, order in ((after, indices[::-1]), (before, indices)):
            if last is None:
                continue
            for index in order:
                faces[index] = faces[index] or self._detect_near(pending[index].picture, last.box)
                last = faces[index] or last
        return faces

    def _detect_near(self, picture: Picture, box: Box) -> Face | None:
        """Return the face detected around ``box`` that overlaps it most, or None."""
        width = float(box[2] - box[0])
        region = box + REACH * width * np.array([-1.0, -1.0, 1.0, 1.0])
        faces = self._detector.detect(picture, region, min(LARGEST_SCALE, self._detector.followed_width / width))
        candidates = [face for face in faces if iou(face.box, box) > SAME_FACE_IOU]
        return max(candidates, key=lambda face: iou(face.box, box), default=None)

    def _search(self, picture: Picture, number: int, had_face: bool, known: dict[int, Face]) -> list[Face]:
        """Return faces that no track has, large ones first; small ones only if there is no other or ``every_face``."""
        lost = had_face and not known
        fully = lost or number % (SEARCH_ALL_EVERY if known else SEARCH_EVERY) == 0
        if not (fully or not known or number % SEARCH_EVERY == 0):
            return []
        height = picture.size[0]
        heights = sorted({min(target_height, height) for target_height in self._detector.sought_heights})
        known_boxes, new_faces = [face.box for face in known.values()], list[Face]()
        if not fully:
            heights = heights[:1]
        for target_height in heights:
            # A large face has the box of the least height that shows it, whether small ones are sought or not.
            if known_boxes and target_height > heights[0] and not self._every_face:
                break
            faces = self._detector.detect(picture, whole(picture), target_height / height)
            for face in sorted(faces, key=lambda face: -area(face.box)):
                if all(iou(face.box, box) <= SAME_FACE_IOU for box in known_boxes):
                    new_faces.append(face)
                    known_boxes.append(face.box)
        return new_faces

    def _start_track(self, face: Face, pending: list[Seen], number: int) -> None:
        """Resume a lost track near a detected face, or start a new one, and follow it back to where it began."""
        lost = [t for t, live in self._live.items() if not live.on_key and iou(live.last.box, face.box) > SAME_FACE_IOU]
        track = max(lost, key=lambda t: area(self._live[t].last.box), default=self._tracks)
        self._tracks += track == self._tracks
        live = self._live.setdefault(track, _Live(face, number, None))
        self._extend(track, live, face, pending, number)
