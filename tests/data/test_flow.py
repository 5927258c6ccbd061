"""Optical flow against known motion, and its picture against colorsys and closed forms."""

import colorsys
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from data.flow import FULL_SCALE, Crop, Flow, check_side, clip_flow, flow_estimator, flow_picture, picture_flow
from stage import StageError, WrongArgument

SIDE = 224
FULL = FULL_SCALE * SIDE


def face(photo: NDArray[np.uint8], x: int, y: int, side: int = SIDE) -> Crop:
    return photo[y : y + side, x : x + side]


def constant(dx: float, dy: float, side: int = 8) -> Flow:
    return np.full((side, side, 2), (dx, dy), np.float32)


def mirrored(flow: Flow) -> Flow:
    return flow[..., ::-1, :] * np.array([-1, 1], np.float32)


def random_flow(*shape: int) -> Flow:
    """Flow of all directions and of magnitudes up to full scale."""
    rng = np.random.default_rng(0)
    angle, magnitude = rng.uniform(0, 2 * np.pi, shape), rng.uniform(0, FULL_SCALE * shape[-1], shape)
    return np.stack([magnitude * np.cos(angle), magnitude * np.sin(angle)], -1).astype(np.float32)


@pytest.mark.parametrize("name", ["dis", "farneback"])
@pytest.mark.parametrize("motion", [(5, 0), (0, 3), (-4, -2)])
def test_flow_of_a_shifted_texture_is_its_shift(name, motion):
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3)).astype(np.uint8)
    texture = cv2.normalize(cv2.GaussianBlur(noise, None, 3.0), None, 0, 255, cv2.NORM_MINMAX)
    first, second = face(texture, 20, 20), face(texture, 20 - motion[0], 20 - motion[1])
    flow = flow_estimator(name)(first, second)
    assert flow.shape == (SIDE, SIDE, 2)
    assert flow.dtype == np.float32
    error = np.linalg.norm(flow - np.array(motion), axis=-1)
    assert np.median(error) < 0.05
    assert error[16:-16, 16:-16].max() < 0.5


@pytest.mark.parametrize("name", ["dis", "farneback"])
def test_flow_of_mirrored_crops_is_the_mirrored_flow(astronaut, name):
    estimate = flow_estimator(name)
    first, second = face(astronaut, 120, 40), face(astronaut, 116, 38)
    flow, other = estimate(first, second), estimate(first[:, ::-1], second[:, ::-1])
    assert np.median(np.abs(mirrored(flow) - other)) < 0.05


def test_mirrored_picture_of_flow_is_the_picture_of_mirrored_flow():
    flow = random_flow(2, 64, 64)
    read = picture_flow(flow_picture(flow)[..., ::-1, :])
    np.testing.assert_allclose(read * np.array([-1, 1]), mirrored(flow), atol=0.0047 * FULL_SCALE * 64)


@pytest.mark.parametrize(
    ("dx", "dy", "colour"),
    [(1, 0, (255, 0, 0)), (0, 1, (128, 255, 0)), (-1, 0, (0, 255, 255)), (0, -1, (128, 0, 255)), (0, 0, (0, 0, 0))],
)
def test_colours_of_the_four_directions_and_of_rest(dx, dy, colour):
    full = FULL_SCALE * 8
    assert np.abs(flow_picture(constant(dx * full, dy * full)) - np.array(colour)).max() <= 1  # 127.5 rounds either way
    np.testing.assert_array_equal(flow_picture(constant(dx * full, dy * full)), flow_picture(constant(dx * 9, dy * 9)))


def test_picture_is_the_hsv_colour_of_direction_and_magnitude():
    flow = random_flow(12, 16)
    picture = flow_picture(flow)
    for (dx, dy), pixel in zip(flow.reshape(-1, 2).tolist(), picture.reshape(-1, 3), strict=True):
        value = min(math.hypot(dx, dy) / (FULL_SCALE * 16), 1.0)
        colour = colorsys.hsv_to_rgb(math.atan2(dy, dx) / (2 * math.pi) % 1.0, 1.0, value)
        assert np.abs(pixel - 255.0 * np.array(colour)).max() < 0.51


