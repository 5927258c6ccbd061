"""Write a copy of a video that shows its detection: the face's box, its score, and the score over time."""

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
from parsing import shown
from stage import StageError, reason_of, say

RED, BLUE, AXIS, BAND = (214, 69, 53), (38, 128, 199), (230, 230, 230), (24, 24, 24)
"""Colours, RGB. Words and a dashed outline tell real from fake too."""
STRIP = 0.16
"""Height of the strip with the score over time, as a share of the picture's height."""
SMALLEST_STRIP = 48
"""Least height of the strip, in pixels."""
USUAL_RATE = 25
"""Frames a second of what is written of a video that tells no rate."""
DASH = 12
"""Length of a dash and of a gap, in pixels."""


@dataclass
class Marks:
    """Boxes and scores of the face by frame number; called with each clip that is scored."""

    boxes: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    """Left, top, right and bottom in pixels, float32 [4]."""
    scores: dict[int, float] = field(default_factory=dict)
    """P(fake)."""

    def __call__(self, clip: FaceClip, scores: NDArray[np.float32]) -> None:
        """Add a clip's N valid frames and their scores, float32 [N], or the clip's score, float32 [1].

        Where clips overlap, the last counts.
        """
        frames = np.flatnonzero(clip.valid)
        for frame, score in zip(frames, np.broadcast_to(scores, frames.shape), strict=True):
            self.boxes[clip.start + int(frame)] = clip.boxes[frame]
            self.scores[clip.start + int(frame)] = float(score)


def annotate(path: Path, detection: Detection, marks: Marks, out: Path) -> None:
    """Write a video again with its marks drawn in, as H.264 without sound, at its mean frame rate if that is known.

    Holds one frame in memory. Raises StageError if H.264 cannot hold the video.
    """
    with fetched(path) as file, Video(file) as video, written_whole(out) as aside:
        if not video.info.fps:
            say(f"{shown(path)} tells no frame rate: {out} has {USUAL_RATE} frames a second")
        rate = Fraction(video.info.fps or USUAL_RATE).limit_denominator(90_000)
        frames = (picture.rgb for picture in video.pictures())
        try:
            write_video(aside, _marked_frames(frames, detection, marks), rate)
        except av.error.ExternalError as error:
            raise StageError(f"{out}: H.264 cannot hold this video ({reason_of(error)})") from error


def _marked_frames(frames: Iterator[Frame], detection: Detection, marks: Marks) -> Iterator[Frame]:
    """Yield each frame with its marks and the strip below it, uint8 [H, W, 3] with H and W even."""
    size: tuple[int, int] | None = None
    for number, frame in enumerate(frames):
        if size is None:  # a video whose size changes is written in its first size
            size = height, width = frame.shape[0], frame.shape[1]
            strip = _empty_strip(max(SMALLEST_STRIP, round(STRIP * height)), width, detection)
        fits = frame.shape[:2] == size
        canvas = np.zeros(((height + len(strip) + 1) // 2 * 2, (width + 1) // 2 * 2, 3), np.uint8)
        canvas[:height, :width] = frame if fits else cv2.resize(frame, (width, height))
        if number in marks.boxes and fits:
            _draw_box(canvas, marks.boxes[number], marks.scores[number], detection.threshold)
        _draw_score(strip, number, detection, marks)
        canvas[height : height + len(strip), :width] = strip
        score, threshold = probability(detection.score), probability(detection.threshold)
        caption = f"video: {detection.verdict} {score} (threshold {threshold})"
        _draw_text(canvas, caption, 4, 4, max(0.45, width / 1400))
        yield canvas


def _draw_text(canvas: Frame, text: str, x: int, y: int, size: float) -> None:
    """Write light text on a dark band, its lower left corner at (x, y), kept inside the picture."""
    thickness = max(1, round(2 * size))
    (width, height), descent = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, thickness)
    x, y = max(0, min(x, canvas.shape[1] - width)), max(height, min(y, canvas.shape[0] - descent))
    cv2.rectangle(canvas, (x, y - height - 2), (x + width, y + descent), BAND, cv2.FILLED)
    cv2.putText(canvas, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, AXIS, thickness, cv2.LINE_AA)


def _draw_dashes(canvas: Frame, start: tuple[int, int], end: tuple[int, int], colour: tuple[int, int, int]) -> None:
    steps = max(1, int(np.hypot(end[0] - start[0], end[1] - start[1])) // DASH)
    points = np.linspace(start, end, steps + 1).round().astype(int).tolist()
    for dash_start, dash_end in list(itertools.pairwise(points))[::2]:
        cv2.line(canvas, dash_start, dash_end, colour, 2, cv2.LINE_AA)


def _draw_box(canvas: Frame, box: NDArray[np.float32], score: float, threshold: float) -> None:
    """Draw a face's box: dashed where the verdict is fake."""
    x0, y0, x1, y1 = (round(float(side)) for side in box)
    fake = score > threshold
    if fake:
        corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]
        for start, end in itertools.pairwise(corners):
            _draw_dashes(canvas, start, end, RED)
    else:
        cv2.rectangle(canvas, (x0, y0), (x1, y1), BLUE, 2)
    size = max(0.45, canvas.shape[1] / 1400)
    _draw_text(canvas, f"{'fake' if fake else 'real'} {probability(score)}", x0, y0 - 6, size)


def _position(strip: Frame, detection: Detection, frame: int, score: float) -> tuple[int, int]:
    """Return x and y of a frame's score in the strip, in pixels: score 0 lies at the bottom, 1 at the top."""
    height, width = strip.shape[:2]
    x = round(frame * (width - 1) / max(1, detection.frames_read - 1))
    return x, round((1 - score) * (height - 5)) + 2


def _empty_strip(height: int, width: int, detection: Detection) -> Frame:
    """Return a strip with the threshold as a dashed line, uint8 [height, width, 3]."""
    strip = np.full((height, width, 3), BAND, np.uint8)
    ends = [_position(strip, detection, frame, detection.threshold) for frame in (0, detection.frames_read - 1)]
    _draw_dashes(strip, ends[0], ends[1], AXIS)
    return strip


def _draw_score(strip: Frame, frame: int, detection: Detection, marks: Marks) -> None:
    """Draw, in place, the line from the previous frame's score to this frame's, if both have one."""
    if frame in marks.scores and frame - 1 in marks.scores:
        ends = [_position(strip, detection, number, marks.scores[number]) for number in (frame - 1, frame)]
        cv2.line(strip, ends[0], ends[1], RED if marks.scores[frame] > detection.threshold else BLUE, 2)
