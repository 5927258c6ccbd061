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
Runner = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Crops, uint8 [N, S, S, 3] RGB 0..255, to P(fake), float32 [N]."""

SUFFIXES: dict[str, Runtime] = {".pte": "executorch", ".onnx": "onnxruntime", ".mlpackage": "coreml"}


def cannot_run(runtime: Runtime) -> str | None:
    """Say why artifacts of a runtime cannot run on this machine, or None if they can."""
    if runtime == "coreml" and sys.platform != "darwin":
        return "needs macOS"
    package = {"executorch": "executorch", "onnxruntime": "onnxruntime", "coreml": "coremltools"}[runtime]
    return None if importlib.util.find_spec(package) else f"the package {package} is not installed"


def load_artifact(path: Path, runtime: Runtime, threads: int) -> Runner:
    """Load an artifact to run on ``threads`` threads.

    Raises StageError if it cannot run here or the runtime refuses the file.
    """
    if reason := cannot_run(runtime):
        raise StageError(f"{path.name} cannot run here: {reason}")
    try:
        if runtime == "executorch":
            from export.executorch import ExecuTorchRunner

            return ExecuTorchRunner(path, threads)
        if runtime == "onnxruntime":
            from export.onnx import OnnxRunner

            return OnnxRunner(path, threads)
        from export.coreml import CoreMLRunner

        return CoreMLRunner(path)
    except StageError:
        raise
    except Exception as error:  # each runtime raises classes of its own for a file that it cannot load
        raise StageError(f"{path} cannot be loaded by {runtime}: {reason_of(error)}") from error
