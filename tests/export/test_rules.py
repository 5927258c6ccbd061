"""The crop rule as its text says it, in NumPy alone: what an app's developer writes gives the bundle's test vectors."""

import cv2
import numpy as np
import pytest

from data.crops import CropRule
from export.rules import ClipRule, CropPixels, example_picture
from stage import Per


def area(old: int, new: int) -> np.ndarray:
    """Weights [new, old]: the share of each new pixel that an old one covers."""
    ratio, edges = old / new, np.arange(old)
    left, right = np.arange(new)[:, None] * ratio, (np.arange(new)[:, None] + 1) * ratio
    return np.clip(np.minimum(edges + 1, right) - np.maximum(edges, left), 0, None) / ratio


def bilinear(old: int, new: int) -> np.ndarray:
    """Weights [new, old] of the two old pixels whose centres are nearest."""
    place = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.clip(1 - np.abs(place[:, None] - np.arange(old)), 0, None)


def cut(picture: np.ndarray, box: tuple[float, ...], rule: CropRule, largest: int | None) -> np.ndarray:
    """Cut one crop as the manifest's text says."""
    x0, y0, x1, y1 = box
    side = int(np.floor(rule.margin * max(x1 - x0, y1 - y0) + 0.5))
    left, top = int(np.floor((x0 + x1 - side) / 2 + 0.5)), int(np.floor((y0 + y1 - side) / 2 + 0.5))
    black = np.pad(picture, ((side, side), (side, side), (0, 0)))
    square = black[top + side : top + 2 * side, left + side : left + 2 * side].astype(float)
    new = int(np.floor(side * rule.size / largest + 0.5)) if largest else rule.size
    weights = area(side, new) if side > new else bilinear(side, new)
    resized = np.einsum("ij,jkc,lk->ilc", weights, square, weights)
    crop, start = np.zeros((rule.size, rule.size, 3)), (rule.size - new) // 2
    crop[start : start + new, start : start + new] = resized
    return crop


@pytest.mark.parametrize("rule", [CropRule(size=112), CropRule(size=64, margin=1.7), CropRule(size=96, fit="pad")])
def test_the_text_alone_gives_the_crops_to_the_pixel(rule):
    pixels = CropPixels.of(rule)
    y, x = np.mgrid[: pixels.picture[1], : pixels.picture[0]]
    picture = np.stack([(x * x // 16 + 5 * y) % 256, (y * y // 16 + 3 * x) % 256, (x * y // 8) % 256], axis=-1)
    np.testing.assert_array_equal(picture, example_picture(rule.size))
    largest = max(rule.square(box)[2] for box in pixels.boxes) if rule.fit == "pad" else None
    expected = CropPixels.cut(rule, pixels.boxes)
    for box, crop in zip(pixels.boxes, expected, strict=True):
        assert np.abs(cut(picture, box, rule, largest) - crop).max() <= 2


@pytest.mark.parametrize("size", [64, 112, 224])
@pytest.mark.parametrize("kernel", [cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_AREA, cv2.INTER_CUBIC])
def test_another_filter_is_noticed(size, kernel):
    rule = CropRule(size=size)
    pixels = CropPixels.of(rule)
    given = rule.cut_clip([example_picture(size)] * 3, np.array(pixels.boxes), kernel=kernel)
    assert np.abs(given.astype(int) - CropPixels.cut(rule, pixels.boxes)).max() >= 17


def test_squares_shrink_leave_the_picture_and_grow():
    rule = CropRule(size=100)
    (_, _, first), (left, _, second), (_, _, third) = (rule.square(box) for box in CropPixels.of(rule).boxes)
    assert first > 100 and second > 100 and left < 0 and third < 100


@pytest.mark.parametrize(
    ("per", "measured", "video", "said"),
    [
        ("clip", 25.0, 60.0, "60 frames a second: clips were measured at a median of 25"),
        ("clip", 25.0, 12.5, "12.5 frames a second: clips were measured at a median of 25"),
        ("clip", 25.0, 30.0, ""),
        ("clip", 25.0, 0.0, ""),  # a photo
        ("clip", None, 60.0, ""),
        ("frame", 25.0, 60.0, ""),
    ],
)
def test_a_video_of_another_rate_than_the_clips_says_so(
    per: Per, measured: float | None, video: float, said: str
) -> None:
    assert ClipRule.of(8, per, measured).other_rate(video) == said
