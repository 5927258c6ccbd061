"""Core ML: a run as an ``.mlpackage``, and the runtime that loads it on a Mac."""

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from export.runtimes import Loaded, ProgramName, Programs, program_file
from stage import StageError

if TYPE_CHECKING:
    from export.programs import Graph

MINIMUM_OS = "iOS 17 / macOS 14"
MEANING = {
    "forward": "Scores one face crop: the probability that it is a deepfake",
    "embed": "Describes one face crop for the score program",
    "score": "Scores the embeddings of a clip's face crops: the probability that it is a deepfake",
}


def write(graphs: Sequence["Graph"], path: Path) -> dict[str, Any]:
    """Write one program as an ``.mlpackage``, or several into a folder; return their operators by name.

    Computes in FLOAT32 but for the scheme fp16: int8 values are dequantized to it where an operation has no int8 form.
    """
    operators = {}
    for graph in graphs:
        file = program_file(path, "coreml", graph.name)
        file.parent.mkdir(exist_ok=True)
        model = _converted(graph)
        model.short_description = MEANING[graph.name]
        for tensor in graph.inputs:
            model.input_description[tensor.name] = tensor.meaning
        model.output_description[graph.output.name] = graph.output.meaning
        model.save(str(file))
        functions = model.get_spec().mlProgram.functions["main"].block_specializations
        found = {operation.type for block in functions.values() for operation in block.operations}
        operators[graph.name] = sorted(found - {"const"})
    return {"operators": operators}


def _converted(graph: "Graph") -> Any:
    import torch

    logging.getLogger("coremltools").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # its progress bars
        warnings.simplefilter("ignore")
        import coremltools as ct

        example = graph.example()
        rgb = ct.colorlayout.RGB
        inputs = [
            ct.ImageType(name=tensor.name, shape=tuple(zeros.shape), color_layout=rgb)
            if tensor.dtype == "image"
            else ct.TensorType(name=tensor.name, shape=tuple(zeros.shape))
            for tensor, zeros in zip(graph.inputs, example, strict=True)
        ]
        return ct.convert(
            # Without the decompositions coremltools refuses the training dialect.
            torch.export.export(graph.module, example).run_decompositions({}),
            inputs=inputs,
            outputs=[ct.TensorType(name=graph.output.name)],
            minimum_deployment_target=ct.target.iOS17,
            compute_precision=ct.precision.FLOAT16 if graph.half else ct.precision.FLOAT32,
            convert_to="mlprogram",
            skip_model_load=True,
        )


def opened(path: Path) -> Programs:
    """Open an ``.mlpackage``, or a folder of them, on a Mac. Core ML chooses its own number of threads.

    Raises StageError elsewhere.
    """
    if sys.platform != "darwin":
        raise StageError("needs macOS: Core ML cannot run on this system")
    import coremltools as ct
    from PIL import Image

    def load(name: ProgramName) -> Loaded:
        model: Any = ct.models.MLModel(str(program_file(path, "coreml", name)))
        described = model.get_spec().description
        names = [given.name for given in described.input]
        image = described.input[0].type.WhichOneof("Type") == "imageType"

        def run(*inputs: NDArray[Any]) -> NDArray[np.float32]:
            given = [Image.fromarray(inputs[0][0])] if image else inputs
            found = model.predict(dict(zip(names, given, strict=True)))[described.output[0].name]
            return np.array(found, np.float32)

        return run

    return load
