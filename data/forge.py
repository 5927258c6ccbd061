"""Self-blended forgeries: a face blended back onto itself (Shiohara & Yamasaki, CVPR 2022, section 3).

The source is the frame's own face after changes of colour, blur, scale, rotation and shift; the mask is a soft,
deformed ellipse over the face. One draw holds for a clip; small changes per frame imitate a real forgery's flicker.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.picture import Frame

WEAKEST = 0.25
"""Default least strength of forgeries; with 1 all are coarse.

Detectors that trained on coarse ones only were worse on persons and forgeries they had not seen: docs/lab-notes.md.
"""
REACH = 0.35
"""Share of the face's size by which a blend can extend beyond its box: the mask with its soft edge."""


@dataclass(frozen=True)
class Forgery:
    """One draw of a self-blended forgery; the defaults are the identity, which changes no pixel."""

    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Factor on R, G and B of the source."""
    blur: float = 0.0
    """Standard deviation of the Gaussian blur on the source, as a fraction of the face's width."""
    angle: float = 0.0
    """Rotation of the source in degrees."""
    scale: float = 1.0
    """Factor on the size of the source."""
    shift: tuple[float, float] = (0.0, 0.0)
    """Translation of the source as a fraction of the face's width and height."""
    opacity: float = 0.0
    """Weight of the source inside the mask, 0..1."""
    outline: tuple[float, ...] = ()
    """Amplitudes of the mask outline's cosine deformations of order 2, 3, ..."""
    softness: float = 0.08
    """Standard deviation of the mask's edge as a fraction of the face's width."""
    flicker: float = 0.0
    """Relative standard deviation of the changes per frame."""

    @classmethod
    def draw(cls, rng: np.random.Generator, weakest: float = 1.0) -> "Forgery":
        """Draw a coarse forgery (colour +-20 %, 4 degrees, 5 % scale, opacity .8 to 1), or a weaker one.

        Its changes are scaled by a strength that is drawn between ``weakest`` (0..1) and 1 (``weakened``).
        """
        sign = rng.choice([-1.0, 1.0], 3)
        coarse = cls(
            gain=tuple((1.0 + sign * rng.uniform(0.06, 0.20, 3)).tolist()),
            blur=float(rng.uniform(0.0, 0.015)),
            angle=float(rng.uniform(-4.0, 4.0)),
            scale=float(rng.uniform(0.95, 1.05)),
            shift=(float(rng.uniform(-0.03, 0.03)), float(rng.uniform(-0.03, 0.03))),
            opacity=float(rng.uniform(0.8, 1.0)),
            outline=tuple(rng.uniform(-0.06, 0.06, 3).tolist()),
            softness=float(rng.uniform(0.03, 0.08)),
            flicker=0.15,
        )
        return coarse.weakened(float(rng.uniform(weakest, 1.0))) if weakest < 1.0 else coarse

    def weakened(self, strength: float) -> "Forgery":
        """Return this forgery with its changes of colour, blur, angle, scale and shift scaled by ``strength``."""
        return replace(
            self,
            gain=tuple(1.0 + (gain - 1.0) * strength for gain in self.gain),  # type: ignore[arg-type]
            blur=self.blur * strength,
            angle=self.angle * strength,
            scale=1.0 + (self.scale - 1.0) * strength,
            shift=(self.shift[0] * strength, self.shift[1] * strength),
        )

    def jitter(self, rng: np.random.Generator) -> "Forgery":
        """Return this forgery with the small changes of one frame. The identity stays the identity."""
        if self.flicker == 0.0:
            return self
        wobble = 1.0 + self.flicker * rng.standard_normal(4)
        return replace(
            self,
            gain=tuple(1.0 + (gain - 1.0) * float(wobble[0]) for gain in self.gain),  # type: ignore[arg-type]
            angle=self.angle * float(wobble[1]),
            scale=1.0 + (self.scale - 1.0) * float(wobble[2]),
            shift=(self.shift[0] * float(wobble[3]), self.shift[1] * float(wobble[3])),
        )

    def mask(self, height: int, width: int, box: ArrayLike) -> NDArray[np.float32]:
        """Return the soft mask, float32 [height, width, 1] in 0..opacity, for a face box in pixels."""
        x0, y0, x1, y1 = np.asarray(box, np.float64)
        # dlib's box ends above the chin and at the cheeks: the ellipse is a little taller than the box.
        centre = ((x0 + x1) / 2, (y0 + y1) / 2 + 0.04 * (y1 - y0))
        angles = np.linspace(0.0, 2 * np.pi, 72, endpoint=False)
        radii = 1.0 + sum(
            amplitude * np.cos(order * angles + order) for order, amplitude in enumerate(self.outline, start=2)
        )
        outline = np.stack(
            [
                centre[0] + radii * 0.44 * (x1 - x0) * np.cos(angles),
                centre[1] + radii * 0.54 * (y1 - y0) * np.sin(angles),
            ],
            axis=-1,
        )
        mask = np.zeros((height, width), np.float32)
        cv2.fillPoly(mask, [np.round(outline).astype(np.int32)], 1.0)
        mask = np.asarray(cv2.GaussianBlur(mask, (0, 0), max(self.softness * (x1 - x0), 0.5)), np.float32)
        return (mask * self.opacity)[..., None]

    def blend(self, frame: Frame, box: ArrayLike) -> Frame:
        """Return the forged frame, uint8 [H, W, 3] RGB, of a frame whose face is at ``box`` (pixels)."""
        box = np.asarray(box, np.float64)
        margin = REACH * (box[2:] - box[:2])
        left, top = np.maximum(np.floor(box[:2] - margin), 0).astype(int)
        right, bottom = np.ceil(box[2:] + margin).astype(int)
        forged = frame.copy()
        region = forged[top:bottom, left:right]
        if region.size:
            region[:] = self._blend_region(region, box - np.array([left, top, left, top]))
        return forged

    def _blend_region(self, region: Frame, box: NDArray[np.float64]) -> Frame:
        """Return the forged region, uint8 [h, w, 3] RGB; ``box`` is in the region's pixels."""
        height, width = region.shape[:2]
        x0, y0, x1, y1 = box
        affine = cv2.getRotationMatrix2D(((x0 + x1) / 2, (y0 + y1) / 2), self.angle, self.scale)
        affine[:, 2] += (self.shift[0] * (x1 - x0), self.shift[1] * (y1 - y0))
        source = cv2.warpAffine(
            region, affine, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        ).astype(np.float32)
        source *= np.asarray(self.gain, np.float32)
        if self.blur > 0.0:
            source = np.asarray(cv2.GaussianBlur(source, (0, 0), max(self.blur * (x1 - x0), 0.3)), np.float32)
        mask = self.mask(height, width, box)
        return np.asarray(np.rint(region * (1.0 - mask) + np.clip(source, 0.0, 255.0) * mask), np.uint8)
