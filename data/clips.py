"""Cuts a stream of frames into clips of one tracked face, which prepare stores and detect scores."""

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
"""Most frames without a face that interpolated boxes bridge; the frames of a longer gap are not valid."""


def bridge(faces: Sequence[Face | None]) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """Fill gaps in a track; return boxes float32 [T, 4] in pixels, scores float32 [T] and valid bool [T].

    A score is NaN if the face was followed between two detections, and 0 if it was not seen. Boxes in gaps are
    interpolated linearly, and constant before the first face and after the last. Needs at least one face.
    """
    seen_frames = np.array([index for index, face in enumerate(faces) if face is not None])
    boxes = np.stack([face.box for face in faces if face is not None])
    all_frames = np.arange(len(faces))
    filled = np.stack([np.interp(all_frames, seen_frames, boxes[:, side]) for side in range(4)], axis=-1)
    scores = np.array([0.0 if face is None else face.score for face in faces], np.float32)
    edges = np.concatenate([[-1], seen_frames, [len(faces)]])
    gap_lengths = np.diff(edges) - 1
    valid = np.ones(len(faces), np.bool_)
    for start, length in zip(edges[:-1] + 1, gap_lengths, strict=True):
        valid[start : start + length] = length <= BRIDGED_FRAMES
    return filled.astype(np.float32), scores, valid


@dataclass(frozen=True)
class FaceClip:
    """Consecutive frames with one face followed through them."""

    start: int
    """Number of the first frame in the stream."""
    track: int
    pictures: list[Picture]
    faces: list[Face | None]
    whole: int
    """Number of frames of a whole clip; the last one of a video may be shorter."""

    def __len__(self) -> int:
        return len(self.faces)

    @property
    def boxes(self) -> NDArray[np.float32]:
        """Boxes in pixels, float32 [T, 4], gaps filled."""
        return self._bridged[0]

    @property
    def scores(self) -> NDArray[np.float32]:
        """The detector's scores, float32 [T]: NaN between two detections, 0 if no face was seen."""
        return self._bridged[1]

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Mask of valid frames, bool [T]: False in gaps that are too long to bridge."""
        return self._bridged[2]

    @functools.cached_property
    def _bridged(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
        return bridge(self.faces)

    @property
    def steady(self) -> bool:
        """Whether at least half of a whole clip's frames are valid."""
        return 2 * int(self.valid.sum()) >= self.whole


def face_clips(stream: Iterable[Seen], length: int, hop: int | None = None) -> Iterator[list[FaceClip]]:
    """Cut a stream into stretches of ``length`` frames, each beginning with a frame that has a face.

    Each begins at least ``hop`` frames after the one before; None: ``length``, and with less they overlap. Yields each
    stretch's clips, one per face: steady ones first, then larger faces first. The last stretch may be shorter; frames
    before a face are in no stretch, and none spans a change of the frames' size. Holds one stretch in memory.
    """
    stretch: list[Seen] = []
    fresh = 0  # frames of the current stretch that were in no stretch before
    for number, frame in enumerate(stream):
        if stretch and frame.picture.size != stretch[0].picture.size:
            if fresh:
                yield _clips_of(stretch, number - len(stretch), length)
            stretch, fresh = [], 0
        if stretch or frame.faces:
            stretch.append(frame)
            fresh += 1
        if len(stretch) == length:
            yield _clips_of(stretch, number + 1 - length, length)
            stretch, fresh = _from_a_face(stretch[hop or length :]), 0
    if fresh:
        yield _clips_of(stretch, number + 1 - len(stretch), length)


def _from_a_face(frames: list[Seen]) -> list[Seen]:
    """Return the frames from the first one with a face on."""
    return list(itertools.dropwhile(lambda frame: not frame.faces, frames))


def _clips_of(stretch: list[Seen], start: int, length: int) -> list[FaceClip]:
    """Return the clips of a stretch of up to ``length`` frames, one per face: steady first, then larger faces first."""
    pictures = [frame.picture for frame in stretch]
    tracks = sorted({track for frame in stretch for track in frame.faces})
    faces = {track: [frame.faces.get(track) for frame in stretch] for track in tracks}
    clips = [FaceClip(start, track, pictures, faces[track], length) for track in tracks]

    def typical_area(clip: FaceClip) -> float:
        return float(np.median([area(face.box) for face in clip.faces if face is not None]))

    return sorted(clips, key=lambda clip: (not clip.steady, -typical_area(clip)))
