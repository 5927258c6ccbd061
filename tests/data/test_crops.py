"""The geometry of a crop, against test vectors, exact fractions, padding and the formulas of the two resizers."""

import math
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from data.crops import CropRule

WHITE = np.full((100, 160, 3), 255, np.uint8)


def noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    ("box", "margin", "square"),
    [
        ((10, 20, 110, 120), 1.3, (-5, 5, 130)),
        ((10, 20, 110, 60), 1.3, (-5, -25, 130)),
        ((0, 0, 5, 5), 1.3, (-1, -1, 7)),
        ((0, 0, 4, 10), 1.3, (-4, -1, 13)),
        ((3, 3, 4, 4), 1.0, (3, 3, 1)),
        ((50.5, 20.25, 70.5, 41.25), 2.0, (40, 10, 42)),
        ((-30, -30, -10, -10), 1.0, (-30, -30, 20)),
        ((7, 7, 7, 7), 1.3, (7, 7, 1)),
    ],
)
def test_square_of_a_box(box: tuple[float, ...], margin: float, square: tuple[int, int, int]) -> None:
    assert CropRule(margin=margin).square(box) == square


def test_square_rounds_half_up_as_exact_fractions_do() -> None:
    half = Fraction(1, 2)
    rng = np.random.default_rng(0)
    for x0, y0, width, height in rng.integers(1, 2000, (2000, 4)).tolist():
        side = math.floor(Fraction(13, 10) * max(width, height) + half)
        left = math.floor(Fraction(2 * x0 + width - side, 2) + half)
        top = math.floor(Fraction(2 * y0 + height - side, 2) + half)
        assert CropRule().square((x0, y0, x0 + width, y0 + height)) == (left, top, side)


@pytest.mark.parametrize("corner", [(-9, -7), (150, 90), (-8, 90), (20, 20), (151, -5)])
def test_crop_of_its_own_size_is_a_slice_of_the_padded_frame(corner: tuple[int, int]) -> None:
    frame = noise(100, 160)
    x, y = corner
    padded = np.pad(frame, ((64, 64), (64, 64), (0, 0)))
    crop = CropRule(size=16, margin=1.0).cut(frame, (x, y, x + 16, y + 16))
    np.testing.assert_array_equal(crop, padded[64 + y : 80 + y, 64 + x : 80 + x])


def test_outside_of_the_frame_is_black() -> None:
    crop = CropRule(size=32, margin=1.0).cut(WHITE, (-32, -32, 32, 32))
    assert (crop[16:, 16:] == 255).all()
    assert not crop[:15].any()
    assert not crop[:, :15].any()
    assert not CropRule(size=32).cut(WHITE, (500, 500, 540, 540)).any()


def test_a_large_square_shrinks_by_area() -> None:
    frame = noise(100, 160)
    crop = CropRule(size=16, margin=1.0).cut(frame, (8, 4, 88, 84))
    means = frame[4:84, 8:88].reshape(16, 5, 16, 5, 3).mean(axis=(1, 3))
    assert np.abs(crop - means).max() <= 0.51


def test_a_small_square_grows_bilinearly_between_pixel_centres() -> None:
    frame = noise(100, 160)
    crop = CropRule(size=48, margin=1.0).cut(frame, (30, 40, 50, 60))
    small = frame[40:60, 30:50].astype(float)
    at = np.clip((np.arange(48) + 0.5) * 20 / 48 - 0.5, 0, 19)
    rows = np.stack([np.interp(at, np.arange(20), column) for column in small.reshape(20, -1).T], -1).reshape(48, 20, 3)
    grown = np.stack([[np.interp(at, np.arange(20), row[:, c]) for c in range(3)] for row in rows]).transpose(0, 2, 1)
    assert np.abs(crop - grown).max() <= 1.0


def test_frame_is_left_as_it_was() -> None:
    frame = noise(100, 160)
    CropRule(size=16).cut(frame, (8, 4, 88, 84))[:] = 0
    np.testing.assert_array_equal(frame, noise(100, 160))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 8}, "size\n.*greater than or equal to 16"),
        ({"size": 2000}, "size\n.*less than or equal to 1024"),
        ({"margin": 0.9}, "margin\n.*greater than or equal to 1"),
        ({"fill": 7}, "fill\n.*should be 0"),
        ({"side": 7}, "side\n.*not permitted"),
    ],
)
def test_rule_is_checked_when_it_is_made(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CropRule.model_validate(options)
