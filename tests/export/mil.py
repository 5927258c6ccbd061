"""Core ML programs where there is no Mac: each MIL operation by its definition, in numpy, in float32.

Only the operations that the ``score`` program of a clip student has.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
DTYPES = {"fp32": np.float32, "int32": np.int32, "bool": np.bool_}


def _softmax(x: Array, axis: int) -> Array:
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def _layer_norm(x: Array, axes: Array, gamma: Array, beta: Array, epsilon: float) -> Array:
    over = tuple(axes)
    return (x - x.mean(over, keepdims=True)) / np.sqrt(x.var(over, keepdims=True) + epsilon) * gamma + beta


def _slice(x: Array, begin: Array, end: Array, **masks: Array) -> Array:
    from_start, to_end, squeezed = (
        masks.get(name, np.zeros(x.ndim, bool)) for name in ("begin_mask", "end_mask", "squeeze_mask")
    )
    parts = [
        int(first) if single else slice(None if open_first else first, None if open_last else last)
        for first, last, open_first, open_last, single in zip(begin, end, from_start, to_end, squeezed, strict=True)
    ]
    return x[tuple(parts)]


def _matmul(x: Array, y: Array, transpose_x: bool, transpose_y: bool) -> Array:
    return (x.swapaxes(-1, -2) if transpose_x else x) @ (y.swapaxes(-1, -2) if transpose_y else y)


OPERATIONS: dict[str, Any] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "real_div": np.divide,
    "greater": np.greater,
    "logical_not": np.logical_not,
    "logical_or": np.logical_or,
    "cast": lambda x, dtype: x.astype(DTYPES[dtype]),
    "select": lambda cond, a, b: np.where(cond, a, b),
    "relu": lambda x: np.maximum(x, 0),
    "linear": lambda x, weight, bias: x @ weight.T + bias,
    "matmul": _matmul,
    "softmax": _softmax,
    "layer_norm": _layer_norm,
    "slice_by_index": _slice,
    "reduce_max": lambda x, axes, keep_dims: x.max(axis=tuple(axes), keepdims=bool(keep_dims)),
    "reduce_sum": lambda x, axes, keep_dims: x.sum(axis=tuple(axes), keepdims=bool(keep_dims)),
    "expand_dims": lambda x, axes: np.expand_dims(x, tuple(axes)),
    "squeeze": lambda x, axes: np.squeeze(x, tuple(axes)),
    "reshape": lambda x, shape: x.reshape(shape),
    "tile": np.tile,
    "transpose": lambda x, perm: x.transpose(perm),
}
POSITIONAL = ("add", "sub", "mul", "real_div", "greater", "logical_not", "logical_or", "tile")
"""Numpy's own functions, which call their arguments otherwise."""


def run_mil(package: Path, **given: Array) -> Array:
    """Return the one output of an ``.mlpackage`` on inputs by name."""
    import coremltools as ct
    from coremltools.converters.mil.frontend.milproto.load import load

    model = ct.models.MLModel(str(package), skip_model_load=True)
    spec = model.get_spec()
    function = load(spec, spec.specificationVersion, model.weights_dir).functions["main"]
    known = dict(given)
    for operation in function.operations:
        if operation.op_type == "const":
            continue
        inputs = {
            name: known.get(var.name, var.val)
            for name, var in operation.inputs.items()
            if var is not None and name != "name"
        }
        compute = OPERATIONS[operation.op_type]
        known[operation.outputs[0].name] = (
            compute(*inputs.values()) if operation.op_type in POSITIONAL else compute(**inputs)
        )
    found: Array = known[function.outputs[0].name]
    return found
