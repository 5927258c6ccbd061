"""Modalities of a clip's frames in a store: the RGB crop, and depth and flow pictures made from it."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import numpy as np
import typer
from numpy.typing import NDArray

from data.crops import CropRule
from data.depth import DepthAnything, DepthWeights, depth_pictures
from data.flow import Estimate, check_side, clip_flow, flow_estimator
from data.picture import Frame
from files import sha256_of
from stage import Modality, WrongArgument


def flow_pictures(
    rgb: NDArray[np.uint8], frames: Sequence[Frame], boxes: NDArray[np.float32], rule: CropRule, estimate: Estimate
) -> NDArray[np.uint8]:
    """Return the flow pictures, uint8 [T, S, S, 3], of a clip with the crops ``rgb``, uint8 [T, S, S, 3].

    Each shows the motion from its frame, uint8 [H, W, 3] RGB, to the next, both cut at its own square; the last one
    repeats the one before it. boxes: float32 [T, 4] in pixels.
    """
    following = rule.cut_clip(frames[1:], boxes[:-1], largest=rule.largest(boxes))
    flow = clip_flow(rgb[:-1], following, estimate)
    return np.concatenate([flow, flow[-1:]])


@dataclass(frozen=True)
class Modalities:
    """Which pictures to make, and how. A worker process loads a network when it first needs it."""

    names: tuple[Modality, ...] = ("rgb",)
    flow: str = "dis"
    flow_weights: Path | None = None
    depth_size: str | None = None
    depth_weights: Path | None = None

    def pictures(
        self, frames: Sequence[Frame], boxes: NDArray[np.float32], valid: NDArray[np.bool_], rule: CropRule
    ) -> dict[str, NDArray[np.uint8]]:
        """Return each modality's pictures, uint8 [T, S, S, 3], of a clip's frames, uint8 [H, W, 3] RGB.

        boxes: float32 [T, 4] in pixels; valid: the frames that count, bool [T].
        """
        rgb = rule.cut_clip(frames, boxes)
        pictures = {"rgb": rgb}
        if "depth" in self.names:
            pictures["depth"] = depth_pictures(_depth(self.depth_size, self.depth_weights)(rgb), valid)
        if "flow" in self.names:
            pictures["flow"] = flow_pictures(rgb, frames, boxes, rule, _flow(self.flow, self.flow_weights))
        return pictures

    @property
    def in_torch(self) -> bool:
        """Whether a torch network makes one of the modalities."""
        return "depth" in self.names or ("flow" in self.names and self.flow == "raft")

    def depth_settings(self) -> DepthWeights | None:
        """Return the depth network's weights, None without depth. Raises StageError if they are missing or damaged."""
        return _depth(self.depth_size, self.depth_weights).weights if "depth" in self.names else None

    def flow_settings(self, side: int) -> str | None:
        """Return the flow estimator's name and weights' SHA-256, None without flow.

        Raises StageError if its weights are missing, damaged or not needed, WrongArgument for crops of a ``side`` in
        pixels that it cannot take.
        """
        if "flow" not in self.names:
            return None
        check_side(self.flow, side)
        _flow(self.flow, self.flow_weights)
        return self.flow if self.flow_weights is None else f"{self.flow} {sha256_of(self.flow_weights)}"


@functools.cache
def _depth(size: str | None, folder: Path | None) -> DepthAnything:
    return DepthAnything(size, folder)


@functools.cache
def _flow(name: str, weights: Path | None) -> Estimate:
    return flow_estimator(name, weights)


@dataclass(frozen=True)
class ModalityOptions:
    """Options of ``prepare``: which pictures to make, and how."""

    modalities: Annotated[str, typer.Option(help="rgb, and depth and flow if wanted, with commas between.")] = "rgb"
    flow: Annotated[Literal["dis", "farneback", "raft"], typer.Option(help="Estimator of optical flow.")] = "dis"
    flow_weights: Annotated[Path | None, typer.Option(help="Weights of RAFT.")] = None
    depth_size: Annotated[
        Literal["small", "base", "large"] | None, typer.Option(help="Size of Depth Anything V2; small.")
    ] = None
    depth_weights: Annotated[Path | None, typer.Option(help="Folder of Depth Anything V2's weights.")] = None

    def checked(self) -> Modalities:
        """Return the modalities to make. Raises WrongArgument that names the wrong option."""
        names = tuple(name.strip() for name in self.modalities.split(","))
        if len(set(names)) < len(names) or not {"rgb"} <= set(names) <= set(get_args(Modality)):
            raise WrongArgument(
                f"--modalities {self.modalities!r}: give rgb, and depth and flow if wanted, as rgb,depth,flow"
            )
        if "depth" not in names and (self.depth_size or self.depth_weights):
            raise WrongArgument("--depth-size and --depth-weights are for depth: add it to --modalities")
        if "flow" not in names and (self.flow_weights or self.flow != "dis"):
            raise WrongArgument("--flow and --flow-weights are for flow: add it to --modalities")
        ordered: list[Modality] = [name for name in get_args(Modality) if name in names]
        weight_paths = [path and path.absolute() for path in (self.flow_weights, self.depth_weights)]
        return Modalities(tuple(ordered), self.flow, weight_paths[0], self.depth_size, weight_paths[1])
