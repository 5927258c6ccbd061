"""Load and run artifacts: every stage uses this module. A runtime is imported only when it is asked for."""

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
"""Name under which ExecuTorch registers each delegate's backend, to which a ``.pte`` hands operations."""
ComputeUnits = Literal["cpu", "cpu+gpu", "cpu+ane", "all"]
"""Processors that Core ML may use; ``ane`` is Apple's Neural Engine."""
Loaded = Callable[..., NDArray[np.float32]]
"""A loaded program: takes its inputs in the manifest's order, each [N, ...] for any N, and returns its output, float32
[N, ...]. An image is uint8 [N, S, S, 3], for Core ML too."""
Programs = Callable[[ProgramName], Loaded]
"""An opened artifact: a function from a program's name to the loaded program."""
PROGRAMS: dict[Method, tuple[ProgramName, ...]] = {
    "forward": ("forward",),
    "steps": ("embed", "score"),
    "clip": ("clip",),
}

SUFFIX_OF: dict[Runtime, str] = {"executorch": ".pte", "onnxruntime": ".onnx", "coreml": ".mlpackage"}
ORT = ".ort"
"""Suffix of a program that ONNX Runtime has optimized for phones and written in its own format."""


class NotEvaluated(StageError):
    """A program cannot run on this machine, and has an operation that Pocketproof cannot evaluate either."""


class UnfitArtifact(StageError):
    """An artifact must not be in a bundle: its outputs differ from its model's, or it could not be written."""


@functools.cache
def int8_instructions() -> str | None:
    """Return the name of this processor's instruction set for sums of products of bytes, on x86 or Arm.

    Returns None if it has none, or if the system has no /proc/cpuinfo (only Linux has it).
    """
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return None
    return next((name for name in ("amx_int8", "avx512_vnni", "avx_vnni", "i8mm", "asimddp") if name in flags), None)


def lacks_int8_instructions() -> bool:
    """Return whether this processor is known to lack such instructions; only Linux tells."""
    return sys.platform == "linux" and int8_instructions() is None


def cannot_run(runtime: Runtime, delegate: Delegate | None = None, int8_ort: bool = False) -> str | None:
    """Return why artifacts of a runtime, or of one of its delegates, cannot run on this machine; None if they can.

    ``int8_ort``: whether they are static int8 programs in ONNX Runtime's own format, which keeps its kernels' weights.
    """
    packages = {"executorch": ("executorch", "torch"), "onnxruntime": ("onnxruntime",), "coreml": ("coremltools",)}
    for package in packages[runtime]:
        if not importlib.util.find_spec(package):
            return f"the package {package} is not installed"
    if int8_ort and platform.machine() == "x86_64" and lacks_int8_instructions():
        return "sums of an int8 .ort overflow in ONNX Runtime on x86 processors without VNNI (on Arm they do not)"
    if delegate not in (None, "xnnpack"):  # every ExecuTorch has XNNPACK
        from export.executorch import native_runtime

        if BACKENDS[delegate] not in native_runtime()._get_registered_backend_names():
            return f"ExecuTorch has no {BACKENDS[delegate]} on this machine"
    return None


def import_runtime(runtime: Runtime) -> None:
    """Import a runtime's package and the module of ours that calls it. Raises what a broken package raises."""
    if runtime == "executorch":
        from export.executorch import native_runtime

        native_runtime()
    elif runtime == "onnxruntime":
        import onnxruntime  # noqa: F401

        import export.onnx  # noqa: F401
    else:
        from export.coreml import quietly_imported

        quietly_imported()


def evaluated_by(runtime: Runtime) -> str | None:
    """Return what scores in a runtime's place on this machine (not to be timed), or None if the runtime itself does."""
    if runtime == "coreml" and sys.platform != "darwin":
        return "by Pocketproof, not by Core ML, which needs macOS"
    return None


def program_file(artifact: Path, runtime: Runtime, name: ProgramName) -> Path:
    """Return the file of an artifact's program: a ``.pte`` holds several; elsewhere two are two files in a folder."""
    if name in ("forward", "clip") or runtime == "executorch":
        return artifact
    return artifact / f"{name}{ORT if artifact.name.endswith('-ort') else SUFFIX_OF[runtime]}"


