"""The geometry of a crop, against test vectors, exact fractions, padding and the formulas of the two resizers."""

import math
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from data.crops import CropRule, Fit

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


SHRINKING = np.array([[40, 20, 120, 100], [50, 30, 110, 90], [60.0, 40, 100, 80]], np.float32)
"""Sides 80, 60 and 40 about one centre."""


@pytest.mark.parametrize(("size", "inner"), [(16, (16, 12, 8)), (32, (32, 24, 16)), (100, (100, 75, 50))])
def test_padding_keeps_the_sizes_of_a_clips_faces_relative_to_each_other(size: int, inner: tuple[int, ...]) -> None:
    frame, pad = noise(120, 160), CropRule(size=size, margin=1.0, fit="pad")
    crops = pad.cut_clip([frame] * 3, SHRINKING)
    for crop, box, side in zip(crops, SHRINKING, inner, strict=True):
        start = (size - side) // 2
        middle = slice(start, start + side)
        if side >= 16:
            resized = CropRule(size=side, margin=1.0).cut(frame, box)
            np.testing.assert_array_equal(crop[middle, middle], resized)
        crop[middle, middle] = 0
        assert not crop.any()


def test_padded_sides_are_rounded_half_up_and_the_odd_pixel_is_below_and_right() -> None:
    boxes = np.array([[0, 0, 64, 64], [0, 0, 33, 33], [0, 0, 31, 31], [0, 0, 1, 1]], np.float32)
    crops = CropRule(size=32, margin=1.0, fit="pad").cut_clip([np.full((64, 64, 3), 255, np.uint8)] * 4, boxes)
    for crop, side, start in zip(crops, (32, 17, 16, 1), (0, 7, 8, 15), strict=True):
        expected = np.zeros((32, 32, 3), np.uint8)
        expected[start : start + side, start : start + side] = 255
        np.testing.assert_array_equal(crop, expected)


def test_padding_of_a_frame_alone_is_resizing() -> None:
    resize, pad = CropRule(size=48), CropRule(size=48, fit="pad")
    frame = noise(100, 160)
    for box in SHRINKING:
        np.testing.assert_array_equal(pad.cut(frame, box), resize.cut(frame, box))
        np.testing.assert_array_equal(pad.cut_clip([frame], box[None])[0], resize.cut(frame, box))


def test_resizing_fills_every_crop() -> None:
    frame = noise(120, 160)
    crops = CropRule(size=32, margin=1.0).cut_clip([frame] * 3, SHRINKING)
    expected = [CropRule(size=32, margin=1.0).cut(frame, box) for box in SHRINKING]
    np.testing.assert_array_equal(crops, expected)


def test_the_largest_square_can_be_that_of_other_boxes() -> None:
    pad = CropRule(size=32, margin=1.0, fit="pad")
    whole = pad.cut_clip([noise(120, 160)] * 3, SHRINKING)
    assert pad.largest(SHRINKING) == 80
    np.testing.assert_array_equal(pad.cut_clip([noise(120, 160)] * 2, SHRINKING[1:], largest=80), whole[1:])


@pytest.mark.parametrize("fit", ["resize", "pad"])
@pytest.mark.parametrize("box", [(60, 40, 121, 90), (-30, -20, 50, 61), (100, 30, 190, 140), (70, 50, 90, 74)])
@pytest.mark.parametrize("largest", [None, 170])
def test_a_box_in_its_crop_is_where_the_frame_s_pixels_are(
    fit: Fit, box: tuple[int, int, int, int], largest: int | None
) -> None:
    rule = CropRule(size=224, margin=1.4, fit=fit)
    inside = rule.box_in_crop(box, largest)
    (x0, y0, x1, y1), found = box, 0
    for corner, (x, y) in enumerate([(x0, y0), (x1, y0), (x0, y1), (x1, y1)]):
        if not (3 <= x <= 157 and 3 <= y <= 117):
            continue
        frame = np.zeros((120, 160, 3), np.uint8)
        frame[y - 2 : y + 2, x - 2 : x + 2] = 255
        weights = rule.cut(frame, box, largest)[..., 0].astype(float)
        down, across = (np.arange(224) + 0.5) @ weights.sum(1), (np.arange(224) + 0.5) @ weights.sum(0)
        expected = inside[[2 * (corner % 2), 1 + 2 * (corner // 2)]]
        np.testing.assert_allclose([across / weights.sum(), down / weights.sum()], expected, atol=0.3)
        found += 1
    assert found >= 1


@pytest.mark.parametrize("fit", ["resize", "pad"])
def test_a_crop_never_distorts(fit: Fit) -> None:
    frame = np.zeros((120, 160, 3), np.uint8)
    frame[30:70, 60:100] = 255
    for box in ((50, 20, 110, 60), (60, 10, 80, 80), (30, 25, 150, 80)):
        crop = CropRule(size=96, margin=1.6, fit=fit).cut(frame, box, largest=200)[..., 0] / 255
        across, down = crop.max(axis=0).sum(), crop.max(axis=1).sum()
        assert across == pytest.approx(down, abs=1.5)


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
        ({"fit": "stretch"}, "fit\n.*'resize' or 'pad'"),
        ({"side": 7}, "side\n.*not permitted"),
    ],
)
def test_rule_is_checked_when_it_is_made(options: dict[str, float | str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CropRule.model_validate(options)
