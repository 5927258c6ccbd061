"""The one way to load and run an artifact. Imports no runtime until one is asked for."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stage import StageError, reason_of

Runtime = Literal["executorch", "onnxruntime", "coreml"]
ProgramName = Literal["forward", "embed", "score"]
"""``forward`` scores a frame; ``embed`` and ``score`` are the two steps of a clip student."""
Runner = Callable[..., NDArray[np.float32]]
"""A loaded artifact: crops uint8 [N, S, S, 3] RGB 0..255, or clips uint8 [N, T, S, S, 3] and which frames are valid,
bool [N, T], to P(fake), float32 [N]."""
Loaded = Callable[..., NDArray[np.float32]]
"""A loaded program: its inputs in the manifest's order, contiguous and of batch 1, to its output. An image is uint8
[1, S, S, 3] for Core ML too."""
Programs = Callable[[ProgramName], Loaded]
"""An opened artifact: gives its programs by name."""

SUFFIXES: dict[str, Runtime] = {".pte": "executorch", ".onnx": "onnxruntime", ".mlpackage": "coreml"}
SUFFIX_OF = {runtime: suffix for suffix, runtime in SUFFIXES.items()}


class NotEvaluated(StageError):
    """A program that cannot run here has an operation that Pocketproof does not evaluate either."""


def cannot_run(runtime: Runtime) -> str | None:
    """Say why artifacts of a runtime cannot be scored with on this machine, or None if they can."""
    needed = {"executorch": ("executorch", "torch"), "onnxruntime": ("onnxruntime",), "coreml": ("coremltools",)}
    for package in needed[runtime]:
        if not importlib.util.find_spec(package):
            return f"the package {package} is not installed"
    return None


def evaluated_by(runtime: Runtime) -> str | None:
    """Say what scores in a runtime's place on this machine, where nothing can be timed; None if it runs itself."""
    if runtime == "coreml" and sys.platform != "darwin":
        return "by Pocketproof, not by Core ML, which needs macOS"
    return None


def program_file(artifact: Path, runtime: Runtime, name: ProgramName) -> Path:
    """Return the file of an artifact's program: a ``.pte`` holds several, elsewhere two are two files in a folder."""
    if name == "forward" or runtime == "executorch":
        return artifact
    return artifact / f"{name}{SUFFIX_OF[runtime]}"


def frame_runner(forward: Loaded) -> Runner:
    """Return a runner of crops, uint8 [N, S, S, 3] RGB 0..255 -> P(fake) float32 [N], that runs one at a time."""

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.array([forward(np.ascontiguousarray(crop[None])).item() for crop in pixels], np.float32)

    return run


def clip_runner(embed: Loaded, score: Loaded) -> Runner:
    """Return a runner of clips, uint8 [N, T, S, S, 3] RGB 0..255 and valid bool [N, T] -> P(fake) float32 [N].

    Each valid frame is embedded once; the others have embeddings of zeros. Raises StageError for a clip that has none.
    """

    def run_one(frames: NDArray[np.uint8], valid: NDArray[np.bool_]) -> float:
        if not valid.any():
            raise StageError("a clip has no valid frame: there is nothing to score")
        found = [embed(np.ascontiguousarray(frame[None])) for frame in frames[valid]]
        embeddings = np.zeros((1, len(frames), found[0].shape[-1]), np.float32)
        embeddings[0, valid] = np.concatenate(found)
        return float(score(embeddings, valid[None].astype(np.float32)).item())

    def run(pixels: NDArray[np.uint8], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        return np.array([run_one(*clip) for clip in zip(pixels, valid, strict=True)], np.float32)

    return run


def runner_of(programs: Programs, per: Literal["frame", "clip"]) -> Runner:
    """Return what scores frames or clips by the programs of an artifact."""
    return frame_runner(programs("forward")) if per == "frame" else clip_runner(programs("embed"), programs("score"))


def load_artifact(path: Path, runtime: Runtime, threads: int, per: Literal["frame", "clip"] = "frame") -> Runner:
    """Load an artifact that scores frames or clips, to run on ``threads`` threads.

    Raises StageError if it cannot run here or the runtime refuses the file.
    """
    if reason := cannot_run(runtime):
        raise StageError(f"{path.name} cannot run here: {reason}")
    try:
        return runner_of(_opened(path, runtime, threads), per)
    except StageError:
        raise
    except Exception as error:  # each runtime raises classes of its own for a file that it cannot load
        raise StageError(f"{path} cannot be loaded by {runtime}: {reason_of(error)}") from error


def _opened(path: Path, runtime: Runtime, threads: int) -> Programs:
    if runtime == "executorch":
        from export import executorch

        return executorch.opened(path, threads)
    if runtime == "onnxruntime":
        from export import onnx

        return onnx.opened(path, threads)
    from export import coreml

    return coreml.opened(path)
