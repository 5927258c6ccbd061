"""One decoded frame of a video or photo, upright: luma without conversion, RGB on request."""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from stage import StageError, reason_of

Frame = NDArray[np.uint8]
"""One picture: uint8 [H, W, 3], RGB, 0..255."""
INTERLACED = "interlaced: what moves has combs"
HDR = "HDR, read without tone mapping"
HDR_CURVES = (16, 18)
"""Transfer characteristics of PQ and HLG (ITU-T H.273, table 3)."""
LUMA_FIRST = ("gray", "yuv4", "yuvj4", "yuva4", "nv12", "nv21")
"""Prefixes of the names of pixel formats whose first plane is the luma."""
Matrix = tuple[int, int, int, int]
"""a, b, c, d: pixel (x, y), y down, is shown at (a x + c y, b x + d y) up to a shift (ISO/IEC 14496-12, 6.2.2)."""
UPRIGHT: Matrix = (1, 0, 0, 1)
TURNS: tuple[Matrix, ...] = (UPRIGHT, (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0))
"""Display matrices by number of counter-clockwise quarter turns."""


class UnreadableVideo(StageError):
    """A file is not a video or cannot be decoded; ``what`` says why, without the path."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(path, what)
        self.what = what

    def __str__(self) -> str:
        return f"{self.args[0]} {self.what}"


class Picture:
    """One decoded frame, upright. Luma costs nothing; RGB is converted each time it is read."""

    def __init__(
        self, frame: VideoFrame, path: Path | None = None, matrix: Matrix = UPRIGHT, aspect: float = 1.0
    ) -> None:
        """``aspect``: width of a coded pixel over its height; the picture is stretched in width to square ones."""
        self._frame, self._path, self._matrix, self._aspect = frame, path, matrix, aspect

    @classmethod
    def of(cls, pixels: Frame) -> "Picture":
        """Wrap a frame, uint8 [H, W, 3] RGB."""
        return cls(VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24"))

    @property
    def time(self) -> int | None:
        """Presentation time in the stream's unit; None if the file has none."""
        return self._frame.pts

    @property
    def is_key(self) -> bool:
        """Whether the frame was decoded without any frame before it."""
        return self._frame.key_frame

    @property
    def is_damaged(self) -> bool:
        """Whether FFmpeg could decode the frame only in part; it fills the rest from the frame before."""
        return self._frame.is_corrupt

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader of the frame must know: it is woven of two fields, or meant for a brighter screen."""
        found = {INTERLACED: self._frame.interlaced_frame, HDR: self._frame.color_trc in HDR_CURVES}
        return tuple(remark for remark, applies in found.items() if applies)

    @functools.cached_property
    def luma(self) -> NDArray[np.uint8]:
        """Luma, uint8 [H, W]: for 8-bit YUV the plane as coded (16..235 or 0..255), else 0..255."""
        frame, name = self._frame, self._frame.format.name
        if name.startswith(LUMA_FIRST) and frame.format.components[0].bits == 8 and frame.planes[0].line_size > 0:
            plane = frame.planes[0]
            with self._decoding():
                rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)  # type: ignore[call-overload]
                return self._upright(self._square(rows[: frame.height, : frame.width]))
        return self._converted("gray")

    @property
    def rgb(self) -> Frame:
        """Colours, uint8 [H, W, 3] RGB, 0..255. Raises UnreadableVideo if the file declares impossible colours."""
        return self._converted("rgb24")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels, upright."""
        height, width = self.luma.shape
        return height, width

    def _converted(self, pix_fmt: str) -> NDArray[np.uint8]:
        """Return the frame in a pixel format, upright. Raises UnreadableVideo if it cannot be converted."""
        with self._decoding():
            # One thread: the scaler would start as many as the machine has processors, for each frame anew.
            return self._upright(self._square(np.asarray(self._frame.to_ndarray(format=pix_fmt, threads=1), np.uint8)))

    @contextlib.contextmanager
    def _decoding(self) -> Iterator[None]:
        """Raise UnreadableVideo where a frame cannot be converted."""
        try:
            yield
        except (av.FFmpegError, OSError, ValueError, cv2.error) as error:
            raise UnreadableVideo(self._path or Path("it"), f"breaks while decoding: {reason_of(error)}") from error

    def _square(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return a picture as coded, [H, W, ...], stretched in width until its pixels are square."""
        height, width = picture.shape[:2]
        shown = max(1, round(width * self._aspect))
        if shown == width:
            return picture
        kernel = cv2.INTER_AREA if shown < width else cv2.INTER_LINEAR
        return np.asarray(cv2.resize(picture, (shown, height), interpolation=kernel), np.uint8)

    def _upright(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return a picture [H, W, ...] turned and mirrored by the display matrix (multiples of 90 degrees)."""
        if self._matrix == UPRIGHT:
            return picture
        a, b, c, d = self._matrix
        if abs(b) > abs(a):
            picture, x_sign, y_sign = picture.swapaxes(0, 1), c, b
        else:
            x_sign, y_sign = a, d
        return np.ascontiguousarray(picture[:: -1 if y_sign < 0 else 1, :: -1 if x_sign < 0 else 1])


def display_matrix(frame: VideoFrame) -> Matrix:
    """Return the display matrix of a frame: how it is to be turned and mirrored."""
    try:
        matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV 18 fails at side data of unknown kinds, but still gives the rotation
        return TURNS[round(frame.rotation / 90) % 4]
    if matrix is None:
        return UPRIGHT
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    return a, b, c, d
