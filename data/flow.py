"""Dense optical flow between the crops of two frames, and the picture in which a store keeps it.

A flow is float32 [H, W, 2] (dx, dy) in pixels: what is at (x, y) in the first crop is at (x + dx, y + dy) in the
second.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from parsing import load_tensors
from stage import StageError, WrongArgument, reason_of, refuse_tf32

if TYPE_CHECKING:
    from torch import nn

Crop = NDArray[np.uint8]
Flow = NDArray[np.float32]
Estimate = Callable[[Crop, Crop], Flow]

FULL_SCALE = 0.05
"""Motion per frame, as a fraction of the crop's side, that is drawn at full brightness; faster motion is clipped.

One scale for all clips makes their pictures comparable. In 224-pixel crops of 11 talking heads (25 to 30 fps, 627
pairs) 95 % of the pixels move less, and the median motion, 0.17 %, is 8 of 255 steps. Of the clipped pixels, 96 % lie
in two videos of fast heads (95th percentile 14 %): a scale that held them would cost all others two of three steps.
"""
RAFT_MEND = "give --flow-weights FILE, a state dict of torchvision's raft_small or raft_large"
RAFT_MULTIPLE, RAFT_SMALLEST = 8, 128
"""RAFT works at an eighth of the side; its correlation pyramid needs that to be at least 16 (torchvision)."""


def _grey(crop: Crop) -> Crop:
    return np.asarray(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), np.uint8)


def _refuse_weights(name: str, weights: Path | None) -> None:
    if weights is not None:
        raise WrongArgument(f"--flow-weights {weights} is for --flow raft, {name} has no weights: leave it out")


def _dis(weights: Path | None) -> Estimate:
    """DIS (Kroeger et al., ECCV 2016), preset medium.

    On 224-pixel face crops warped by known smooth motion of some 3 pixels its median error is 0.4 pixels, in 5 ms.
    The faster presets stop at a quarter of the resolution (0.9 and 1.0); going on to the full one takes 20 ms (0.3).
    """
    _refuse_weights("dis", weights)
    dis: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return lambda first, second: np.asarray(dis.calc(_grey(first), _grey(second), None), np.float32)


def _farneback(weights: Path | None) -> Estimate:
    """Farneback (SCIA 2003) with OpenCV's usual window 15 and its advice for 5-pixel polynomials, sigma 1.2."""
    _refuse_weights("farneback", weights)

    def estimate(first: Crop, second: Crop) -> Flow:
        flow = cv2.calcOpticalFlowFarneback(_grey(first), _grey(second), None, 0.5, 3, 15, 3, 5, 1.2, 0)
        return np.asarray(flow, np.float32)

    return estimate


def _read_state(path: Path) -> dict[str, Any]:
    """Read a state dict from safetensors, or a torch file restricted to tensors. Raises StageError if it is none."""
    import torch

    if not path.is_file():
        raise StageError(f"--flow-weights {path} is not a file: {RAFT_MEND}")
    try:
        state = load_tensors(path)
    except ValueError as error:
        raise StageError(f"--flow-weights {path} cannot be read safely: {reason_of(error)}; {RAFT_MEND}") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise StageError(f"--flow-weights {path} is not a state dict: {RAFT_MEND}")
    return state


def _raft_network(path: Path) -> "nn.Module":
    """Return torchvision's RAFT, small or large, whose tensors are the file's. Raises StageError if neither fits."""
    from torchvision.models.optical_flow import raft_large, raft_small

    state = _read_state(path)
    shapes = {name: tensor.shape for name, tensor in state.items()}
    for build in (raft_small, raft_large):
        network: nn.Module = build()
        if {name: tensor.shape for name, tensor in network.state_dict().items()} == shapes:
            network.load_state_dict(state)
            return network.eval()
    raise StageError(f"--flow-weights {path} fits neither RAFT: {RAFT_MEND}")


