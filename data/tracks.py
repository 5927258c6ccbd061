"""Faces followed through a stream of frames: looked for on key frames, and in between only where something changed.

On a key frame (every STRIDE-th) a known face is looked for around where it was, on a part of the frame scaled so that
the face has the width that suits the detector. Where two looks agree and the pictures in between look alike, boxes in
between are interpolated; otherwise the detector looks at each frame. The whole frame is searched only for new faces.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from data.faces import Box, Face, FaceDetector, area, iou, whole
from data.picture import Picture

STRIDE = 6
SEARCH_EVERY = 30
"""Frames between two searches for newcomers at the cheapest scale, and at all scales while no face is known."""
SEARCH_ALL_EVERY = 150
FORGET_AFTER = 30
"""Frames without a face after which its track ends."""
REACH = 0.3
"""Share of a box's width by which a face is looked for around where it was."""
LARGEST_SCALE = 2.0
SAME_FACE_IOU = 0.3
STEADY_IOU = 0.55
ALIKE = 0.6
"""Least correlation of a face with its picture on the nearer key frame for it to be tracked without a look."""
ON_THE_LINE = 0.03
"""A box stays on the line between two looks unless this much more correlation is found beside it."""
SHIFT = 0.25
"""Share of the box's size by which a face may be off that line."""
PATCH = 32


@dataclass
class Seen:
    """A frame and the faces on it, by the number of their track."""

    picture: Picture
    faces: dict[int, Face] = field(default_factory=dict)


@dataclass
class _Live:
    """A track that may go on: where its face was last, when, and on the last key frame (None where unseen)."""

    last: Face
    at: int
    on_key: Face | None