def in_batches(run: Callable[..., NDArray[np.float32]], batch: int | None) -> Loaded:
    """Return a program for any number of samples, made from one that takes ``batch`` at once (None: any number).

    The last batch is filled up with copies of its last sample. ``run`` gets contiguous inputs.
    """

    def run_all(*inputs: NDArray[np.generic]) -> NDArray[np.float32]:
        count = len(inputs[0])
        step = count if batch is None else batch
        outputs = []
        for start in range(0, count, step):
            samples = [array[start : start + step] for array in inputs]
            size = len(samples[0])
            if size < step:
                samples = [np.concatenate([array, np.repeat(array[-1:], step - size, axis=0)]) for array in samples]
            outputs.append(run(*map(np.ascontiguousarray, samples))[:size])
        return outputs[0] if len(outputs) == 1 else np.concatenate(outputs)

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
    """Return a scorer of clips that embeds each valid frame once; other frames have an embedding of zeros.

    Raises StageError for a clip that has no valid frame.
    """

    def run(pixels: NDArray[np.uint8], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        embedded = [embed(frames[flags]) for frames, flags in zip(pixels, valid, strict=True)]
        embeddings = np.zeros((*valid.shape, embedded[0].shape[-1]), np.float32)
        embeddings[valid] = np.concatenate(embedded)
        return score(embeddings, valid.astype(np.float32))

    return clip_scorer(run)


def scorer_of(programs: Programs, method: Method) -> Scorer:
    """Return a scorer of frames or clips that runs the programs of an artifact."""
    if method == "forward":
        return frame_scorer(programs("forward"))
    if method == "steps":
        return in_steps(programs("embed"), programs("score"))
    whole = programs("clip")
    return clip_scorer(lambda pixels, valid: whole(pixels, valid.astype(np.float32)))


def open_artifact(path: Path, runtime: Runtime, threads: int, method: Method, units: ComputeUnits = "all") -> Programs:
    """Load the programs by which an artifact scores, to run on ``threads`` threads or, in Core ML, on ``units``.

    Raises StageError if the artifact cannot run here or its runtime refuses the file.
    """
    if reason := cannot_run(runtime):
        raise StageError(f"{path.name} cannot run here: {reason}")
    try:
        load = _open_in_runtime(path, runtime, threads, units)
        programs = {name: _checked(load(name), path, name) for name in PROGRAMS[method]}
    except StageError:
        raise
    except Exception as error:  # each runtime raises classes of its own for a file that it cannot load
        raise StageError(f"{path} cannot be loaded by {runtime}: {reason_of(error)}") from error
    return programs.__getitem__


def _checked(program: Loaded, path: Path, name: ProgramName) -> Loaded:
    """Return a program that raises StageError if its runtime refuses the inputs or its output is of another form."""

    def run(*inputs: NDArray[np.generic]) -> NDArray[np.float32]:
        try:
            output = program(*inputs)
        except (StageError, MemoryError):
            raise
        except Exception as error:
            shapes = ", ".join(str(list(array.shape)) for array in inputs)
            raise StageError(f"{path}: {name} does not take inputs of {shapes}: {reason_of(error)}") from error
        if not _has_form_of(name, output, len(inputs[0])):
            expected = "an embedding" if name == "embed" else "P(fake)"
            raise StageError(f"{path}: {name} does not give {expected} of each of {len(inputs[0])} samples")
        return output

    return run


def _has_form_of(name: ProgramName, output: Any, count: int) -> bool:
    """Return whether a program's output for ``count`` samples is embeddings, float32 [N, D], or P(fake), float32 of N.

    NaN passes: the caller reports it with the input that it came from.
    """
    if not isinstance(output, np.ndarray) or output.dtype != np.float32:
        return False
    if name == "embed":
        return output.ndim == 2 and len(output) == count
    return output.size == count and not (np.abs(output - 0.5) > 0.5 + 1e-6).any()


def load_artifact(
    path: Path, runtime: Runtime, threads: int, method: Method = "forward", units: ComputeUnits = "all"
) -> Scorer:
    """Load an artifact to score frames or clips; raises as ``open_artifact``."""
    return scorer_of(open_artifact(path, runtime, threads, method, units), method)


def _open_in_runtime(path: Path, runtime: Runtime, threads: int, units: ComputeUnits) -> Programs:
    if runtime == "executorch":
        from export import executorch

        return executorch.opened(path, threads)
    if runtime == "onnxruntime":
        from export import onnx

        return onnx.opened(path, threads)
    from export import coreml

    return coreml.opened(path, units)
