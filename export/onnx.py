"""ONNX: write a run as a ``.onnx`` or ``.ort``, and load one in ONNX Runtime."""

import contextlib
import io
import logging
import re
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from export.onnx_passes import EXACT_ON_X86, rewrite
from export.runtimes import ORT, Loaded, Programs, in_batches, int8_instructions, program_file
from stage import counted

if TYPE_CHECKING:
    from export.programs import TorchProgram

OPSET = 20
"""The first opset in which Gelu is one operator."""
IR_VERSION = 9
"""The oldest IR version that this opset allows."""
NEEDS = f"opset {OPSET}, IR version {IR_VERSION}: version 1.17 or newer"
WORTH = {"YES": "worth it", "MAYBE": "perhaps worth it", "NO": "not worth it"}
BRACES = r"\{[^{}]*\}"
REQUIRED = ".required_operators.config"
REQUIRED_MEANING = "operators and types that a build of ONNX Runtime for the .ort must have (--include_ops_by_config)"


def write(torch_programs: Sequence["TorchProgram"], path: Path, ort: bool = False) -> dict[str, Any]:
    """Write one program as a ``.onnx``, or several into a folder.

    With ``ort``, programs are in ONNX Runtime's own format, optimized for Arm processors, and the operators that a
    build of the runtime needs for them are written beside ``path``. Returns the manifest's fields: ``operators`` by
    program (for ``.ort``, those of all programs together); ``phone_check``, ONNX Runtime's check for phones (empty for
    ``.ort``, which is made for the processor alone); ``companions``.
    """
    import onnx

    operators, checks = {}, []
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        for torch_program in torch_programs:
            model = _convert(torch_program)
            rewrite(model)
            model.ir_version = IR_VERSION
            onnx.checker.check_model(model)
            plain = Path(folder) / f"{torch_program.name}.onnx"
            onnx.save(model, plain)
            operators[torch_program.name] = sorted(
                {f"{node.domain or 'ai.onnx'}.{node.op_type}" for node in model.graph.node}
            )
            if not ort:
                checks.append(f"{torch_program.name}: {_phone_check(plain)}")
        companions: dict[str, str] = {}
        if ort:
            companions, required = _in_own_format(Path(folder), path)
            operators = dict.fromkeys(operators, required)
        for torch_program in torch_programs:
            file = program_file(path, "onnxruntime", torch_program.name)
            file.parent.mkdir(exist_ok=True)
            shutil.move(Path(folder) / f"{torch_program.name}{ORT if ort else '.onnx'}", file)
    return {"operators": operators, "phone_check": "; ".join(checks), "companions": companions}


def _in_own_format(folder: Path, path: Path) -> tuple[dict[str, str], list[str]]:
    """Convert all programs of a folder to ``.ort``, and write beside ``path`` the operators that they need.

    Returns that file's name with its meaning, and the operators, which are those after optimization.
    """
    from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort

    logging.getLogger("ort_format_model.utils").setLevel(logging.WARNING)
    with contextlib.redirect_stdout(io.StringIO()):
        fixed = [OptimizationStyle.Fixed]
        convert_onnx_models_to_ort(folder, folder, fixed, target_platform="arm", enable_type_reduction=True)
    (config,) = folder.glob("*.config")
    lines = [line for line in config.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    required = path.with_name(f"{path.name}{REQUIRED}")
    required.write_text("\n".join([*lines, ""]), encoding="utf-8")
    # domain;opset;Operator{"inputs": {...}},Operator: the braces, nested two deep, hold types.
    plain = [re.sub(BRACES, "", re.sub(BRACES, "", line)) for line in lines]
    parts = [line.split(";") for line in plain if line.count(";") == 2]
    operators = {f"{domain}.{name}" for domain, _, names in parts for name in names.split(",") if name}
    return {required.name: REQUIRED_MEANING}, sorted(operators)


def _phone_check(file: Path) -> str:
    """Return the result of ONNX Runtime's mobile usability check for each accelerator that could take nodes."""
    import onnxruntime
    from onnxruntime.tools.mobile_helpers import usability_checker
    from onnxruntime.tools.onnx_model_utils import ModelProtoWithShapeInfo, optimize_model

    optimized = file.with_suffix(".optimized")
    optimize_model(file, optimized, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC, log_level=3)
    model = ModelProtoWithShapeInfo(optimized).model_with_shape_info
    checks = {
        "NNAPI": usability_checker.check_nnapi_partitions(model, True),
        "Core ML": usability_checker.check_coreml_partitions(model, True, "coreml_supported_mlprogram_ops.md"),
    }
    return ", ".join(
        f"{name} could take {info.num_supported_nodes / max(1, info.num_nodes):.0%} of the nodes in "
        f"{counted(info.num_partitions, 'part')} ({WORTH[info.suitability().name]})"
        for name, info in checks.items()
    )


def _convert(torch_program: "TorchProgram") -> Any:
    """Return a program as an ONNX model, as torch's exporter writes it."""
    import torch

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        exported = torch.onnx.export(
            torch_program.exported,
            torch_program.example(),
            dynamo=True,
            opset_version=OPSET,
            input_names=[tensor.name for tensor in torch_program.inputs],
            output_names=[torch_program.output.name],
            verbose=False,
        )
    assert exported is not None
    return exported.model_proto


def session_options(threads: int) -> Any:
    """Return the options of every session, which runs an operator on ``threads`` threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # x86 processors that have AVX2 or AVX-512 but no VNNI add products of bytes in 16 bits, which overflow: 5 dB of
    # logit SNR where others have 34. The option mends that; on the others it would take 1.4 times as long for nothing.
    if int8_instructions() is None:
        options.add_session_config_entry(EXACT_ON_X86, "1")
    return options


def open_session(file: Path, options: Any) -> Any:
    """Return an ONNX Runtime session of one file on the CPU."""
    import onnxruntime

    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def as_program(session: Any) -> Loaded:
    """Return a loaded program that runs a session."""
    names = [tensor.name for tensor in session.get_inputs()]
    batch = session.get_inputs()[0].shape[0]

    def run(*inputs: NDArray[Any]) -> NDArray[np.float32]:
        output: NDArray[np.float32] = session.run(None, dict(zip(names, inputs, strict=True)))[0]
        return output

    return in_batches(run, batch if isinstance(batch, int) else None)


def opened(path: Path, threads: int) -> Programs:
    """Open a ``.onnx``, or a folder of them."""
    options = session_options(threads)
    return lambda name: as_program(open_session(program_file(path, "onnxruntime", name), options))
