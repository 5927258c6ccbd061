"""Core ML: a run as an ``.mlpackage``, and the runtime that loads it on a Mac."""

import contextlib
import io
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage import StageError

INPUT, OUTPUT = "image", "fake_probability"
MINIMUM_OS = "iOS 17 / macOS 14"


def write(detector: Any, size: int, path: Path) -> dict[str, Any]:
    """Write ``detector`` (float32 [1, 3, size, size] RGB 0..255 -> float32 [1]) as an ``.mlpackage``; input: an image.

    Computes in FLOAT32, whatever the scheme: int8 values are dequantized to it where an operation has no int8 form.
    Returns the operators of the program.
    """
    import torch

    logging.getLogger("coremltools").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # its progress bars
        warnings.simplefilter("ignore")
        import coremltools as ct

        # Without the decompositions coremltools refuses the training dialect.
        program = torch.export.export(detector, (torch.zeros(1, 3, size, size),)).run_decompositions({})
        model = ct.convert(
            program,
            inputs=[ct.ImageType(name=INPUT, shape=(1, 3, size, size), color_layout=ct.colorlayout.RGB)],
            outputs=[ct.TensorType(name=OUTPUT)],
            minimum_deployment_target=ct.target.iOS17,
            compute_precision=ct.precision.FLOAT32,
            convert_to="mlprogram",
            skip_model_load=True,
        )
    model.short_description = "Scores one face crop: the probability that it is a deepfake"
    model.input_description[INPUT] = f"A face crop of {size} x {size} pixels, RGB"
    model.output_description[OUTPUT] = "P(fake), 0..1"
    model.save(str(path))
    functions = model.get_spec().mlProgram.functions["main"].block_specializations
    operators = {operation.type for block in functions.values() for operation in block.operations}
    return {"operators": sorted(operators - {"const"})}


class CoreMLRunner:
    """Runs an ``.mlpackage`` on a Mac: crops uint8 [N, S, S, 3] RGB, one at a time, to P(fake) float32 [N].

    Raises StageError elsewhere. Core ML chooses its own number of threads.
    """

    def __init__(self, path: Path) -> None:
        if sys.platform != "darwin":
            raise StageError("needs macOS: Core ML cannot run on this system")
        import coremltools as ct

        self._model: Any = ct.models.MLModel(str(path))

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Score crops."""
        from PIL import Image

        images = (Image.fromarray(np.ascontiguousarray(frame)) for frame in pixels)
        scores = [self._model.predict({INPUT: image})[OUTPUT] for image in images]
        return np.array(scores, np.float32).reshape(len(pixels))
