"""Decode video files to frames and encode frames as video, through PyAV."""

import bisect
import contextlib
import functools
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import cv2
import numpy as np
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from data.picture import UPRIGHT, Frame, Picture, UnreadableVideo, display_matrix
from stage import reason_of

ONLY_VIDEO_FILES = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,asf",
    "protocol_whitelist": "file",
}
"""FFmpeg options: a playlist (ffconcat, HLS) that is named like a video must not open other files or addresses."""
PICTURES = Disposition.attached_pic | Disposition.timed_thumbnails
"""Dispositions of video streams that are still pictures (covers, thumbnails), not films."""
TILE = Disposition.dependent
"""Disposition of a tile of a HEIC photo: FFmpeg lists each as a video stream of one frame, and does not join them."""
WITHOUT_INDEX = ("mpeg", "mpegts")
"""Formats without an index: after a seek, FFmpeg lands on any frame and guesses its time."""
WORTH_SEEKING = 50
"""Least number of frames to skip by a seek; fewer are decoded and dropped, as a seek goes back to a key frame."""
NEARLY_SQUARE, MOST_OBLONG = 0.01, 4.0
"""Aspect ratios of pixels that are taken for square: those within a hundredth of it, and those that no format has."""
LARGEST_RATE = 300.0
"""Largest frame rate, in frames a second, that is believed: some recorders write the unit of their times there."""
CRF = 23
"""Constant rate factor of H.264: FaceForensics++'s light compression (c23)."""


@dataclass(frozen=True)
class VideoInfo:
    """What a file says: mean frames per second (0: not known, as of a photo), and the size in pixels as displayed."""

    fps: float
    width: int
    height: int


def _is_shown(packet: "Packet[Any]") -> bool:
    """Tell whether a packet holds a shown frame: VP8 has hidden ones, used for prediction (RFC 6386, 9.1)."""
    if not packet.size or packet.is_discard:
        return False
    return packet.stream.codec_context.name != "vp8" or bool(memoryview(packet)[0] & 0x10)


def _film_of(container: Any) -> VideoStream | None:
    """Return the first video stream that is not a cover or thumbnails, which FFmpeg may list first; None if none is."""
    return next((stream for stream in container.streams.video if not stream.disposition & PICTURES), None)


def flaws(damaged: int, remarks: Iterable[str]) -> str:
    """Return what a row says of a video's frames: how many are damaged, and the remarks on them; "" if nothing."""
    return "; ".join([*([f"damaged frames: {damaged}"] if damaged else []), *remarks])


