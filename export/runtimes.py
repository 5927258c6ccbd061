"""The one way to load and run an artifact. Imports no runtime until one is asked for."""

import functools
import importlib.util
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stage import Scorer, StageError, reason_of

Runtime = Literal["executorch", "onnxruntime", "coreml"]
ProgramName = Literal["forward", "embed", "score", "clip"]
"""``forward`` scores a frame; ``embed`` and ``score`` are the two steps of a clip student, ``clip`` is both in one."""
Method = Literal["forward", "steps", "clip"]
"""How an artifact scores: frames by ``forward``, or clips by ``embed`` and ``score``, or by ``clip``."""
Delegate = Literal["xnnpack", "coreml", "vulkan"]
BACKENDS: dict[Delegate, str] = {"xnnpack": "XnnpackBackend", "coreml": "CoreMLBackend", "vulkan": "VulkanBackend"}
"""What a ``.pte`` hands its operations to, as ExecuTorch registers it."""
ComputeUnits = Literal["cpu", "cpu+gpu", "cpu+ane", "all"]
"""What Core ML may use; ``ane``: Apple's Neural Engine."""
Loaded = Callable[..., NDArray[np.float32]]
"""A loaded program: its inputs in the manifest's order, [N, ...] of any N, to its output [N, ...]. An image is uint8
[N, S, S, 3] for Core ML too."""
Programs = Callable[[ProgramName], Loaded]
"""An opened artifact: gives its programs by name."""
PROGRAMS: dict[Method, tuple[ProgramName, ...]] = {
    "forward": ("forward",),
    "steps": ("embed", "score"),
    "clip": ("clip",),
}

SUFFIX_OF: dict[Runtime, str] = {"executorch": ".pte", "onnxruntime": ".onnx", "coreml": ".mlpackage"}
ORT = ".ort"
"""Ends the name of a ``.onnx`` that ONNX Runtime has optimized for phones and written in its own format."""


class NotEvaluated(StageError):
    """A program that cannot run here has an operation that Pocketproof does not evaluate either."""


@functools.cache
def int8_instructions() -> str | None:
    """Return this processor's instructions for sums of products of bytes, x86's or Arm's.

    None where it has none, or where the system, unlike Linux, has no /proc/cpuinfo.
    """
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return None
    return next((name for name in ("amx_int8", "avx512_vnni", "avx_vnni", "i8mm", "asimddp") if name in flags), None)


def lacks_int8_instructions() -> bool:
    """Whether this is known to be a processor without them."""
    return sys.platform == "linux" and int8_instructions() is None


def cannot_run(runtime: Runtime, delegate: Delegate | None = None, int8_ort: bool = False) -> str | None:
    """Say why artifacts of a runtime, or of a delegate of it, cannot run on this machine, or None if they can.

    ``int8_ort``: whether it is a static int8 program in ONNX Runtime's own format, which keeps its kernels' weights.
    """
    needed = {"executorch": ("executorch", "torch"), "onnxruntime": ("onnxruntime",), "coreml": ("coremltools",)}
    for package in needed[runtime]:
        if not importlib.util.find_spec(package):
            return f"the package {package} is not installed"
    if int8_ort and platform.machine() == "x86_64" and lacks_int8_instructions():
        return "sums of an int8 .ort overflow in ONNX Runtime on x86 processors without VNNI (on Arm they do not)"
    if delegate not in (None, "xnnpack"):  # which every ExecuTorch has
        from executorch.runtime import Runtime as ExecuTorch

        if BACKENDS[delegate] not in ExecuTorch.get().backend_registry.registered_backend_names:
            return f"ExecuTorch has no {BACKENDS[delegate]} on this machine"
    return None


def evaluated_by(runtime: Runtime) -> str | None:
    """Say what scores in a runtime's place on this machine, where nothing can be timed; None if it runs itself."""
    if runtime == "coreml" and sys.platform != "darwin":
        return "by Pocketproof, not by Core ML, which needs macOS"
    return None


def program_file(artifact: Path, runtime: Runtime, name: ProgramName) -> Path:
    """Return the file of an artifact's program: a ``.pte`` holds several, elsewhere two are two files in a folder."""
    if name in ("forward", "clip") or runtime == "executorch":
        return artifact
    return artifact / f"{name}{ORT if artifact.name.endswith('-ort') else SUFFIX_OF[runtime]}"


def in_batches(run: Callable[..., NDArray[np.float32]], batch: int | None) -> Loaded:
    """Return how a program that takes ``batch`` samples at once (None: any number) takes any number of them.

    The last batch is filled up by its last sample. The program's inputs are contiguous.
    """

    def run_all(*inputs: NDArray[np.generic]) -> NDArray[np.float32]:
        count = len(inputs[0])
        step = count if batch is None else batch
        found = []
        for start in range(0, count, step):
            given = [array[start : start + step] for array in inputs]
            own = len(given[0])
            if own < step:
                given = [np.concatenate([array, np.repeat(array[-1:], step - own, axis=0)]) for array in given]
            found.append(run(*map(np.ascontiguousarray, given))[:own])
        return found[0] if len(found) == 1 else np.concatenate(found)

    return run_all


