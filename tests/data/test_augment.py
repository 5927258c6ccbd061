"""Augmentation, against array reversal, PIL, scikit-image and arithmetic."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import skimage
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from data.augment import (
    HORIZONTAL_FLIP,
    TEN,
    VERTICAL_FLIP,
    Draw,
    Matrix,
    augment,
    crop_zoom,
    generator,
    map_vectors,
    perspective,
    rotation,
    warp,
)
from data.flow import flow_picture, picture_flow
from tests.data.conftest import SIZE, Pictures

CORNERS = [(0.05, 0.1), (0.9, 0.02), (0.8, 0.95), (0.1, 0.85)]
GEOMETRY = {
    "horizontal flip": HORIZONTAL_FLIP,
    "vertical flip": VERTICAL_FLIP,
    "rotation": rotation(30.0),
    "crop": crop_zoom(0.2, 0.1, 0.6),
    "perspective": perspective(CORNERS),
}


def constant_flow(dx: float, dy: float) -> NDArray[np.uint8]:
    return flow_picture(np.broadcast_to(np.array([dx, dy], np.float32), (2, SIZE, SIZE, 2)))


def draws(name: str, count: int) -> list[Draw]:
    return [TEN[name](np.random.default_rng(seed)) for seed in range(count)]


def centroid(picture: NDArray[np.float32]) -> NDArray[np.float64]:
    y, x = np.indices(picture.shape)
    return np.array([(x * picture).sum(), (y * picture).sum()]) / picture.sum()


@pytest.mark.parametrize("size", [1, 7, 33, 96, 224])
@pytest.mark.parametrize(("matrix", "axis"), [(HORIZONTAL_FLIP, 2), (VERTICAL_FLIP, 1)])
def test_flips_are_array_reversals_to_the_bit(size: int, matrix: Matrix, axis: int) -> None:
    frames = np.random.default_rng(size).integers(0, 256, (2, size, size, 3)).astype(np.uint8)
    for modality in ("rgb", "depth"):
        np.testing.assert_array_equal(Draw(matrix).apply(modality, frames), np.flip(frames, axis))


@pytest.mark.parametrize(("degrees", "turns"), [(90, 1), (-90, 3), (180, 2)])
def test_right_angles_are_array_rotations(clip: NDArray[np.uint8], degrees: float, turns: int) -> None:
    np.testing.assert_array_equal(warp(clip, rotation(degrees)), np.rot90(clip, turns, axes=(1, 2)))


@pytest.mark.parametrize("degrees", [-45.0, -13.0, 30.0])
def test_rotation_is_that_of_pil(clip: NDArray[np.uint8], degrees: float) -> None:
    rotated = warp(clip, rotation(degrees)).astype(int)
    for frame, picture in zip(rotated, clip, strict=True):
        expected = np.asarray(Image.fromarray(picture).rotate(degrees, Image.Resampling.BILINEAR), int)
        inside = np.hypot(*(np.indices((SIZE, SIZE)) - (SIZE - 1) / 2)) < SIZE / 2 - 2
        assert np.abs(frame - expected)[inside].max() <= 1


def test_perspective_is_that_of_scikit_image(clip: NDArray[np.uint8]) -> None:
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    transform = skimage.transform.ProjectiveTransform.from_estimate(square * SIZE - 0.5, np.array(CORNERS) * SIZE - 0.5)
    for frame, picture in zip(warp(clip, perspective(CORNERS)), clip, strict=True):
        expected = skimage.transform.warp(picture, transform.inverse, order=1, preserve_range=True)
        # At the edge, the two libraries blend with the black outside differently.
        whole = skimage.transform.warp(np.ones((SIZE, SIZE)), transform.inverse, order=1) == 1.0
        assert whole.mean() > 0.5
        assert np.abs(frame - expected)[whole].max() <= 0.51


def test_a_crop_is_cut_and_resized(clip: NDArray[np.uint8]) -> None:
    left, top, side = 12, 7, 37
    zoomed = warp(clip, crop_zoom(left / SIZE, top / SIZE, side / SIZE)).astype(int)
    for frame, picture in zip(zoomed, clip, strict=True):
        expected = cv2.resize(picture[top : top + side, left : left + side], (SIZE, SIZE)).astype(int)
        assert np.abs(frame - expected)[2:-2, 2:-2].max() <= 1


def test_brightness_adds_and_saturates(clip: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(Draw(brightness=77.0).apply("rgb", clip), np.minimum(clip.astype(int) + 77, 255))


@pytest.mark.parametrize("factor", [0.8, 1.3, 2.0])
def test_contrast_is_that_of_pil(clip: NDArray[np.uint8], factor: float) -> None:
    changed = Draw(contrast=factor).apply("rgb", clip).astype(int)
    expected = [np.asarray(ImageEnhance.Contrast(Image.fromarray(frame)).enhance(factor), int) for frame in clip]
    assert np.abs(changed - np.stack(expected)).max() <= 1


def test_noise_is_gaussian_of_variance_one_hundredth() -> None:
    grey = np.full((2, 96, 96, 3), 128, np.uint8)
    samples = 96 * 96 * 3
    for draw in draws("noise", 5):
        noise = (draw.apply("rgb", grey)[0].astype(float) - 128) / 255
        assert noise.mean() == pytest.approx(0.0, abs=4 * 0.1 / samples**0.5)
        assert noise.var() == pytest.approx(0.01, rel=4 * (2 / samples) ** 0.5)
        assert (np.abs(noise) < 0.1).mean() == pytest.approx(0.683, abs=0.015)
        assert abs(np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1]) < 0.03


def test_erasing_hides_a_rectangle_in_every_modality(pictures: Pictures) -> None:
    draw = Draw(erased=(0.25, 0.5, 0.5, 0.125))
    assert not picture_flow(np.zeros((1, 2, 2, 3), np.uint8)).any()
    for modality, frames in pictures.items():
        expected = frames.copy()
        expected[:, 32:40, 16:48] = 0
        np.testing.assert_array_equal(draw.apply(modality, frames), expected)


def test_erasing_keeps_the_bounds_of_the_study() -> None:
    boxes = [draw.erased for draw in draws("erasing", 2000)]
    erased = np.array([box for box in boxes if box is not None])
    assert len(erased) / len(boxes) == pytest.approx(0.5, abs=0.05)
    left, top, width, height = erased.T
    assert (width * height >= 0.02).all()
    assert (width * height <= 0.5).all()
    assert (height / width >= 0.2 - 1e-9).all()
    assert (height / width <= 1.0 + 1e-9).all()
    assert (erased >= 0.0).all()
    assert (np.maximum(left + width, top + height) <= 1.0 + 1e-9).all()


def test_draws_keep_the_bounds_of_the_study() -> None:
    rotations = [draw.matrix for draw in draws("rotation", 300)]
    angles = np.array([np.rad2deg(np.arctan2(m[0, 1], m[0, 0])) for m in rotations if m is not None])
    crops = np.array([draw.matrix for draw in draws("crop", 300)])
    offsets, sides = -crops[:, :2, 2], crops[:, 2, 2]
    for values, low, high in (
        (angles, -45.0, 45.0),
        (400 * offsets, 0.0, 100.0),
        (400 * sides, 100.0, 300.0),
        (np.array([draw.brightness for draw in draws("brightness", 300)]), 20.0, 100.0),
        (np.array([draw.contrast for draw in draws("contrast", 300)]), 0.8, 2.0),
    ):
        assert low <= values.min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < values.max() <= high


def test_perspective_moves_each_corner_inwards_by_up_to_a_quarter() -> None:
    corners = np.array([[0, 0, 1], [1, 0, 1], [1, 1, 1], [0, 1, 1]], float)
    moved = np.array([corners @ draw.matrix.T for draw in draws("perspective", 300) if draw.matrix is not None])
    moves = (moved[..., :2] / moved[..., 2:] - corners[:, :2]) * [[1, 1], [-1, 1], [-1, -1], [1, -1]]
    assert moves.min() > -1e-6
    assert 0.24 < moves.max() < 0.25 + 1e-6
    np.testing.assert_allclose(moves.mean(axis=0), 0.125, atol=0.02)


@pytest.mark.parametrize("name", sorted(TEN))
def test_one_draw_holds_for_all_frames_and_modalities(clip: NDArray[np.uint8], name: str) -> None:
    draw = next(draw for draw in draws(name, 20) if name != "erasing" or draw.erased)
    whole = draw.apply("rgb", clip)
    for t in range(len(clip)):
        np.testing.assert_array_equal(draw.apply("rgb", clip[t : t + 1])[0], whole[t])
    assert name == "identity" or (whole != clip).any(axis=(1, 2, 3)).all()
    if name in ("noise", "brightness", "contrast"):
        for modality in ("depth", "flow"):
            np.testing.assert_array_equal(draw.apply(modality, clip), clip)
    else:
        np.testing.assert_array_equal(draw.apply("depth", clip), whole)


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        (HORIZONTAL_FLIP, (-1.2, -0.4)),
        (VERTICAL_FLIP, (1.2, 0.4)),
        (rotation(90.0), (-0.4, -1.2)),
        (rotation(45.0), (0.4 * 2**0.5, -0.8 * 2**0.5)),
        (crop_zoom(0.1, 0.2, 0.5), (2.4, -0.8)),
    ],
)
def test_flow_pictures_keep_their_meaning(matrix: Matrix, expected: tuple[float, float]) -> None:
    flow = picture_flow(Draw(matrix).apply("flow", constant_flow(1.2, -0.4)))
    np.testing.assert_allclose(flow[:, SIZE // 2, SIZE // 2], [expected] * 2, atol=0.06)


def test_flow_is_none_where_the_warp_uncovers() -> None:
    flow = picture_flow(Draw(rotation(45.0)).apply("flow", constant_flow(1.2, -0.4)))
    np.testing.assert_array_equal(flow[:, :8, :8], 0.0)


@pytest.mark.parametrize("name", sorted(GEOMETRY))
def test_flow_leads_from_where_a_thing_is_seen_to_where_it_is_seen_next(name: str) -> None:
    start, motion = np.array([27.0, 36.0]), np.array([1.5, -1.0], np.float32)
    y, x = np.indices((SIZE, SIZE))
    spots = np.stack([np.exp(-((x - a) ** 2 + (y - b) ** 2) / 8) for a, b in (start, start + motion)])
    seen = [
        centroid(frame) for frame in warp(spots[..., None].repeat(3, -1).astype(np.float32), GEOMETRY[name])[..., 0]
    ]
    field = np.broadcast_to(motion, (1, SIZE, SIZE, 2))
    column, row = np.rint(seen[0]).astype(int)
    mapped = warp(map_vectors(field, GEOMETRY[name]), GEOMETRY[name])[0, row, column]
    np.testing.assert_allclose(mapped, seen[1] - seen[0], atol=0.06)
    flow = picture_flow(Draw(GEOMETRY[name]).apply("flow", flow_picture(field)))
    np.testing.assert_allclose(flow[0, row, column], seen[1] - seen[0], atol=0.08)


def test_view_zero_is_the_plain_clip_and_views_leave_their_input_alone(pictures: Pictures) -> None:
    before = {modality: frames.copy() for modality, frames in pictures.items()}
    for view in range(40):
        augmented = augment(pictures, "ten", 0, "clip", view)
        assert list(augmented) == list(pictures)
        for modality, frames in pictures.items():
            np.testing.assert_array_equal(frames, before[modality])
            assert augmented[modality].dtype == np.uint8
            assert augmented[modality].shape == frames.shape
            if view == 0:
                np.testing.assert_array_equal(augmented[modality], frames)


def test_each_of_the_ten_is_drawn_equally_often(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []

    def spied(name: str) -> Any:
        transformation = TEN[name]
        return lambda rng: (drawn.append(name), transformation(rng))[1]

    for name in TEN:
        monkeypatch.setitem(TEN, name, spied(name))
    picture = {"rgb": np.zeros((1, 4, 4, 3), np.uint8)}
    for view in range(1, 1001):
        augment(picture, "ten", 0, "clip", view)
    assert len(TEN) == 10
    counts = [drawn.count(name) for name in TEN]
    assert sum(counts) == 1000
    assert np.abs(np.array(counts) - 100).max() <= 4 * 90**0.5


def test_views_are_the_same_in_another_process_and_differ_from_each_other() -> None:
    script = (
        "import hashlib, numpy as np; from data.augment import augment;"
        "clip = {'rgb': np.arange(2 * 32 * 32 * 3).astype(np.uint8).reshape(2, 32, 32, 3)};"
        "views = [augment(clip, 'ten', 7, 'video-0', view)['rgb'].tobytes() for view in range(30)];"
        "print(hashlib.sha256(b''.join(views)).hexdigest())"
    )
    env, root = {**os.environ, "PYTHONHASHSEED": "12345"}, Path(__file__).parents[2]
    other = subprocess.check_output([sys.executable, "-c", script], env=env, cwd=root, text=True)
    clip = {"rgb": np.arange(2 * 32 * 32 * 3).astype(np.uint8).reshape(2, 32, 32, 3)}
    views = [augment(clip, "ten", 7, "video-0", view)["rgb"].tobytes() for view in range(30)]
    assert other.strip() == hashlib.sha256(b"".join(views)).hexdigest()
    assert len(set(views)) > 15


def test_each_seed_clip_and_view_has_its_own_generator() -> None:
    keys = [(0, "a", 1), (0, "a", 2), (1, "a", 1), (0, "b", 1), (0, "1 a", 1), (11, "a", 1), (1, "a", 11)]
    assert len({generator(*key).integers(2**62) for key in keys}) == len(keys)
    assert generator(0, "a", 1).integers(2**62) == generator(0, "a", 1).integers(2**62)
