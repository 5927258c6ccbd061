"""Relative depth of crops by Depth Anything V2 (Yang et al., NeurIPS 2024), and its picture in a store."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from files import name_of, sha256_of
from parsing import card_licence
from stage import StageError, WrongArgument, reason_of, refuse_tf32

if TYPE_CHECKING:
    from torch import Tensor

BATCH_FRAMES = 4
"""Frames per batch. Only GPUs gain: on a CPU core Small took 1.7 s a frame alone, 1.9 s (2.5 GB) in a batch of 8."""
FILES = ("config.json", "preprocessor_config.json", "model.safetensors")
MEND = f"give --depth-weights DIR, a transformers folder of Depth Anything V2 with {', '.join(FILES)}"


@dataclass(frozen=True)
class PublishedWeights:
    """Published weights: their repository on the hub, and the licence that their model card names."""

    repository: str
    licence: str


SIZES = {
    "small": PublishedWeights("depth-anything/Depth-Anything-V2-Small-hf", "apache-2.0"),
    "base": PublishedWeights("depth-anything/Depth-Anything-V2-Base-hf", "cc-by-nc-4.0"),
    "large": PublishedWeights("depth-anything/Depth-Anything-V2-Large-hf", "cc-by-nc-4.0"),
}


class DepthWeights(BaseModel):
    """Where the depth network's weights came from, and under which licence they may be used."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Literal["hub", "folder"]
    name: str
    sha256: str
    licence: str

    @property
    def published_size(self) -> str | None:
        """The size, a key of ``SIZES``, of the published weights that these are; None if they are from a folder."""
        sizes = [size for size, published in SIZES.items() if published.repository == self.name]
        return sizes[0] if sizes and self.source == "hub" else None


def _from_hub(repository: str) -> Path:
    """Return the folder with a repository's files, which are downloaded unless the hub's cache has them.

    Raises StageError if neither has them.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=list(FILES), etag_timeout=10))
    except Exception as error:  # whichever HTTP library the hub client uses has its own errors
        raise StageError(
            f"the weights of {repository} are not on this machine and the hub does not give them "
            f"({reason_of(error)}): {MEND}"
        ) from error


def _load(folder: Path) -> tuple[Any, Any]:
    """Read the network and its image processor from a folder; safetensors only, and no code from the folder.

    Raises StageError if it holds no network of relative depth that can be read.
    """
    import torch
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor
    from transformers.utils import logging

    logging.set_verbosity_error()  # it would print tables of tensors before the one line of a StageError
    logging.disable_progress_bar()
    try:
        config = DepthAnythingConfig.from_pretrained(folder, local_files_only=True)
        if not isinstance(config.backbone_config, Dinov2Config) or config.depth_estimation_type != "relative":
            raise ValueError("config.json does not describe relative depth on a DINOv2 backbone")
        network, report = DepthAnythingForDepthEstimation.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        if misfits := len(report["missing_keys"]) + len(report["mismatched_keys"]):
            raise ValueError(f"{misfits} tensors that config.json needs are not in model.safetensors")
        return network.eval(), DPTImageProcessor.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers has no error of its own: a damaged file makes it raise nearly anything
        raise StageError(f"{folder} holds no depth network that can be read: {reason_of(error)}; {MEND}") from error


def find_weights(size: str | None, folder: Path | None) -> tuple[Path, DepthWeights]:
    """Return the folder of the weights, and their description.

    Raises WrongArgument for both options or an unknown size, StageError if files are missing.
    """
    if size is not None and folder is not None:
        raise WrongArgument("--depth-size and --depth-weights exclude each other: give one of them")
    published = SIZES.get(size or "small")
    if published is None:
        raise WrongArgument(f"--depth-size {size} is not known: give one of {', '.join(SIZES)}")
    files = folder or _from_hub(published.repository)
    if absent := [name for name in FILES if not (files / name).is_file()]:
        raise StageError(f"{files} has no {', no '.join(absent)} (pickled weights are not read): {MEND}")
    sha256 = sha256_of(files / "model.safetensors")
    if folder is None:
        name, licence = published.repository, published.licence
        return files, DepthWeights(source="hub", name=name, sha256=sha256, licence=licence)
    name, licence = name_of(folder), card_licence(folder)
    return files, DepthWeights(source="folder", name=name, sha256=sha256, licence=licence)


class DepthAnything:
    """Depth Anything V2, on a GPU if there is one, with weights of a published size or from a transformers folder.

    Raises StageError if both ``size`` and ``folder`` are given, if the size is unknown, or if the weights are missing,
    damaged or not safetensors.
    """

    def __init__(self, size: str | None = None, folder: Path | None = None) -> None:
        import torch

        refuse_tf32()
        files, self.weights = find_weights(size, folder)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        network, self._processor = _load(files)
        self._network = network.to(self._device)

    def __call__(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the relative inverse depth (near is large), float32 [N, S, S], of crops, uint8 [N, S, S, 3] RGB."""
        depth = np.empty(crops.shape[:3], np.float32)
        for start in range(0, len(crops), BATCH_FRAMES):
            batch = slice(start, start + BATCH_FRAMES)
            depth[batch] = self._batch(crops[batch]).cpu().numpy()
        return depth

    def _batch(self, crops: NDArray[np.uint8]) -> "Tensor":
        """Return the relative inverse depth, float32 [B, S, S], of a batch of crops."""
        import torch

        with torch.inference_mode():
            inputs = self._processor(list(crops), input_data_format="channels_last", return_tensors="pt")
            outputs = self._network(**inputs.to(self._device))
            maps = self._processor.post_process_depth_estimation(outputs, [crops.shape[1:3]] * len(crops))
        return torch.stack([entry["predicted_depth"] for entry in maps])


def depth_pictures(depth: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return relative inverse depth, float32 [T, S, S], as grey pictures, uint8 [T, S, S, 3]: near is bright.

    0..255 span the minimum and maximum over the clip's valid frames, bool [T]: scaled frame by frame, the whole picture
    would flicker with each frame's extremes, and a face that nears the camera would look as if it stood still.
    Frames that are not valid are black, as is a clip of constant depth.
    """
    grey = np.zeros(depth.shape, np.uint8)
    low, high = (depth[valid].min(), depth[valid].max()) if valid.any() else (0.0, 0.0)
    if high > low:
        grey[valid] = np.rint((depth[valid] - low) * (255.0 / (high - low)))
    return np.repeat(grey[..., None], 3, axis=-1)