def test_flow_is_read_back_from_its_picture_within_the_stated_error():
    flow = random_flow(8, SIDE, SIDE)
    error = np.linalg.norm(picture_flow(flow_picture(flow)) - flow, axis=-1)
    assert error.max() < 0.0047 * FULL
    assert np.sqrt(np.mean(error**2)) < 0.002 * FULL


def test_pictures_of_a_clip_are_those_of_its_pairs(astronaut):
    estimate = flow_estimator("dis")
    first = np.stack([face(astronaut, 120, 40, 96), face(astronaut, 150, 60, 96)])
    second = np.stack([face(astronaut, 118, 40, 96), face(astronaut, 150, 57, 96)])
    pictures = clip_flow(first, second, estimate)
    assert pictures.shape == (2, 96, 96, 3)
    assert pictures.dtype == np.uint8
    for picture, motion in zip(pictures, [(2, 0), (0, 3)], strict=True):
        assert np.median(np.linalg.norm(picture_flow(picture) - np.array(motion), axis=-1)) < 0.1


@pytest.fixture(scope="module")
def raft_state():
    """State dict of torchvision's raft_small, drawn at random."""
    import torch
    from torchvision.models.optical_flow import raft_small

    torch.manual_seed(0)
    return raft_small().state_dict()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_raft_is_the_network_of_torchvision_with_the_weights_of_the_file(astronaut, raft_state, tmp_path, suffix):
    import torch
    from safetensors.torch import save_file
    from torchvision.models.optical_flow import raft_small
    from torchvision.transforms._presets import OpticalFlow

    file = tmp_path / f"raft{suffix}"
    save_file(raft_state, file) if suffix == ".safetensors" else torch.save(raft_state, file)
    first, second = face(astronaut, 120, 40, 128), face(astronaut, 118, 40, 128)
    flow = flow_estimator("raft", file)(first, second)
    network = raft_small().eval()
    network.load_state_dict(raft_state)
    pair = [torch.from_numpy(crop.copy()).permute(2, 0, 1)[None] for crop in (first, second)]
    with torch.inference_mode():
        expected = network(*OpticalFlow()(*pair))[-1][0].permute(1, 2, 0).numpy()
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(flow, expected, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("side", [64, 180])
def test_raft_refuses_sides_that_it_cannot_divide(side):
    with pytest.raises(WrongArgument, match=f"of {side} pixels: give a --size of at least 128 and a multiple of 8"):
        check_side("raft", side)
    check_side("dis", side)
    check_side("raft", 136)


def test_weights_of_raft_are_read_strictly_and_safely(raft_state, tmp_path):
    import torch

    def refuse(weights: object, message: str) -> None:
        torch.save(weights, tmp_path / "raft.pth")
        with pytest.raises(
            StageError, match=rf"{message}.* give --flow-weights FILE, a state dict of torchvision's raft"
        ):
            flow_estimator("raft", tmp_path / "raft.pth")

    name = next(iter(raft_state))
    refuse({key: value for key, value in raft_state.items() if key != name}, "fits neither RAFT")
    refuse(raft_state | {"more": torch.zeros(1)}, "fits neither RAFT")
    refuse(raft_state | {name: torch.zeros(1)}, "fits neither RAFT")
    refuse({"epoch": 3}, "is not a state dict")
    refuse(Path("/"), "cannot be read safely: it holds other things than tensors")
    (tmp_path / "cut.safetensors").write_bytes(b"cut")
    with pytest.raises(StageError, match=r"cut\.safetensors cannot be read safely: .*header"):
        flow_estimator("raft", tmp_path / "cut.safetensors")


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("tvl1", None, "--flow tvl1 is not known: give one of dis, farneback, raft"),
        ("raft", None, "--flow raft needs weights: give --flow-weights FILE"),
        ("raft", Path("none.pth"), "--flow-weights none.pth is not a file: give --flow-weights FILE"),
        ("dis", Path("raft.pth"), "--flow-weights raft.pth is for --flow raft, dis has no weights: leave it out"),
    ],
)
def test_estimator_is_checked_when_it_is_made(name, weights, message):
    with pytest.raises(StageError, match=message):
        flow_estimator(name, weights)
