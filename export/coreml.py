"""Core ML: write a run as an ``.mlpackage``, and load one on a Mac."""

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from export.runtimes import (
    PROGRAMS,
    ComputeUnits,
    Loaded,
    Method,
    ProgramName,
    Programs,
    UnfitArtifact,
    evaluated_by,
    in_batches,
    program_file,
)
from stage import PALETTES, Scheme, some_of

if TYPE_CHECKING:
    from export.programs import TorchProgram

MINIMUM_OS = "iOS 17 / macOS 14"
HALF: tuple[Scheme, ...] = ("fp16", *PALETTES)
"""Schemes that compute in float16. Palettes are for the Neural Engine, which computes in nothing else."""
UNITS: dict[ComputeUnits, str] = {
    "cpu": "CPU_ONLY",
    "cpu+gpu": "CPU_AND_GPU",
    "cpu+ane": "CPU_AND_NE",
    "all": "ALL",
}
"""Name of each choice in coremltools' ``ComputeUnit``."""
DEBUG_HANDLES = "executorch_debug_handle_mapping.json"
"""File that coremltools adds to each package for ExecuTorch's debugger: a tenth of an int8 one, unused by Core ML."""
LAST = ("softmax", "slice_by_index")
"""Operations at the end of a program that turn logits into P(fake), in this order."""
MEANING = {
    "forward": "Scores one face crop: the probability that it is a deepfake",
    "embed": "Describes one face crop for the score program",
    "score": "Scores the embeddings of a clip's face crops: the probability that it is a deepfake",
    "clip": "Scores a clip of face crops: the probability that it is a deepfake",
}


def write(torch_programs: Sequence["TorchProgram"], path: Path) -> dict[str, Any]:
    """Write one program as an ``.mlpackage``, or several into a folder; return ``operators`` by program.

    Programs compute in FLOAT32, except in the schemes of HALF: int8 values are dequantized to float32 where an
    operation has no int8 form. Raises UnfitArtifact if a palette is lost.
    """
    operators = {}
    for torch_program in torch_programs:
        file = program_file(path, "coreml", torch_program.name)
        file.parent.mkdir(exist_ok=True)
        model = _convert(torch_program)
        model.short_description = MEANING[torch_program.name]
        model.author, model.version = f"Pocketproof {version('pocketproof')}", version("pocketproof")
        model.license = torch_program.licence
        model.user_defined_metadata["classes"] = "real, fake: the output is the probability of the second"
        for tensor in torch_program.inputs:
            model.input_description[tensor.name] = tensor.meaning
        model.output_description[torch_program.output.name] = torch_program.output.meaning
        model.save(str(file))
        (file / DEBUG_HANDLES).unlink(missing_ok=True)
        functions = model.get_spec().mlProgram.functions["main"].block_specializations
        types = {operation.type for block in functions.values() for operation in block.operations}
        operators[torch_program.name] = sorted(types - {"const"})
    return {"operators": operators}


def quietly_imported() -> Any:
    """Import coremltools without its messages on standard error: off a Mac it names what it cannot load."""
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        import coremltools
    return coremltools


def _in_half(operation: Any) -> bool:
    """Return whether an operation may compute in float16: all may, but those that turn logits into P(fake).

    Near 1 float16 has steps of 1/2048: scores there would be equal, and a threshold among them worthless.
    """
    following = {child.op_type for child in operation.outputs[0].child_ops}
    return not (operation.op_type in LAST and following <= {*LAST, "cast"})


def _convert(torch_program: "TorchProgram") -> Any:
    """Return a program as a coremltools model in the torch_program's scheme."""
    ct = quietly_imported()
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # silences progress bars
        warnings.simplefilter("ignore")
        example = torch_program.example()
        rgb = ct.colorlayout.RGB
        inputs = [
            ct.ImageType(name=tensor.name, shape=tuple(zeros.shape), color_layout=rgb)
            if tensor.dtype == "image"
            else ct.TensorType(name=tensor.name, shape=tuple(zeros.shape))
            for tensor, zeros in zip(torch_program.inputs, example, strict=True)
        ]
        model = ct.convert(
            # Without the decompositions coremltools refuses the training dialect.
            torch_program.exported.run_decompositions({}),
            inputs=inputs,
            outputs=[ct.TensorType(name=torch_program.output.name, dtype=np.float32)],
            minimum_deployment_target=ct.target.iOS17,
            compute_precision=ct.transform.FP16ComputePrecision(op_selector=_in_half)
            if torch_program.scheme in HALF
            else ct.precision.FLOAT32,
            convert_to="mlprogram",
            skip_model_load=True,
        )
        if torch_program.scheme not in PALETTES:
            return model
        # The weights have few distinct values already: each becomes a table and indices into it.
        config = ct.optimize.coreml.OpPalettizerConfig(mode="unique")
        model = ct.optimize.coreml.palettize_weights(model, ct.optimize.coreml.OptimizationConfig(global_config=config))
        if dense := _dense_weights(model):
            raise UnfitArtifact(
                f"Core ML would store {len(dense)} layers of {torch_program.name} without a palette "
                f"({some_of(dense)}), as its compiler changes their weights: give --scheme fp16 or int8"
            )
        return model


