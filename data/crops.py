"""Cuts a model's square crop from a frame by a face box: geometry that works with any detector's box."""

from collections.abc import Sequence
from typing import Annotated, Literal

import cv2
import numpy as np
import typer
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field

from data.picture import Frame

Fit = Literal["resize", "pad"]


class CropRule(BaseModel):
    """How a crop is cut. The manifest of a bundle carries this rule to the phone.

    The square has the box's centre and ``margin`` times its longer side, both rounded half up to whole pixels;
    what lies outside the picture is black. ``resize``: the square is resized to ``size`` x ``size``. ``pad``: all
    squares of a clip are resized by the one factor that brings the clip's largest square to ``size`` (sides rounded
    half up) and centred on black, so that a face keeps its size relative to the others. Resizing is by area when it
    shrinks and bilinear when it grows; it never distorts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: Annotated[int, typer.Option(help="Side of a crop in pixels.", min=16, max=1024)] = Field(
        default=224, ge=16, le=1024, description="side of the crop in pixels"
    )
    margin: Annotated[
        float, typer.Option(help="Side of the crop's square / longer side of the face box.", min=1, max=4)
    ] = Field(default=1.3, ge=1.0, le=4.0, description="side of the square / longer side of the face box")
    fit: Annotated[Fit, typer.Option(help="Resize each face, or pad to the clip's largest.")] = Field(
        default="resize", description="what squares of different sizes in a clip become"
    )
    fill: Literal[0] = Field(default=0, description="value of pixels outside the picture")

    def described(self, detector: str) -> str:
        """Return in words all that decides crops besides their size; ``detector``: whose boxes they are cut from."""
        return f"margin {self.margin:g}, fit {self.fit}, boxes of {detector}"

    def square(self, box: ArrayLike) -> tuple[int, int, int]:
        """Return ``(left, top, side)`` in pixels for a box ``[x0, y0, x1, y1]`` in pixels."""
        x0, y0, x1, y1 = np.asarray(box, np.float64)
        side = max(1, int(np.floor(self.margin * max(x1 - x0, y1 - y0) + 0.5)))
        left = int(np.floor((x0 + x1 - side) / 2 + 0.5))
        top = int(np.floor((y0 + y1 - side) / 2 + 0.5))
        return left, top, side

    def _place(self, side: int, largest: int | None) -> tuple[int, int]:
        """Return where in the crop a square of ``side`` pixels begins, and its side after resizing, in pixels."""
        if self.fit == "resize" or largest is None:
            return 0, self.size
        resized_side = max(1, (2 * side * self.size + largest) // (2 * largest))
        return (self.size - resized_side) // 2, resized_side

    def cut(
        self, frame: Frame, box: ArrayLike, largest: int | None = None, kernel: int | None = None
    ) -> NDArray[np.uint8]:
        """Return the crop, uint8 [size, size, 3] RGB, of a face box in a frame, uint8 [H, W, 3] RGB.

        ``largest`` is the side of the clip's largest square, which ``pad`` needs; None if the frame stands alone.
        ``kernel`` (an OpenCV interpolation flag) replaces the rule's, to study the effect of an app's other choice.
        """
        left, top, side = self.square(box)
        height, width = frame.shape[:2]
        square = np.full((side, side, 3), self.fill, np.uint8)
        x0, x1 = max(left, 0), min(left + side, width)
        y0, y1 = max(top, 0), min(top + side, height)
        if x0 < x1 and y0 < y1:
            square[y0 - top : y1 - top, x0 - left : x1 - left] = frame[y0:y1, x0:x1]
        start, resized_side = self._place(side, largest)
        crop = np.full((self.size, self.size, 3), self.fill, np.uint8)
        crop[start : start + resized_side, start : start + resized_side] = _resized(square, resized_side, kernel)
        return crop

    def largest(self, boxes: NDArray[np.float32]) -> int:
        """Return the side in pixels of the largest square of boxes, [T, 4] in pixels."""
        return max(self.square(box)[2] for box in boxes)

    def cut_clip(
        self,
        frames: Sequence[Frame],
        boxes: NDArray[np.float32],
        largest: int | None = None,
        kernel: int | None = None,
    ) -> NDArray[np.uint8]:
        """Return the crops of a clip, uint8 [T, size, size, 3] RGB; boxes: float32 [T, 4] in pixels.

        ``largest`` is needed if ``boxes`` are not all boxes of the clip; ``kernel`` as for ``cut``.
        """
        largest = self.largest(boxes) if largest is None else largest
        return np.stack([self.cut(frame, box, largest, kernel) for frame, box in zip(frames, boxes, strict=True)])

    def box_in_crop(self, box: ArrayLike, largest: int | None = None) -> NDArray[np.float64]:
        """Return a face box in its own crop, float64 [4] (x0, y0, x1, y1) in the crop's pixels."""
        left, top, side = self.square(box)
        start, resized_side = self._place(side, largest)
        scaled: NDArray[np.float64] = (np.asarray(box, np.float64) - np.array([left, top, left, top])) * (
            resized_side / side
        )
        return scaled + start


def _resized(square: NDArray[np.uint8], size: int, kernel: int | None) -> NDArray[np.uint8]:
    """Return a square resized to ``size``; without a kernel, by area when it shrinks and bilinearly when it grows."""
    if kernel is None:
        kernel = cv2.INTER_AREA if square.shape[0] > size else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(square, (size, size), interpolation=kernel), np.uint8)
