"""Clips of one tracked face out of a stream of frames: what prepare stores and detect scores."""

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.faces import Face, area
from data.picture import Picture
from data.tracks import Seen

BRIDGED_FRAMES = 5
"""A gap of at most this many frames without a face is bridged by interpolated boxes; a longer one is not valid."""


def bridge(faces: Sequence[Face | None]) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """Fill gaps in a track: boxes float32 [T, 4], scores float32 [T], valid bool [T].

    A score is NaN where the face was followed between two looks, and 0 where it was not seen. Boxes in gaps are
    interpolated linearly, and held at the ends. Needs at least one face.
    """
    seen = np.array([index for index, face in enumerate(faces) if face is not None])
    boxes = np.stack([face.box for face in faces if face is not None])
    everywhere = np.arange(len(faces))
    filled = np.stack([np.interp(everywhere, seen, boxes[:, side]) for side in range(4)], axis=-1)
    scores = np.array([0.0 if face is None else face.score for face in faces], np.float32)
    edges = np.concatenate([[-1], seen, [len(faces)]])
    gap = np.diff(edges) - 1
    valid = np.ones(len(faces), np.bool_)
    for start, length in zip(edges[:-1] + 1, gap, strict=True):
        valid[start : start + length] = length <= BRIDGED_FRAMES
    return filled.astype(np.float32), scores, valid


@dataclass(frozen=True)
class FaceClip:
    """Consecutive frames, and one face followed through them."""

    start: int
    """Number of the first frame in the stream."""
    track: int
    pictures: list[Picture]
    faces: list[Face | None]

    def __len__(self) -> int:
        return len(self.faces)

    @property
    def boxes(self) -> NDArray[np.float32]:
        """Boxes in pixels, float32 [T, 4], gaps filled."""
        return self._bridged[0]

    @property
    def scores(self) -> NDArray[np.float32]:
        """The detector's scores, float32 [T]: NaN between two looks, 0 where no face was seen."""
        return self._bridged[1]

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Which frames count, bool [T]: False in gaps that are too long to bridge."""
        return self._bridged[2]

    @functools.cached_property
    def _bridged(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
        return bridge(self.faces)

    @property
    def steady(self) -> bool:
        """Whether at least half of the frames count (``valid``)."""
        return 2 * int(self.valid.sum()) >= len(self)


def face_clips(stream: Iterable[Seen], length: int, hop: int | None = None) -> Iterator[list[FaceClip]]:
    """Cut a stream into stretches of ``length`` frames, each from a frame with a face on.

    One begins ``hop`` frames after another at the earliest: None for one after another, less than ``length`` for
    stretches that overlap. Yields each stretch's clips, one per face: steady ones first, larger faces first. The last
    stretch may be shorter; frames before a face are in none, and none spans a change of the frames' size. Holds one
    stretch in memory.
    """
    stretch: list[Seen] = []
    fresh = 0  # of the frames held, those that were in no stretch before
    for number, frame in enumerate(stream):
        if stretch and frame.picture.size != stretch[0].picture.size:
            if fresh:
                yield _clips_of(stretch, number - len(stretch))
            stretch, fresh = [], 0
        if stretch or frame.faces:
            stretch.append(frame)
            fresh += 1
        if len(stretch) == length:
            yield _clips_of(stretch, number + 1 - length)
            stretch, fresh = _from_a_face(stretch[hop or length :]), 0
    if fresh:
        yield _clips_of(stretch, number + 1 - len(stretch))


def _from_a_face(frames: list[Seen]) -> list[Seen]:
    return list(itertools.dropwhile(lambda frame: not frame.faces, frames))


def _clips_of(stretch: list[Seen], start: int) -> list[FaceClip]:
    pictures = [frame.picture for frame in stretch]
    tracks = sorted({track for frame in stretch for track in frame.faces})
    clips = [FaceClip(start, track, pictures, [frame.faces.get(track) for frame in stretch]) for track in tracks]

    def typical_area(clip: FaceClip) -> float:
        return float(np.median([area(face.box) for face in clip.faces if face is not None]))

    return sorted(clips, key=lambda clip: (not clip.steady, -typical_area(clip)))