def _around(picture: Picture, box: Box, grow: float) -> NDArray[np.float32]:
    """Return the luma of a box grown by ``grow`` of its size on each side, float32 [n, n], the box PATCH wide."""
    size = box[2:] - box[:2]
    x0, y0, x1, y1 = np.rint(np.concatenate([box[:2] - grow * size, box[2:] + grow * size])).astype(int)
    height, width = picture.size
    inside = picture.luma[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)]
    if inside.size == 0:
        return np.zeros((PATCH, PATCH), np.float32)
    side = round(PATCH * (1 + 2 * grow))
    step = max(1, min(inside.shape) // (2 * side))  # of a large face every step-th pixel is enough
    edges = (max(0, -y0), max(0, y1 - height), max(0, -x0), max(0, x1 - width))
    if any(edges):
        inside = np.asarray(cv2.copyMakeBorder(inside, *edges, cv2.BORDER_REPLICATE), np.uint8)
    return np.asarray(cv2.resize(inside[::step, ::step], (side, side), interpolation=cv2.INTER_AREA), np.float32)


def _placed(picture: Picture, box: Box, template: NDArray[np.float32]) -> Box | None:
    """Return the box moved to where the picture is like a template of its face, or None where it is not."""
    likeness = cv2.matchTemplate(_around(picture, box, SHIFT), template, cv2.TM_CCOEFF_NORMED)
    _, best, _, (x, y) = cv2.minMaxLoc(likeness)
    middle = likeness.shape[0] // 2
    if best < ALIKE:
        return None
    if likeness[middle, middle] > best - ON_THE_LINE:
        return box
    shift = (np.array([x, y]) - middle) / PATCH * (box[2:] - box[:2])
    return np.asarray(box + np.tile(shift, 2), np.float64)


class Tracker:
    """Follows the faces of one stream; ``every_face`` also looks for small ones while a large one is known."""

    def __init__(self, detector: FaceDetector, every_face: bool = False) -> None:
        self._detector = detector
        self._every_face = every_face
        self._live: dict[int, _Live] = {}
        self._tracks = 0
        self._key: Picture | None = None

    def follow(self, pictures: Iterable[Picture]) -> Iterator[Seen]:
        """Yield every frame with its faces, at most STRIDE frames behind what was read."""
        waiting: list[Seen] = []
        number = -1
        for number, picture in enumerate(pictures):
            if waiting and waiting[-1].picture.size != picture.size:
                yield from self._settle(waiting, number - 1)
                waiting = []
            waiting.append(Seen(picture))
            if number % STRIDE == 0:
                yield from self._settle(waiting, number)
                waiting = []
        yield from self._settle(waiting, number)

    def _settle(self, waiting: list[Seen], number: int) -> list[Seen]:
        """Find the faces on frames up to the key frame ``number``, the last of them."""
        if not waiting:
            return waiting
        key = waiting[-1].picture
        if self._key is not None and self._key.size != key.size:
            self._live, self._key = {}, None
        was_seen = any(track.on_key for track in self._live.values())
        for track, live in self._live.items():
            self._extend(track, live, self._look(key, live.last.box), waiting, number)
        for face in self._search(key, number, was_seen, waiting[-1].faces):
            self._begin(face, waiting, number)
        self._live = {t: live for t, live in self._live.items() if number - live.at <= FORGET_AFTER}
        self._key = key
        return waiting

    def _extend(self, track: int, live: _Live, face: Face | None, waiting: list[Seen], number: int) -> None:
        """Continue a track up to the key frame, where ``face`` was found or not."""
        before = live.on_key
        if face is not None and self._is_held(face, waiting[-1]):
            face = None
        if before is None and face is None:
            return
        found = self._tracked(before, face, waiting) or self._looked(before, face, waiting)
        if found[-1] is not None and self._is_held(found[-1], waiting[-1]):
            found[-1] = None
        for n, (seen, other) in enumerate(zip(waiting, found, strict=True), start=number + 1 - len(waiting)):
            if other is not None:
                seen.faces[track] = live.last = other
                live.at = n
        live.on_key = found[-1]

    @staticmethod
    def _is_held(face: Face, seen: Seen) -> bool:
        return any(iou(face.box, other.box) > STEADY_IOU for other in seen.faces.values())

    def _tracked(self, before: Face | None, after: Face | None, waiting: list[Seen]) -> list[Face | None] | None:
        """Return faces near the line from one look to the next, or None where a picture in between is unlike both."""
        if before is None or after is None or self._key is None or iou(before.box, after.box) < STEADY_IOU:
            return None
        templates = _around(self._key, before.box, 0.0), _around(waiting[-1].picture, after.box, 0.0)
        faces: list[Face | None] = []
        for seen, share in zip(waiting[:-1], np.linspace(0.0, 1.0, len(waiting) + 1)[1:-1], strict=True):
            line = before.box + share * (after.box - before.box)
            box = _placed(seen.picture, line, templates[int(share > 0.5)])
            if box is None:
                return None
            faces.append(Face(box, float("nan")))
        return [*faces, after]

    def _looked(self, before: Face | None, after: Face | None, waiting: list[Seen]) -> list[Face | None]:
        """Look at each frame, from the ends where the face is known: first back from the key frame, then onwards."""
        found: list[Face | None] = [*[None] * (len(waiting) - 1), after]
        numbers = range(len(waiting))
        for last, order in ((after, numbers[::-1]), (before, numbers)):
            if last is None:
                continue
            for n in order:
                found[n] = found[n] or self._look(waiting[n].picture, last.box)
                last = found[n] or last
        return found

    def _look(self, picture: Picture, box: Box) -> Face | None:
        """Find a face again around where it was."""
        width = float(box[2] - box[0])
        region = box + REACH * width * np.array([-1.0, -1.0, 1.0, 1.0])
        faces = self._detector.detect(picture, region, min(LARGEST_SCALE, self._detector.followed_width / width))
        near = [face for face in faces if iou(face.box, box) > SAME_FACE_IOU]
        return max(near, key=lambda face: iou(face.box, box), default=None)

    def _search(self, picture: Picture, number: int, was_seen: bool, known: dict[int, Face]) -> list[Face]:
        """Find faces that no track holds, large ones first; smaller ones only if there is no other or all count."""
        lost = was_seen and not known
        fully = lost or number % (SEARCH_ALL_EVERY if known else SEARCH_EVERY) == 0
        if not (fully or not known or number % SEARCH_EVERY == 0):
            return []
        height = picture.size[0]
        heights = sorted({min(sought, height) for sought in self._detector.sought_heights})
        held, new = [face.box for face in known.values()], list[Face]()
        if not fully:
            heights = heights[:1]
        elif self._every_face:
            heights = heights[-1:]  # it shows what the others do; they are a short cut to a large face
        for sought in heights:
            if held and sought > heights[0]:
                break
            faces = self._detector.detect(picture, whole(picture), sought / height)
            for face in sorted(faces, key=lambda face: -area(face.box)):
                if all(iou(face.box, box) <= SAME_FACE_IOU for box in held):
                    new.append(face)
                    held.append(face.box)
        return new

    def _begin(self, face: Face, waiting: list[Seen], number: int) -> None:
        """Take up a track that was lost near a found face, or a new one, and look back to where it began."""
        near = [t for t, live in self._live.items() if not live.on_key and iou(live.last.box, face.box) > SAME_FACE_IOU]
        track = max(near, key=lambda t: area(self._live[t].last.box), default=self._tracks)
        self._tracks += track == self._tracks
        live = self._live.setdefault(track, _Live(face, number, None))
        self._extend(track, live, face, waiting, number)
