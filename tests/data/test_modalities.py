"""The pictures of each modality, against known motion of a pattern and a depth network called by hand."""

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from data.crops import CropRule
from data.depth import DepthAnything, depth_pictures
from data.flow import picture_flow
from data.modalities import Modalities
from files import sha256_of
from stage import StageError, WrongArgument

RULE = CropRule(size=96, margin=1.0)
ALL = np.ones(5, np.bool_)
STEADY = np.tile(np.array([60, 40, 156, 136], np.float32), (5, 1))
JITTER = STEADY + np.array([[0, 0], [5, -4], [-6, 3], [4, 5], [-3, -5]], np.float32)[:, [0, 1, 0, 1]]


@pytest.fixture(scope="module")
def pattern() -> NDArray[np.uint8]:
    """Smooth noise, uint8 [200, 240, 3]."""
    noise = np.random.default_rng(0).normal(0, 1, (200, 240, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2.5)
    return np.clip(128 + 60 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def moving(pattern: NDArray[np.uint8], motions: list[tuple[int, int]]) -> list[NDArray[np.uint8]]:
    """Frames whose content moves by (right, down) pixels from each to the next."""
    places = np.concatenate([[[0, 0]], np.cumsum(motions, axis=0)])
    return [np.roll(pattern, (down, right), axis=(0, 1)) for right, down in places.tolist()]


def median_flow(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The median motion of each picture's middle, [T, 2] in pixels."""
    return np.median(picture_flow(pictures)[:, 16:-16, 16:-16], axis=(1, 2))


@pytest.mark.parametrize("boxes", [STEADY, JITTER], ids=["steady", "jitter"])
@pytest.mark.parametrize("fit", ["resize", "pad"])
def test_flow_is_the_content_s_motion_and_not_the_boxes(
    pattern: NDArray[np.uint8], boxes: NDArray[np.float32], fit: str
) -> None:
    motions = [(2, 0), (0, 3), (-3, 1), (1, -2)]
    rule = RULE.model_copy(update={"fit": fit})
    made = Modalities(("rgb", "flow")).pictures(moving(pattern, motions), boxes, ALL, rule)
    assert made["flow"].shape == made["rgb"].shape == (5, 96, 96, 3)
    np.testing.assert_allclose(median_flow(made["flow"]), [*motions, motions[-1]], atol=0.25)


def test_flow_of_what_stands_still_is_black_though_boxes_jitter(pattern: NDArray[np.uint8]) -> None:
    flow = Modalities(("rgb", "flow")).pictures([pattern] * 5, JITTER, ALL, RULE)["flow"]
    assert flow.max() <= 2


def test_the_last_flow_picture_repeats_the_one_before_it(pattern: NDArray[np.uint8]) -> None:
    flow = Modalities(("rgb", "flow")).pictures(moving(pattern, [(2, 0), (0, 3), (-3, 1), (1, -2)]), JITTER, ALL, RULE)
    np.testing.assert_array_equal(flow["flow"][-1], flow["flow"][-2])
    assert not np.array_equal(flow["flow"][-2], flow["flow"][-3])


def test_flow_of_a_growing_face_is_in_pixels_of_its_crop(pattern: NDArray[np.uint8]) -> None:
    boxes = np.array([[60, 40, 156, 136], [60, 40, 108, 88]], np.float32)
    frames = moving(pattern, [(2, 0)])
    resize = Modalities(("rgb", "flow")).pictures(frames, boxes[[1, 1]], ALL[:2], RULE)["flow"]
    pad = Modalities(("rgb", "flow")).pictures(frames, boxes, ALL[:2], RULE.model_copy(update={"fit": "pad"}))["flow"]
    np.testing.assert_allclose(median_flow(resize)[0], [4, 0], atol=0.3)
    np.testing.assert_allclose(median_flow(pad)[0], [2, 0], atol=0.3)


def test_padded_flow_of_what_stands_still_is_black_though_the_last_square_is_the_largest(
    pattern: NDArray[np.uint8],
) -> None:
    boxes = np.array([[72, 52, 144, 124], [60, 40, 156, 136]], np.float32)
    rule = RULE.model_copy(update={"fit": "pad"})
    flow = Modalities(("rgb", "flow")).pictures([pattern] * 2, boxes, ALL[:2], rule)["flow"]
    assert flow.max() <= 2


def test_rgb_is_the_crops(pattern: NDArray[np.uint8]) -> None:
    made = Modalities().pictures([pattern] * 5, JITTER, ALL, RULE)
    assert list(made) == ["rgb"]
    np.testing.assert_array_equal(made["rgb"], RULE.cut_clip([pattern] * 5, JITTER))


def test_depth_is_that_of_the_network_on_the_crops(pattern: NDArray[np.uint8], tiny_depth) -> None:
    valid = np.array([True, True, False, True, True])
    made = Modalities(("rgb", "depth"), depth_weights=tiny_depth).pictures([pattern] * 5, JITTER, valid, RULE)
    expected = depth_pictures(DepthAnything(folder=tiny_depth)(made["rgb"]), valid)
    assert list(made) == ["rgb", "depth"]
    np.testing.assert_array_equal(made["depth"], expected)
    assert made["depth"][valid].std() > 10
    assert not made["depth"][2].any()


def test_settings_name_the_estimators_with_the_hashes_of_their_weights(tiny_depth) -> None:
    assert (Modalities().flow_settings(64), Modalities().depth_settings()) == (None, None)
    chosen = Modalities(("rgb", "depth", "flow"), flow="farneback", depth_weights=tiny_depth)
    assert chosen.flow_settings(64) == "farneback"
    depth = chosen.depth_settings()
    assert depth is not None
    assert depth.sha256 == sha256_of(tiny_depth / "model.safetensors")


def test_estimators_that_cannot_be_had_are_said_before_work_begins(tmp_path) -> None:
    with pytest.raises(StageError, match="--flow raft needs weights: give --flow-weights FILE"):
        Modalities(("rgb", "flow"), flow="raft").flow_settings(128)
    with pytest.raises(WrongArgument, match="--flow raft cannot take crops of 100 pixels"):
        Modalities(("rgb", "flow"), flow="raft").flow_settings(100)
    with pytest.raises(StageError, match=r"--flow-weights .*a\.pth is for --flow raft, dis has no weights"):
        Modalities(("rgb", "flow"), flow_weights=tmp_path / "a.pth").flow_settings(128)
    with pytest.raises(StageError, match=r"has no config\.json, no preprocessor_config\.json"):
        Modalities(("rgb", "depth"), depth_weights=tmp_path).depth_settings()
