"""Core ML programs where there is no Mac: a saved MIL program, evaluated operation by operation.

Values are stored in the types that the program states, so that float16 and int8 round where it says; each operation
computes in float32, whereas Core ML may choose other kernels, and on the Neural Engine float16: what is found here is
evaluated by us, not by Core ML.
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
"""Where an ``.mlpackage`` keeps them."""
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
    """A saved program: its inputs in their order -> its one output, float32. An image is float32 [1, 3, S, S] RGB.

    Raises NotEvaluated if it has an operation, or when it runs a form of one, that is not known here.
    """

    def __init__(self, package: Path) -> None:
        import coremltools as ct
        from coremltools.converters.mil.frontend.milproto.load import load

        spec: Any = ct.utils.load_spec(str(package / MODEL))  # of a package, it would write its Manifest.json anew
        program: Any = load(spec, spec.specificationVersion, str(package / WEIGHTS))
        function = program.functions["main"]
        self._name = package.name
        self.input_names: list[str] = list(function.inputs)
        self.images = [given.type.WhichOneof("Type") == "imageType" for given in spec.description.input]
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

        self._spent = self._last_used()

    def _last_used(self) -> list[list[str]]:
        """Return for each operation the values that nothing after it takes: memory that is at hand again is fast."""
        spent: list[list[str]] = []
        seen = {self._output, *self._constants}
        for operation in reversed(self._operations):
            taken = {var.name for given in operation.inputs.values() for var in _flat(given)}
            spent.append(sorted(taken - seen))
            seen |= taken
        return spent[::-1]

    def __call__(self, *inputs: Array) -> NDArray[np.float32]:
        """Run the program."""
        known = self._constants | dict(zip(self.input_names, inputs, strict=True))
        for operation, spent in zip(self._operations, self._spent, strict=True):
            given = {name: self._value(known, var) for name, var in operation.inputs.items() if name != "name"}
            given = {name: value for name, value in given.items() if value is not None}
            try:
                found = OPERATIONS[operation.op_type](**given)
            except (TypeError, ValueError, IndexError) as error:
                raise NotEvaluated(
                    f"a {operation.op_type} of {self._name} has a form that only Core ML computes: {reason_of(error)}"
                ) from error
            several = found if isinstance(found, list) else [found]
            for var, value in zip(operation.outputs, several, strict=True):
                known[var.name] = _stored(value, var)
            for name in spent:
                known.pop(name, None)
        result: NDArray[np.float32] = known[self._output].astype(np.float32)
        return result

    @staticmethod
    def _value(known: dict[str, Any], var: Any) -> Any:
        if isinstance(var, (list, tuple)):
            return [MilProgram._value(known, part) for part in var]
        if var is None:
            return None
        value = known.get(var.name, var.val)
        return value.astype(np.float32) if isinstance(value, np.ndarray) and value.dtype == np.float16 else value


def _flat(given: Any) -> list[Any]:
    """Return the values of an operation's input: one, several or none."""
    several = given if isinstance(given, (list, tuple)) else [given]
    return [var for var in several if var is not None]


def _stored(value: Array, var: Any) -> Array:
    """Return a value in the type in which the program keeps it."""
    from coremltools.converters.mil.mil.types import builtin_to_string

    return np.asarray(value).astype(DTYPES[builtin_to_string(var.dtype)], copy=False)
