"""Augmentation of whole clips: one draw applies to all frames and all modalities of a clip.

The policy ``ten`` draws one of the ten transformations of the Megatron study. Geometric ones move every modality and
also turn the motion vectors of flow pictures; an erased rectangle is an occluder and hides every modality; photometric
ones change RGB only. Uncovered and hidden pixels are black, which in a flow picture means no motion. The other
policies are torchvision's and timm's, by name (``data/policies.py``).

A frame's augmented picture does not depend on which other frames of its clip are loaded.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.flow import flow_picture, picture_flow
from data.policies import TIMM, TORCHVISION, apply_policy
from stage import WrongArgument

Matrix = NDArray[np.float64]
"""A homography, float64 [3, 3], of the unit square: x right, y down, the picture's outer corners (0, 0) and (1, 1)."""

DEFAULT_POLICY = "ten"
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Share of R, G and B in the grey level (ITU-R BT.601)."""

HORIZONTAL_FLIP: Matrix = np.array([[-1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
VERTICAL_FLIP: Matrix = np.array([[1.0, 0.0, 0.0], [0.0, -1.0, 1.0], [0.0, 0.0, 1.0]])


def rotation(degrees: float) -> Matrix:
    """Return the rotation about the picture's centre, counter-clockwise as seen."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[cos, sin, (1 - cos - sin) / 2], [-sin, cos, (1 + sin - cos) / 2], [0.0, 0.0, 1.0]])


def crop_zoom(left: float, top: float, side: float) -> Matrix:
    """Return the homography that enlarges a square, in fractions of the picture's side, to the whole picture."""
    return np.array([[1.0, 0.0, -left], [0.0, 1.0, -top], [0.0, 0.0, side]])


def perspective(corners: ArrayLike) -> Matrix:
    """Return the homography that moves the unit square's corners, clockwise from upper left, to ``corners``, [4, 2]."""
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
    return np.asarray(cv2.getPerspectiveTransform(square, np.asarray(corners, np.float32)), np.float64)


def _in_pixels(matrix: Matrix, size: int) -> Matrix:
    """Return the homography between pixel numbers: the centre of pixel i is at (i + 0.5) / size."""
    to_pixels = np.array([[size, 0.0, -0.5], [0.0, size, -0.5], [0.0, 0.0, 1.0]])
    return to_pixels @ matrix @ np.linalg.inv(to_pixels)


def warp(frames: NDArray[np.generic], matrix: Matrix) -> NDArray[np.generic]:
    """Warp pictures [T, S, S, C], uint8 or float32, bilinearly; pixels from outside the picture are 0."""
    size = frames.shape[1]
    pixels = _in_pixels(matrix, size)
    return np.stack([cv2.warpPerspective(frame, pixels, (size, size), flags=cv2.INTER_LINEAR) for frame in frames])


def map_vectors(flow: NDArray[np.float32], matrix: Matrix) -> NDArray[np.float32]:
    """Map the motion vectors, float32 [T, S, S, 2] in pixels, by the homography's Jacobian at each pixel.

    With q = H p / w, the vector v at p becomes (H v - q (h3 v)) / w, where h3 is H's last row and v has no third part.
    """
    size = flow.shape[1]
    pixels = _in_pixels(matrix, size)
    y, x = np.indices((size, size))
    points = np.stack([x, y, np.ones_like(x)], axis=-1) @ pixels.T
    w = points[..., 2:]
    moved = flow @ pixels[:, :2].T
    return ((moved[..., :2] - points[..., :2] / w * moved[..., 2:]) / w).astype(np.float32)


def warp_flow(frames: NDArray[np.uint8], matrix: Matrix) -> NDArray[np.uint8]:
    """Warp flow pictures, uint8 [T, S, S, 3]: vectors are moved and mapped, and clipped at ``FULL_SCALE``."""
    return flow_picture(np.asarray(warp(map_vectors(picture_flow(frames), matrix), matrix), np.float32))


