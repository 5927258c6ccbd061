"""Clips of one tracked face out of a stream of frames: what prepare stores and detect scores."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from data.faces import DlibHog, Face, Track
from data.video import Frame

BRIDGED_FRAMES = 5
"""A gap of at most this many frames without a face is bridged by interpolated boxes; a longer one is not valid."""


def bridge(faces: Sequence[Face | None]) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """Fill gaps in a track: boxes float32 [T, 4], scores float32 [T] (0 where no face was seen), valid bool [T].

    Boxes in gaps are interpolated linearly, and held at the ends. Needs at least one face.
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


@dataclass
class FaceClip:
    """Consecutive frames from one with a face on, and the face tracked through them."""

    start: int
    """Number of the first frame in its video."""
    pictures: list[Frame] = field(default_factory=list)
    faces: list[Face | None] = field(default_factory=list)

    def add(self, picture: Frame, face: Face | None) -> None:
        """Append a frame."""
        self.pictures.append(picture)
        self.faces.append(face)

    def __len__(self) -> int:
        return len(self.faces)


def face_clips(frames: Iterable[Frame], detector: DlibHog, length: int) -> Iterator[FaceClip]:
    """Cut a stream of frames into clips of ``length`` frames, one after another, each from a frame with a face on.

    The last clip may be shorter; frames before a face are in no clip. A track that was lost at the end of a clip is
    searched anew. Holds one clip's frames in memory, whatever the length of the stream.
    """
    track, clip = Track(detector), FaceClip(0)
    for number, picture in enumerate(frames):
        face = track.find(picture)
        if not clip:
            if face is None:
                track = Track(detector)
                continue
            clip = FaceClip(number)
        clip.add(picture, face)
        if len(clip) == length:
            yield clip
            clip = FaceClip(0)
    if clip:
        yield clip