def _dense_weights(model: Any) -> list[str]:
    """Return the names of the layers' weights of more than LARGEST_WITHOUT_PALETTE values, stored one by one."""
    from models.schemes import LARGEST_WITHOUT_PALETTE  # imports torch, without which bundles are verified too

    dense: list[str] = []
    for block in model.get_spec().mlProgram.functions["main"].block_specializations.values():
        sizes = {
            operation.outputs[0].name: math.prod(
                dimension.constant.size for dimension in operation.outputs[0].type.tensorType.dimensions
            )
            for operation in block.operations
            if operation.type == "const"
        }
        weights = [
            argument.name
            for operation in block.operations
            if "weight" in operation.inputs
            for argument in operation.inputs["weight"].arguments
        ]
        dense += [name for name in weights if sizes.get(name, 0) > LARGEST_WITHOUT_PALETTE]
    return dense


def delegate_partitioner() -> Any:
    """Return the partitioner that chooses the operations of a ``.pte`` for Core ML."""
    ct = quietly_imported()
    from executorch.backends.apple.coreml.compiler import CoreMLBackend
    from executorch.backends.apple.coreml.compiler.coreml_preprocess import MULTIMETHOD_WEIGHT_SHARING_STRATEGY
    from executorch.backends.apple.coreml.partition import CoreMLPartitioner

    # An fp16 program is in float16 already, except what turns logits into P(fake).
    specs = CoreMLBackend.generate_compile_specs(
        compute_precision=ct.precision.FLOAT32, minimum_deployment_target=ct.target.iOS17
    )
    # The programs of a clip student share no weights, and joined they would need the same number of parts, and iOS 18.
    apart = MULTIMETHOD_WEIGHT_SHARING_STRATEGY.DISABLED
    specs.append(CoreMLBackend.generate_multimethod_weight_sharing_strategy_compile_spec(apart))
    # Core ML has no tensors of bytes: pixels are cast to floats before they reach it.
    skipped = ["aten._to_copy.default"]
    return CoreMLPartitioner(skip_ops_for_coreml_delegation=skipped, compile_specs=specs)


def opened(path: Path, units: ComputeUnits = "all") -> Programs:
    """Open an ``.mlpackage``, or a folder of them. Core ML chooses its own number of threads.

    On other systems than macOS, Pocketproof evaluates the programs.
    """
    return evaluated(path) if evaluated_by("coreml") else _opened_in_core_ml(path, units)


def evaluated(path: Path) -> Programs:
    """Open an ``.mlpackage``, or a folder of them, for Pocketproof to evaluate operation by operation.

    Loading a program raises NotEvaluated for an operation that is not known.
    """
    quietly_imported()
    from export.mil import MilProgram

    def load(name: ProgramName) -> Loaded:
        program = MilProgram(program_file(path, "coreml", name))

        def run(*inputs: NDArray[Any]) -> NDArray[np.float32]:
            planar = (
                (array.transpose(0, 3, 1, 2) if image else array).astype(np.float32)
                for image, array in zip(program.images, inputs, strict=True)
            )
            return program(*planar)

        return in_batches(run, 1)

    return load


def _load_model(path: Path, name: ProgramName, units: ComputeUnits) -> Any:
    import coremltools as ct

    return ct.models.MLModel(str(program_file(path, "coreml", name)), compute_units=ct.ComputeUnit[UNITS[units]])


def _opened_in_core_ml(path: Path, units: ComputeUnits) -> Programs:
    from PIL import Image

    def load(name: ProgramName) -> Loaded:
        model = _load_model(path, name, units)
        description = model.get_spec().description
        names = [feature.name for feature in description.input]
        takes_image = description.input[0].type.WhichOneof("Type") == "imageType"

        def run(*inputs: NDArray[Any]) -> NDArray[np.float32]:
            values = [Image.fromarray(inputs[0][0])] if takes_image else [array.astype(np.float32) for array in inputs]
            output = model.predict(dict(zip(names, values, strict=True)))[description.output[0].name]
            return np.array(output, np.float32)

        return in_batches(run, 1)

    return load


def off_cpu_fraction(path: Path, method: Method, units: ComputeUnits) -> float | None:
    """Return the share of operations, 0..1, that Core ML prefers to run on another device than the CPU.

    Returns None if Core ML reports no preferences. Needs macOS 14.4. Not run yet: it was written from coremltools'
    documentation on another system.
    """
    from coremltools import ComputeUnit
    from coremltools.models.compute_plan import MLComputePlan

    off_cpu = reported = 0
    for name in PROGRAMS[method]:
        model = _load_model(path, name, units)  # the compiled model stays on disk only while this object lives
        plan = MLComputePlan.load_from_path(model.get_compiled_model_path(), ComputeUnit[UNITS[units]])
        program_off_cpu, program_reported = count_off_cpu(plan)
        off_cpu += program_off_cpu
        reported += program_reported
    return off_cpu / reported if reported else None


def count_off_cpu(plan: Any) -> tuple[int, int]:
    """Return two counts of an ``MLComputePlan``: operations that prefer another device than the CPU, and all reported.

    It reports no device for constants.
    """
    functions = plan.model_structure.program.functions.values()
    operations = [operation for function in functions for operation in function.block.operations]
    usages = [plan.get_compute_device_usage_for_mlprogram_operation(operation) for operation in operations]
    devices = [type(usage.preferred_compute_device).__name__ for usage in usages if usage is not None]
    return sum(device != "MLCPUComputeDevice" for device in devices), len(devices)
