"""From a face box to the square picture that a model sees: geometry that any detector's box can follow."""

from typing import Literal

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field

from data.video import Frame


class CropRule(BaseModel):
    """How a crop is cut. The manifest of a bundle carries this rule to the phone.

    The square has the box's centre and ``margin`` times its longer side, both rounded half up to whole pixels;
    what lies outside the picture is black; the square is then resized to ``size`` x ``size``, by area when it
    shrinks and bilinearly when it grows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(default=224, ge=16, le=1024, description="side of the crop in pixels")
    margin: float = Field(default=1.3, ge=1.0, le=4.0, description="side of the square / longer side of the face box")
    fill: Literal[0] = Field(default=0, description="value of pixels outside the picture")

    def square(self, box: ArrayLike) -> tuple[int, int, int]:
        """Return ``(left, top, side)`` in pixels for a box ``[x0, y0, x1, y1]`` in pixels."""
        x0, y0, x1, y1 = np.asarray(box, np.float64)
        side = max(1, int(np.floor(self.margin * max(x1 - x0, y1 - y0) + 0.5)))
        left = int(np.floor((x0 + x1 - side) / 2 + 0.5))
        top = int(np.floor((y0 + y1 - side) / 2 + 0.5))
        return left, top, side

    def cut(self, frame: Frame, box: ArrayLike) -> NDArray[np.uint8]:
        """Cut a crop, uint8 [size, size, 3] RGB, out of a frame, uint8 [H, W, 3] RGB."""
        left, top, side = self.square(box)
        height, width = frame.shape[:2]
        square = np.full((side, side, 3), self.fill, np.uint8)
        x0, x1 = max(left, 0), min(left + side, width)
        y0, y1 = max(top, 0), min(top + side, height)
        if x0 < x1 and y0 < y1:
            square[y0 - top : y1 - top, x0 - left : x1 - left] = frame[y0:y1, x0:x1]
        kernel = cv2.INTER_AREA if side > self.size else cv2.INTER_LINEAR
        return np.asarray(cv2.resize(square, (self.size, self.size), interpolation=kernel), np.uint8)
