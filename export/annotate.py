"""A copy of a video that shows what was found in it: the face's box, its score, and the score over time."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from compress.scoring import probability
from data.clips import FaceClip
from data.picture import Frame
from data.remote import fetched
from data.video import Video, write_video
from export.scorer import Detection
from files import written_whole
from stage import StageError, reason_of

RED, BLUE, AXIS, BAND = (214, 69, 53), (38, 128, 199), (230, 230, 230), (24, 24, 24)
"""Colours, RGB; words and a dashed outline say the same as they do."""
STRIP = 0.16
"""Height of the strip with the score over time, as a share of the picture's."""
SMALLEST_STRIP = 48
DASH = 12


@dataclass
class Marks:
    """Where the face was and what it scored, by the number of the frame; told clip by clip."""

    boxes: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    scores: dict[int, float] = field(default_factory=dict)

    def __call__(self, clip: FaceClip, scores: NDArray[np.float32]) -> None:
        """Take a clip: a frame's own score, or the clip's; where clips overlap, that of the last."""
        counts = np.flatnonzero(clip.valid)
        for frame, score in zip(counts, np.broadcast_to(scores, counts.shape), strict=True):
            self.boxes[clip.start + int(frame)] = clip.boxes[frame]
            self.scores[clip.start + int(frame)] = float(score)


def annotate(path: Path, found: Detection, marks: Marks, out: Path) -> None:
    """Write a video again with its marks, as H.264 without sound, at its mean frame rate. Holds one frame in memory."""
    with fetched(path) as file, Video(file) as video, written_whole(out) as aside:
        rate = Fraction(video.info.fps).limit_denominator(90_000)
        frames = (picture.rgb for picture in video.pictures())
        try:
            write_video(aside, _drawn(frames, found, marks), rate)
        except av.error.ExternalError as error:
            raise StageError(f"{out}: H.264 cannot hold this video ({reason_of(error)})") from error


def _drawn(frames: Iterator[Frame], found: Detection, marks: Marks) -> Iterator[Frame]:
    size: tuple[int, int] | None = None
    for number, frame in enumerate(frames):
        if size is None:  # of a video whose size changes, that of the beginning
            size = height, width = frame.shape[0], frame.shape[1]
            strip = _empty_strip(max(SMALLEST_STRIP, round(STRIP * height)), width, found)
        fits = frame.shape[:2] == size
        canvas = np.zeros(((height + len(strip) + 1) // 2 * 2, (width + 1) // 2 * 2, 3), np.uint8)
        canvas[:height, :width] = frame if fits else cv2.resize(frame, (width, height))
        if number in marks.boxes and fits:
            _box(canvas, marks.boxes[number], marks.scores[number], found.threshold)
        _draw_score(strip, number, found, marks)
        canvas[height : height + len(strip), :width] = strip
        said = f"video: {found.verdict} {probability(found.score)} (threshold {probability(found.threshold)})"
        _text(canvas, said, 4, 4, max(0.45, width / 1400))
        yield canvas


def _text(canvas: Frame, text: str, x: int, y: int, size: float) -> None:
    """Write light text on a dark band, its lower left corner at (x, y), kept inside the picture."""
    thickness = max(1, round(2 * size))
    (width, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, thickness)
    x, y = max(0, min(x, canvas.shape[1] - width)), max(height, min(y, canvas.shape[0] - below))
    cv2.rectangle(canvas, (x, y - height - 2), (x + width, y + below), BAND, cv2.FILLED)
    cv2.putText(canvas, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, AXIS, thickness, cv2.LINE_AA)


def _dashed(canvas: Frame, start: tuple[int, int], end: tuple[int, int], colour: tuple[int, int, int]) -> None:
    steps = max(1, int(np.hypot(end[0] - start[0], end[1] - start[1])) // DASH)
    points = np.linspace(start, end, steps + 1).round().astype(int).tolist()
    for before, after in list(itertools.pairwise(points))[::2]:
        cv2.line(canvas, before, after, colour, 2, cv2.LINE_AA)


def _box(canvas: Frame, box: NDArray[np.float32], score: float, threshold: float) -> None:
    """Draw a face's box: dashed where the verdict is fake."""
    x0, y0, x1, y1 = (round(float(side)) for side in box)
    fake = score > threshold
    if fake:
        corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]
        for start, end in itertools.pairwise(corners):
            _dashed(canvas, start, end, RED)
    else:
        cv2.rectangle(canvas, (x0, y0), (x1, y1), BLUE, 2)
    size = max(0.45, canvas.shape[1] / 1400)
    _text(canvas, f"{'fake' if fake else 'real'} {probability(score)}", x0, y0 - 6, size)


def _place(strip: Frame, found: Detection, frame: int, score: float) -> tuple[int, int]:
    """Return where in the strip a frame's score lies: from 0 at the foot to 1 at the top."""
    height, width = strip.shape[:2]
    return round(frame * (width - 1) / max(1, found.frames_read - 1)), round((1 - score) * (height - 5)) + 2


def _empty_strip(height: int, width: int, found: Detection) -> Frame:
    """Return a strip with the threshold as a dashed line, uint8 [height, width, 3]."""
    strip = np.full((height, width, 3), BAND, np.uint8)
    ends = [_place(strip, found, frame, found.threshold) for frame in (0, found.frames_read - 1)]
    _dashed(strip, ends[0], ends[1], AXIS)
    return strip


def _draw_score(strip: Frame, frame: int, found: Detection, marks: Marks) -> None:
    """Draw the line from the score of the frame before to this one's, in place, where both have one."""
    if frame in marks.scores and frame - 1 in marks.scores:
        ends = [_place(strip, found, number, marks.scores[number]) for number in (frame - 1, frame)]
        cv2.line(strip, ends[0], ends[1], RED if marks.scores[frame] > found.threshold else BLUE, 2)