def frame_scorer(forward: Loaded) -> Scorer:
    """Return a scorer of crops, uint8 [N, S, S, 3] RGB 0..255 -> P(fake) float32 [N]."""

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return forward(pixels).reshape(len(pixels))

    return run


def clip_scorer(score: Callable[[NDArray[np.uint8], NDArray[np.bool_]], NDArray[np.float32]]) -> Scorer:
    """Return a scorer of clips, uint8 [N, T, S, S, 3] RGB 0..255 and valid bool [N, T] -> P(fake) float32 [N].

    Raises StageError for a clip that has no valid frame.
    """

    def run(pixels: NDArray[np.uint8], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        if not valid.any(axis=1).all():
            raise StageError("a clip has no valid frame: there is nothing to score")
        return score(pixels, valid).reshape(len(pixels))

    return run


def in_steps(embed: Loaded, score: Loaded) -> Scorer:
    """Return a scorer of clips that embeds each valid frame once; the others have embeddings of zeros."""

    def run(pixels: NDArray[np.uint8], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        found = [embed(frames[own]) for frames, own in zip(pixels, valid, strict=True)]
        embeddings = np.zeros((*valid.shape, found[0].shape[-1]), np.float32)
        embeddings[valid] = np.concatenate(found)
        return score(embeddings, valid.astype(np.float32))

    return clip_scorer(run)


def scorer_of(programs: Programs, method: Method) -> Scorer:
    """Return what scores frames or clips by the programs of an artifact."""
    if method == "forward":
        return frame_scorer(programs("forward"))
    if method == "steps":
        return in_steps(programs("embed"), programs("score"))
    whole = programs("clip")
    return clip_scorer(lambda pixels, valid: whole(pixels, valid.astype(np.float32)))


def open_artifact(path: Path, runtime: Runtime, threads: int, method: Method, units: ComputeUnits = "all") -> Programs:
    """Load the programs by which an artifact scores, to run on ``threads`` threads, or on Core ML's ``units``.

    Raises StageError if it cannot run here or the runtime refuses the file.
    """
    if reason := cannot_run(runtime):
        raise StageError(f"{path.name} cannot run here: {reason}")
    try:
        opened = _opened(path, runtime, threads, units)
        programs = {name: _told(opened(name), path, name) for name in PROGRAMS[method]}
    except StageError:
        raise
    except Exception as error:  # each runtime raises classes of its own for a file that it cannot load
        raise StageError(f"{path} cannot be loaded by {runtime}: {reason_of(error)}") from error
    return programs.__getitem__


def _told(program: Loaded, path: Path, name: ProgramName) -> Loaded:
    """Return a program that raises StageError for inputs that its runtime refuses, or if it gives other things."""

    def run(*inputs: NDArray[np.generic]) -> NDArray[np.float32]:
        try:
            found = program(*inputs)
        except (StageError, MemoryError):
            raise
        except Exception as error:
            shapes = ", ".join(str(list(array.shape)) for array in inputs)
            raise StageError(f"{path}: {name} does not take inputs of {shapes}: {reason_of(error)}") from error
        if not _is_of(name, found, len(inputs[0])):
            meant = "an embedding" if name == "embed" else "P(fake)"
            raise StageError(f"{path}: {name} does not give {meant} of each of {len(inputs[0])} samples")
        return found

    return run


def _is_of(name: ProgramName, found: Any, count: int) -> bool:
    """Tell whether a program gave what one of its name gives; what is no number is told with the input that gave it."""
    if not isinstance(found, np.ndarray) or found.dtype != np.float32:
        return False
    if name == "embed":
        return found.ndim == 2 and len(found) == count
    return found.size == count and not (np.abs(found - 0.5) > 0.5 + 1e-6).any()


def load_artifact(
    path: Path, runtime: Runtime, threads: int, method: Method = "forward", units: ComputeUnits = "all"
) -> Scorer:
    """Load an artifact to score frames or clips; raises as ``open_artifact``."""
    return scorer_of(open_artifact(path, runtime, threads, method, units), method)


def _opened(path: Path, runtime: Runtime, threads: int, units: ComputeUnits) -> Programs:
    if runtime == "executorch":
        from export import executorch

        return executorch.opened(path, threads)
    if runtime == "onnxruntime":
        from export import onnx

        return onnx.opened(path, threads)
    from export import coreml

    return coreml.opened(path, units)