def _raft(weights: Path | None) -> Estimate:
    """RAFT (Teed & Deng, ECCV 2020) with the user's weights; its inputs are scaled to -1..1.

    Raises WrongArgument without weights.
    """
    if weights is None:
        raise WrongArgument(f"--flow raft needs weights: {RAFT_MEND}")
    import torch

    refuse_tf32()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = _raft_network(weights).to(device)

    def estimate(first: Crop, second: Crop) -> Flow:
        with torch.inference_mode():
            pair = torch.from_numpy(np.stack([first, second])).to(device).permute(0, 3, 1, 2) / 127.5 - 1.0
            flow = network(pair[:1], pair[1:])[-1][0].permute(1, 2, 0)
        return np.ascontiguousarray(flow.cpu().numpy())

    return estimate


ESTIMATORS: dict[str, Callable[[Path | None], Estimate]] = {"dis": _dis, "farneback": _farneback, "raft": _raft}


def check_side(name: str, side: int) -> None:
    """Raise WrongArgument for crops of a side in pixels that the named estimator cannot take."""
    if name == "raft" and (side < RAFT_SMALLEST or side % RAFT_MULTIPLE):
        raise WrongArgument(
            f"--flow raft cannot take crops of {side} pixels: give a --size of at least {RAFT_SMALLEST} "
            f"and a multiple of {RAFT_MULTIPLE}"
        )


def flow_estimator(name: str, weights: Path | None = None) -> Estimate:
    """Return the named estimator: two crops, uint8 [S, S, 3] RGB, to their flow, float32 [S, S, 2] in pixels.

    Raises WrongArgument for an unknown name and weights that are missing or superfluous, StageError for weights that
    cannot be read safely or are of another network.
    """
    if name not in ESTIMATORS:
        raise WrongArgument(f"--flow {name} is not known: give one of {', '.join(ESTIMATORS)}")
    return ESTIMATORS[name](weights)


def flow_picture(flow: Flow) -> NDArray[np.uint8]:
    """Return the picture, uint8 [..., H, W, 3] RGB, of a flow, float32 [..., H, W, 2] in pixels.

    Hue is the direction (right red, down yellow-green, left cyan, up violet), saturation is full, value is the
    magnitude / (FULL_SCALE * longer side). Colours are computed in float: OpenCV's uint8 hue has 180 steps only.
    """
    dx, dy = flow[..., 0], flow[..., 1]
    value = np.minimum(np.hypot(dx, dy) / (FULL_SCALE * max(flow.shape[-3:-1])), 1.0)
    hsv = np.stack([np.degrees(np.arctan2(dy, dx)) % 360.0, np.ones_like(dx), value], axis=-1).astype(np.float32)
    rgb = cv2.cvtColor(hsv.reshape(-1, *hsv.shape[-2:]), cv2.COLOR_HSV2RGB).reshape(hsv.shape)
    return np.asarray(np.rint(rgb * 255.0), np.uint8)


def picture_flow(picture: NDArray[np.uint8]) -> Flow:
    """Return the flow, float32 [..., H, W, 2] in pixels, that a picture, uint8 [..., H, W, 3] RGB, shows.

    The error is at most 0.0047 * FULL_SCALE * side (0.05 pixels at 224): half a step of value and one of hue.
    """
    rgb = picture.reshape(-1, *picture.shape[-2:]).astype(np.float32) / 255.0
    hsv = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV).reshape(picture.shape)
    direction = np.radians(hsv[..., 0])
    magnitude = hsv[..., 2] * (FULL_SCALE * max(picture.shape[-3:-1]))
    return np.stack([magnitude * np.cos(direction), magnitude * np.sin(direction)], axis=-1).astype(np.float32)


def clip_flow(first: NDArray[np.uint8], second: NDArray[np.uint8], estimate: Estimate) -> NDArray[np.uint8]:
    """Return the flow pictures, uint8 [T, S, S, 3], from the crops of frames to the crops of the frames after them.

    Both are uint8 [T, S, S, 3] RGB; ``second[t]`` is cut at the square of frame t, so that a jittering face box does
    not look like motion.
    """
    return flow_picture(np.stack([estimate(before, after) for before, after in zip(first, second, strict=True)]))
