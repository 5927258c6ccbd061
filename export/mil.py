"""Evaluate a saved Core ML program (MIL) operation by operation, on machines that are no Mac.

Values are stored in the types that the program states, so that float16 and int8 round where it says. Each operation
computes in float32, whereas Core ML may choose other kernels, and on the Neural Engine float16: outputs are evaluated
by Pocketproof, not by Core ML.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.mil_operations import OPERATIONS, Array
from export.runtimes import NotEvaluated
from stage import reason_of

MODEL = Path("Data") / "com.apple.CoreML" / "model.mlmodel"
WEIGHTS = MODEL.with_name("weights")
"""Paths of the program and of its weights inside an ``.mlpackage``."""
DTYPES = {
    "fp16": np.float16,
    "fp32": np.float32,
    "int8": np.int8,
    "uint8": np.uint8,
    "int16": np.int16,
    "uint16": np.uint16,
    "int32": np.int32,
    "bool": np.bool_,
}


class MilProgram:
    """A saved program, called with its inputs in their order; returns its one output, float32.

    An image is float32 [1, 3, S, S] RGB. Raises NotEvaluated for an unknown operation when it is loaded, and for an
    unknown form of one when it runs.
    """

    def __init__(self, package: Path) -> None:
        import coremltools as ct
        from coremltools.converters.mil.frontend.milproto.load import load

        spec: Any = ct.utils.load_spec(str(package / MODEL))  # given the package, it would rewrite its Manifest.json
        program: Any = load(spec, spec.specificationVersion, str(package / WEIGHTS))
        function = program.functions["main"]
        self._name = package.name
        self.input_names: list[str] = list(function.inputs)
        self.images = [feature.type.WhichOneof("Type") == "imageType" for feature in spec.description.input]
        self._output: str = function.outputs[0].name
        self._constants: dict[str, Any] = {}
        self._operations: list[Any] = []
        for operation in function.operations:
            if operation.op_type == "const":
                self._constants[operation.outputs[0].name] = operation.outputs[0].val
            elif operation.op_type.startswith("constexpr_"):  # compressed weights, which Core ML also unpacks first
                self._constants[operation.outputs[0].name] = operation.materialized_val_inference()
            elif operation.op_type in OPERATIONS:
                self._operations.append(operation)
            else:
                raise NotEvaluated(f"{package.name} has the operation {operation.op_type}, which only Core ML computes")

        self._released = self._last_uses()

    def _last_uses(self) -> list[list[str]]:
        """Return for each operation the names of the values that it is the last to take.

        They are released after it: memory that was just freed is fast to use again.
        """
        released: list[list[str]] = []
        used_later = {self._output, *self._constants}
        for operation in reversed(self._operations):
            names = {var.name for argument in operation.inputs.values() for var in _variables(argument)}
            released.append(sorted(names - used_later))
            used_later |= names
        return released[::-1]

    def __call__(self, *inputs: Array) -> NDArray[np.float32]:
        """Run the program; raises NotEvaluated for a form of an operation that is not known here."""
        values = self._constants | dict(zip(self.input_names, inputs, strict=True))
        for operation, released in zip(self._operations, self._released, strict=True):
            arguments = {name: self._value(values, var) for name, var in operation.inputs.items() if name != "name"}
            arguments = {name: value for name, value in arguments.items() if value is not None}
            try:
                result = OPERATIONS[operation.op_type](**arguments)
            except (TypeError, ValueError, IndexError) as error:
                raise NotEvaluated(
                    f"a {operation.op_type} of {self._name} has a form that only Core ML computes: {reason_of(error)}"
                ) from error
            results = result if isinstance(result, list) else [result]
            for var, value in zip(operation.outputs, results, strict=True):
                values[var.name] = _as_stored(value, var)
            for name in released:
                values.pop(name, None)
        output: NDArray[np.float32] = values[self._output].astype(np.float32)
        return output

    @staticmethod
    def _value(values: dict[str, Any], var: Any) -> Any:
        """Return the value of an operation's input, float16 as float32; None for an input that is not given."""
        if isinstance(var, (list, tuple)):
            return [MilProgram._value(values, part) for part in var]
        if var is None:
            return None
        value = values.get(var.name, var.val)
        return value.astype(np.float32) if isinstance(value, np.ndarray) and value.dtype == np.float16 else value


def _variables(argument: Any) -> list[Any]:
    """Return the variables that an operation's input names: one, several or none."""
    variables = argument if isinstance(argument, (list, tuple)) else [argument]
    return [var for var in variables if var is not None]


def _as_stored(value: Array, var: Any) -> Array:
    """Return a value in the type in which the program stores it."""
    from coremltools.converters.mil.mil.types import builtin_to_string

    return np.asarray(value).astype(DTYPES[builtin_to_string(var.dtype)], copy=False)
