"""Video files to frames and back, through PyAV."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from stage import StageError, reason_of

ONLY_VIDEO_FILES = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts",
    "protocol_whitelist": "file",
}
"""FFmpeg's playlists (ffconcat, HLS) named like a video must not make it open other files or addresses."""

Frame = NDArray[np.uint8]
"""One picture: uint8 [H, W, 3], RGB, 0..255."""


class UnreadableVideo(StageError):
    """A file that is not a video or cannot be decoded; the text says why."""


@dataclass(frozen=True)
class VideoInfo:
    """What the container says: frames per second, and the size in pixels as displayed (after rotation)."""

    fps: float
    width: int
    height: int


def _upright(frame: VideoFrame) -> Frame:
    """Return the frame as RGB, turned and mirrored as its display matrix says (multiples of 90 degrees).

    The matrix maps a pixel (x, y), y down, to (a x + c y, b x + d y) up to a shift (ISO/IEC 14496-12, 6.2.2).
    """
    picture = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return picture
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if abs(b) > abs(a):
        picture, across, down = picture.swapaxes(0, 1), c, b
    else:
        across, down = a, d
    return np.ascontiguousarray(picture[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1])


class Video:
    """A video file that is decoded frame by frame; memory does not grow with its length.

    Raises UnreadableVideo if the file is missing, is not a video, or breaks before its first frame.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists() and not path.is_file():
            raise UnreadableVideo(f"{path} cannot be read as a video: it is not a file")
        try:
            # "file:" because FFmpeg would take what stands before a colon in a name for a protocol.
            self._container: Any = av.open(f"file:{path}", mode="r", options=ONLY_VIDEO_FILES)
        except (av.FFmpegError, OSError, ValueError, UnicodeError) as error:
            raise UnreadableVideo(f"{path} cannot be read as a video: {reason_of(error)}") from error
        streams = self._container.streams.video
        if not streams:
            self.close()
            raise UnreadableVideo(f"{path} cannot be read as a video: it holds no video stream")
        self._stream: VideoStream = streams[0]
        self._frames = self._decode()
        try:
            self._first: Frame | None = next(self._frames)
        except StopIteration as error:
            self.close()
            raise UnreadableVideo(f"{path} cannot be read as a video: it holds no frame") from error
        except UnreadableVideo:
            self.close()
            raise
        height, width = self._first.shape[:2]
        self.info = VideoInfo(float(self._stream.average_rate or 25.0), width, height)

    def _decode(self) -> Iterator[Frame]:
        try:
            for frame in self._container.decode(self._stream):
                yield _upright(frame)
        except (av.FFmpegError, ValueError) as error:
            raise UnreadableVideo(f"{self.path} breaks while decoding: {reason_of(error)}") from error

    def frames(self) -> Iterator[Frame]:
        """Yield the frames in order, uint8 [H, W, 3], once. Raises UnreadableVideo where the stream breaks."""
        if self._first is not None:
            first, self._first = self._first, None
            yield first
        yield from self._frames

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write_video(path: Path, frames: Iterable[Frame], fps: int = 25, crf: int = 23) -> None:
    """Encode frames (uint8 [H, W, 3] RGB, even sides) as H.264 in an mp4, equal bytes for equal frames.

    One encoder thread, because x264's output depends on the number of threads; no macroblock tree, because with
    AVX-512 it gave other bytes from one run to the next (x264 in PyAV 18, single-threaded, half of all runs).
    """
    options = {"crf": str(crf), "preset": "veryfast", "threads": "1", "mbtree": "0"}
    with av.open(str(path), mode="w", format="mp4") as container:
        stream: Any = None
        for picture in frames:
            if stream is None:
                stream = container.add_stream("libx264", rate=fps, options=options)
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = "yuv420p"
            container.mux(stream.encode(VideoFrame.from_ndarray(picture, format="rgb24")))
        if stream is not None:
            container.mux(stream.encode(None))