@dataclass(frozen=True, eq=False)
class Draw:
    """One draw of the ten transformations; the defaults are the identity, which changes no pixel."""

    matrix: Matrix | None = None
    erased: tuple[float, float, float, float] | None = None
    """Left, top, width and height of a rectangle as fractions of the picture's side."""
    brightness: float = 0.0
    """Value added to each channel (0..255)."""
    contrast: float = 1.0
    """Factor on the distance from the frame's mean grey level, as in PIL and torchvision."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise in grey levels. A draw's noise is the same on each frame."""
    noise_seed: int = 0

    def apply(self, modality: str, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the augmented pictures, uint8 [T, S, S, 3], of one modality's pictures of that shape."""
        if modality == "rgb":
            frames = self._photometry(frames)
        if self.matrix is not None:
            frames = np.asarray((warp_flow if modality == "flow" else warp)(frames, self.matrix), np.uint8)
        if self.erased is not None:
            left, top, width, height = np.array(self.erased) * frames.shape[1]
            (x0, x1), (y0, y1) = np.rint([[left, left + width], [top, top + height]]).astype(int)
            frames = frames.copy()
            frames[:, y0:y1, x0:x1] = 0
        return frames

    def _photometry(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if (self.brightness, self.contrast, self.noise) == (0.0, 1.0, 0.0):
            return frames
        grey = (frames.mean(axis=(1, 2), dtype=np.float32) @ LUMA)[:, None, None, None]
        values = self.contrast * frames.astype(np.float32) + ((1.0 - self.contrast) * grey + self.brightness)
        if self.noise > 0.0:
            values += np.random.default_rng(self.noise_seed).normal(0.0, self.noise, frames.shape[1:])
        return np.asarray(np.clip(np.rint(values), 0, 255), np.uint8)


def _draw_crop(rng: np.random.Generator) -> Draw:
    # The study's offset 0..100 and side 100..300 pixels keep every draw within 400 pixels: fractions of 400.
    return Draw(crop_zoom(rng.uniform(0.0, 0.25), rng.uniform(0.0, 0.25), rng.uniform(0.25, 0.75)))


def _draw_perspective(rng: np.random.Generator) -> Draw:
    # The study gives no strength: each corner moves inwards by up to a quarter, as in torchvision's default.
    inwards = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) * rng.uniform(0.0, 0.25, (4, 2))
    return Draw(perspective(np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) + inwards))


def _draw_erasing(rng: np.random.Generator) -> Draw:
    """Draw the probability, the bounds of the area, the area, then height / width: log-uniform where it fits."""
    if rng.random() >= rng.uniform(0.3, 0.7):
        return Draw()
    area = rng.uniform(rng.uniform(0.02, 0.05), rng.uniform(0.2, 0.5))
    ratio = np.exp(rng.uniform(np.log(max(0.2, area)), 0.0))
    width, height = float(np.sqrt(area / ratio)), float(np.sqrt(area * ratio))
    return Draw(erased=(rng.random() * (1 - width), rng.random() * (1 - height), width, height))


TEN: dict[str, Callable[[np.random.Generator], Draw]] = {
    "identity": lambda _: Draw(),
    "rotation": lambda rng: Draw(rotation(rng.uniform(-45.0, 45.0))),
    "horizontal_flip": lambda _: Draw(HORIZONTAL_FLIP),
    "vertical_flip": lambda _: Draw(VERTICAL_FLIP),
    "crop": _draw_crop,
    "brightness": lambda rng: Draw(brightness=rng.uniform(20.0, 100.0)),
    "perspective": _draw_perspective,
    "erasing": _draw_erasing,
    "noise": lambda rng: Draw(noise=255.0 * 0.01**0.5, noise_seed=int(rng.integers(2**32))),
    "contrast": lambda rng: Draw(contrast=rng.uniform(0.8, 2.0)),
}


MOST_OF_POLICY = 100
"""Largest magnitude or count in a policy's name; larger ones take for ever."""


def generator(seed: int, clip_id: str, view: int) -> np.random.Generator:
    """Return the random generator of a view, which draws the same numbers in every process."""
    digest = hashlib.sha256(f"{seed} {view} {clip_id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest))


def check_policy(policy: str, modalities: Iterable[str]) -> None:
    """Raise WrongArgument for a policy that is unknown or cannot augment these modalities."""
    if policy == DEFAULT_POLICY:
        return
    if policy not in TORCHVISION and not TIMM.fullmatch(policy):
        raise WrongArgument(
            f"--augment {policy} is not known: take {', '.join((DEFAULT_POLICY, *TORCHVISION))}, "
            "or timm's rand, augmix, original, originalr, v0, v0r or 3a with its sections, such as rand-m9-mstd0.5"
        )
    without_mstd = re.sub(r"mstd[\d.]+", "", policy)  # mstd above 100 is legal: it draws from all magnitudes alike
    if any(float(number) > MOST_OF_POLICY for number in re.findall(r"\d+(?:\.\d+)?", without_mstd)):
        raise WrongArgument(f"--augment {policy}: numbers of a policy are at most {MOST_OF_POLICY}")
    others = [modality for modality in modalities if modality != "rgb"]
    if others:
        raise WrongArgument(
            f"--augment {policy} mixes geometry and photometry, so it fits rgb only, not {', '.join(others)}: "
            f"take --augment {DEFAULT_POLICY}"
        )


def augment(
    pictures: Mapping[str, NDArray[np.uint8]], policy: str, seed: int, clip_id: str, view: int
) -> dict[str, NDArray[np.uint8]]:
    """Return a view of a clip: ``pictures`` and the result are modality -> uint8 [T, S, S, 3].

    View 0 is the clip without augmentation. Raises WrongArgument for a policy that is unknown or cannot augment these
    modalities.
    """
    check_policy(policy, pictures)
    if view == 0:
        return dict(pictures)
    rng = generator(seed, clip_id, view)
    if policy == DEFAULT_POLICY:
        draw = list(TEN.values())[rng.integers(len(TEN))](rng)
        return {modality: draw.apply(modality, frames) for modality, frames in pictures.items()}
    return {modality: apply_policy(policy, frames, int(rng.integers(2**32))) for modality, frames in pictures.items()}