class Video:
    """A video file that is decoded frame by frame; memory does not grow with its length.

    Raises UnreadableVideo if the file is missing, is not a video, or breaks before its first frame.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._damaged: set[int] = set()
        """Numbers of the damaged frames so far; after a seek, some are decoded a second time."""
        self.remarks: dict[str, None] = {}
        """What its frames so far must be known to be (``Picture.remarks``), in order."""
        self._container = self._open()
        self._next = 0
        self._broken: UnreadableVideo | None = None
        """Where the stream was found to break."""
        try:
            self._decoded = self._decode()
            self._first: Picture | None = next(self._decoded)
            self._begins = self._first.time
            self._size = self._first.size
        except StopIteration as error:
            self.close()
            raise self._unreadable("it holds no frame") from error
        except UnreadableVideo:
            self.close()
            raise

    def _unreadable(self, reason: str) -> UnreadableVideo:
        return UnreadableVideo(self.path, f"cannot be read as a video: {reason}")

    def _open(self) -> Any:
        if self.path.exists() and not self.path.is_file():
            raise self._unreadable("it is not a file")
        try:
            # "file:" because FFmpeg would read the part of a name before a colon as a protocol.
            container: Any = av.open(f"file:{self.path}", mode="r", options=ONLY_VIDEO_FILES)
        except av.ArgumentError as error:
            raise self._unreadable("its format is none that is read") from error
        except (av.FFmpegError, OSError, ValueError, UnicodeError) as error:
            raise self._unreadable(reason_of(error)) from error
        if any(stream.disposition & TILE for stream in container.streams.video):
            container.close()
            raise self._unreadable("it is a photo in tiles (HEIC): convert it to JPEG")
        stream = _film_of(container)
        if stream is None:
            container.close()
            raise self._unreadable("it holds no video stream")
        if stream.codec_context is None:  # decoding it would crash PyAV 18 (its issue 2344)
            container.close()
            raise self._unreadable("its codec is not known")
        return container

    @property
    def _stream(self) -> VideoStream:
        stream = _film_of(self._container)
        assert stream is not None
        return stream

    @functools.cached_property
    def info(self) -> VideoInfo:
        """What the file says of itself. Where it states no rate, its frames' times are read, without decoding."""
        height, width = self._size
        rate = float(self._stream.average_rate or 0)
        if not 0 < rate <= LARGEST_RATE and self._index:
            seconds = float((self._index[-1][0] - self._index[0][0]) * (self._stream.time_base or 0))
            rate = (len(self._index) - 1) / seconds if seconds else 0.0
        return VideoInfo(rate if rate <= LARGEST_RATE else 0.0, width, height)

    def _decode(self) -> Iterator[Picture]:
        """Yield the pictures from the container's position on. Raises UnreadableVideo where the stream breaks."""
        try:
            matrix, rotation, aspect = UPRIGHT, None, float(self._stream.sample_aspect_ratio or 1)
            aspect = 1.0 if abs(aspect - 1) < NEARLY_SQUARE or not 1 / MOST_OBLONG < aspect < MOST_OBLONG else aspect
            for frame in self._container.decode(self._stream):
                # Read only on a change: a frame whose side data was read lives until the garbage collector runs.
                if frame.rotation != rotation:
                    matrix, rotation = display_matrix(frame), frame.rotation
                yield Picture(frame, self.path, matrix, aspect)
        except (av.FFmpegError, ValueError) as error:
            raise UnreadableVideo(self.path, f"breaks while decoding: {reason_of(error)}") from error

    @property
    def damaged(self) -> int:
        """Number of frames so far that could be decoded only in part."""
        return len(self._damaged)

    @property
    def position(self) -> int:
        """Number, from 0, of the frame that comes next."""
        return self._next

    def pictures(self, start: int = 0) -> Iterator[Picture]:
        """Yield frames from number ``start`` on, in order, each once: ``start`` may not lie before what was yielded.

        Raises UnreadableVideo where the stream breaks.
        """
        if start - self._next >= WORTH_SEEKING:
            self._seek(start)
        while (picture := self._advance()) is not None:
            if self._next > start:
                yield picture

    def _advance(self) -> Picture | None:
        """Return the next picture, or None at the end of the stream."""
        picture, self._first = self._first, None
        if picture is None:
            if self._broken:  # a generator that has raised would end as if the stream did
                raise self._broken
            try:
                picture = next(self._decoded, None)
            except UnreadableVideo as error:
                self._broken = error
                raise
        if picture is not None:
            if picture.is_damaged:
                self._damaged.add(self._next)
            self.remarks |= dict.fromkeys(picture.remarks)
            self._next += 1
        return picture

    @functools.cached_property
    def _index(self) -> list[tuple[int, bool]]:
        """Presentation time of each shown frame, in the stream's unit, and whether the container calls it a key frame.

        Sorted, without decoding; [] if unknown.
        """
        with self._open() as container:
            try:
                packets = container.demux(_film_of(container))
                entries = [(packet.pts, packet.is_keyframe) for packet in packets if _is_shown(packet)]
            except (av.FFmpegError, ValueError):
                return []
        if self._begins is None or any(time is None for time, _ in entries):
            return []
        # A stream cut out of another may begin with frames that refer to the missing part: they are never decoded.
        return sorted(entry for entry in entries if entry[0] >= self._begins)

    def count(self) -> int:
        """Return the number of frames; nothing is decoded if the container has their times.

        For a stream that breaks, it is the number of frames before the break, exact if they had to be decoded.
        """
        if self._index:
            return len(self._index)
        with Video(self.path) as video:
            with contextlib.suppress(UnreadableVideo):
                for _ in video.pictures():
                    pass
            return video.position

    def _seek(self, number: int) -> None:
        """Go to the key frame before frame ``number``, if the container has an index and the times of all frames.

        Stays where no key frame lies between: what was read would be decoded again.
        """
        index = self._index
        if number >= len(index) or self._container.format.name in WITHOUT_INDEX:
            return
        if not any(is_key for _, is_key in index[self._next + 1 : number + 1]):
            return
        try:
            self._container.seek(index[number][0], stream=self._stream)
            self._decoded, self._broken = self._decode(), None
            picture = next(self._decoded, None)
        except (av.FFmpegError, UnreadableVideo):
            picture = None
        # Some files mark frames as key frames that are none; some decoders return a picture for undecodable data.
        key_time = picture.time if picture is not None and picture.is_key else None
        key_number = -1 if key_time is None else bisect.bisect_left(index, key_time, key=lambda entry: entry[0])
        if 0 <= key_number <= number and index[key_number][0] == key_time:
            self._first, self._next = picture, key_number
            return
        self._restart()

    def _restart(self) -> None:
        """Open the file again and go to its first frame."""
        self._container.close()
        self._container = self._open()
        self._decoded, self._broken = self._decode(), None
        self._first, self._next = None, 0

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write_video(target: Path | BinaryIO, frames: Iterable[Frame], fps: int | Fraction = 25, crf: int = CRF) -> None:
    """Encode frames (uint8 [H, W, 3] RGB, even sides) as H.264 in an mp4; equal frames give equal bytes.

    One encoder thread, because x264's output depends on the number of threads; no macroblock tree, because with
    AVX-512 it gave other bytes from one run to the next (x264 in PyAV 18, single-threaded, half of all runs).
    """
    options = {"crf": str(crf), "preset": "veryfast", "threads": "1", "mbtree": "0"}
    with av.open(str(target) if isinstance(target, Path) else target, mode="w", format="mp4") as container:
        stream: Any = None
        for picture in frames:
            if stream is None:
                stream = container.add_stream("libx264", rate=fps, options=options)
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = "yuv420p"
            container.mux(stream.encode(VideoFrame.from_ndarray(picture, format="rgb24")))
        if stream is not None:
            container.mux(stream.encode(None))


def recompressed(frames: Sequence[Frame], crf: int = CRF) -> list[Frame]:
    """Return frames of one size, uint8 [H, W, 3] RGB, after H.264 compression at a constant rate factor."""
    height, width = frames[0].shape[:2]
    even = [np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge") for frame in frames]
    file = io.BytesIO()
    write_video(file, even, crf=crf)
    file.seek(0)
    with av.open(file, mode="r", format="mp4") as container:
        decoded = [Picture(frame).rgb for frame in container.decode(video=0)]
    return [frame[:height, :width] for frame in decoded]


def through_jpeg(crop: Frame, quality: int) -> Frame:
    """Return a picture, uint8 [H, W, 3] RGB, after JPEG compression at a quality of 1 to 100."""
    encoded, data = cv2.imencode(".jpg", crop[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert encoded
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB), np.uint8)
