"""Operations of Core ML's MIL in NumPy, computed in float32.

Only operations that Pocketproof's models have. They follow the definitions in coremltools' reference of MIL operations
(``coremltools.converters.mil.mil.ops.defs``).
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit

from export.runtimes import NotEvaluated

Array = Any
"""A NumPy array. Operations return several dtypes, which NumPy's own annotations type as Any."""
IN_CACHE = 1 << 14
"""Number of values that stay in a processor's cache through a dozen operations."""


def _padded(x: Array, pad: Array, value: float = 0.0) -> Array:
    """Pad the last axes with ``value``; ``pad``: before and after each of them, int [2 * axes]."""
    unpadded = [(0, 0)] * (x.ndim - len(pad) // 2)
    padded = [(int(before), int(after)) for before, after in pad.reshape(-1, 2)]
    return np.pad(x, unpadded + padded, constant_values=value)


def _same_padding(size: int, kernel: int, stride: int, dilation: int, lower: bool) -> tuple[int, int]:
    """Return the padding before and after an axis that makes its output ceil(size / stride) long."""
    total = max(0, (-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1 - size)
    smaller, larger = total // 2, total - total // 2
    return (larger, smaller) if lower else (smaller, larger)


def _padded_for_kernel(
    x: Array, kernel: Sequence[int], strides: Array, dilations: Array, pad_type: str, pad: Array | None, value: float
) -> Array:
    """Pad [N, C, H, W] with ``value``, as a convolution or pool with ``pad_type`` does."""
    if pad_type.startswith("same"):
        axes = zip(x.shape[2:], kernel, strides, dilations, strict=True)
        pad = np.array([_same_padding(*axis, lower=pad_type == "same_lower") for axis in axes]).flatten()
    return x if pad is None or pad_type == "valid" else _padded(x, pad, value)


def _taps(x: Array, kernel: Sequence[int], strides: Array, dilations: Array) -> Iterator[tuple[int, int, Array]]:
    """Yield the row and column of each weight of a kernel, and the values that it multiplies, [N, C, H', W']."""
    rows, columns = (
        (size - dilation * (length - 1) - 1) // stride + 1
        for size, length, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True)
    )
    for row, column in np.ndindex(*kernel):
        top, left = row * dilations[0], column * dilations[1]
        tap = x[:, :, top : top + (rows - 1) * strides[0] + 1 : strides[0]]
        yield row, column, tap[..., left : left + (columns - 1) * strides[1] + 1 : strides[1]]


def _depthwise(x: Array, weight: Array, strides: Array, dilations: Array, bias: Array | None) -> Array:
    """Convolve each channel of a padded [N, C, H, W] with its kernel of [C, 1, KH, KW], a few channels at a time."""
    at_once = max(1, IN_CACHE // x[0, 0].size)
    parts = []
    for start in range(0, x.shape[1], at_once):
        channels = slice(start, start + at_once)
        taps = _taps(x[:, channels], weight.shape[2:], strides, dilations)
        products = (weight[channels, 0, row, column, None, None] * tap for row, column, tap in taps)
        output = functools.reduce(lambda sum_, product: np.add(sum_, product, out=sum_), products)
        parts.append(output if bias is None else output + bias[channels, None, None])
    return np.concatenate(parts, 1)


def _in_parts(function: Callable[[Array], Array], x: Array) -> Array:
    """Apply an element-wise function of several steps to so few values at a time that they stay in the cache."""
    parts = np.array_split(x.ravel(), -(-x.size // IN_CACHE))
    return np.concatenate([function(part) for part in parts]).reshape(x.shape)


def _conv(
    x: Array,
    weight: Array,
    strides: Array,
    pad_type: str,
    dilations: Array,
    groups: int,
    bias: Array | None = None,
    pad: Array | None = None,
) -> Array:
    """Convolve [N, C, H, W] with [O, C / groups, KH, KW]: the sum of one matrix product per row and column of it."""
    outputs, inputs, *kernel = weight.shape
    x = _padded_for_kernel(x, kernel, strides, dilations, pad_type, pad, 0.0)
    if inputs == 1 and outputs == groups:
        return _depthwise(x, weight, strides, dilations, bias)
    grouped = weight.reshape(groups, outputs // groups, inputs, *kernel)
    total: Array | None = None
    for row, column, tap in _taps(x, kernel, strides, dilations):
        size = tap.shape[2:]
        product = grouped[..., row, column] @ tap.reshape(len(x), groups, inputs, -1)
        total = product if total is None else np.add(total, product, out=total)
    assert total is not None
    total = total.reshape(len(x), outputs, *size)
    return total if bias is None else total + bias[:, None, None]


class Values(NamedTuple):
    """Values of a pool's input in its padding, and beyond the padding (in ``ceil_mode``)."""

    padding: float = 0.0
    beyond: float = 0.0


def _pooled(
    x: Array, kernel_sizes: Array, strides: Array, pad_type: str, pad: Array | None, ceil_mode: bool, values: Values
) -> Array:
    """Return the contents of each window of a pool, [KH * KW, N, C, H', W'], with ``values`` where there is padding.

    In ``ceil_mode`` a last window that reaches beyond the padding counts if it begins before the padding, as in torch.
    """
    kernel, ones = tuple(map(int, kernel_sizes)), np.ones(2, int)
    padded = _padded_for_kernel(x, kernel, strides, ones, pad_type, pad, values.padding)
    if ceil_mode:
        after = pad.reshape(-1, 2)[:, 1] if pad is not None else np.zeros(2, int)
        beyond = []
        for size, length, stride, right in zip(padded.shape[2:], kernel, strides, after, strict=True):
            windows = -(-(size - length) // stride) + 1
            windows -= (windows - 1) * stride >= size - right
            beyond += [0, max(0, (windows - 1) * stride + length - size)]
        padded = _padded(padded, np.array(beyond), values.beyond)
    return np.stack([tap for *_, tap in _taps(padded, kernel, strides, ones)])


def _avg_pool(
    x: Array,
    kernel_sizes: Array,
    strides: Array,
    pad_type: str,
    pad: Array | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Array:
    window = (kernel_sizes, strides, pad_type, pad, ceil_mode)
    weights = _pooled(np.ones_like(x), *window, Values(padding=0.0 if exclude_padding_from_average else 1.0))
    return _pooled(x, *window, Values()).sum(0) / weights.sum(0)


def _max_pool(
    x: Array, kernel_sizes: Array, strides: Array, pad_type: str, pad: Array | None = None, ceil_mode: bool = False
) -> Array:
    return _pooled(x, kernel_sizes, strides, pad_type, pad, ceil_mode, Values(-np.inf, -np.inf)).max(0)


def _erf(x: Array) -> Array:
    """Return the error function within 6e-7 (Abramowitz and Stegun, 7.1.26); SciPy's takes ten times as long."""
    t = 1 / (1 + np.float32(0.3275911) * np.abs(x))
    coefficients = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
    highest, *others = coefficients
    polynomial = functools.reduce(lambda sum_, factor: sum_ * t + np.float32(factor), others, np.float32(highest))
    return np.copysign(1 - polynomial * t * np.exp(-(x * x)), x)


def _gelu(x: Array, mode: str) -> Array:
    if mode == "EXACT":
        return _in_parts(lambda part: 0.5 * part * (1 + _erf(part * np.float32(np.sqrt(0.5)))), x)
    if mode == "TANH_APPROXIMATION":
        return 0.5 * x * (1 + np.tanh(np.sqrt(np.float32(2 / np.pi)) * (x + 0.044715 * x**3)))
    return x * expit(1.702 * x)


def _softmax(x: Array, axis: int) -> Array:
    exponentials = np.exp(x - x.max(axis=axis, keepdims=True))
    return exponentials / exponentials.sum(axis=axis, keepdims=True)


def _layer_norm(x: Array, axes: Array, epsilon: float, gamma: Array | float = 1.0, beta: Array | float = 0.0) -> Array:
    normalized = tuple(axes)
    if sorted(axis % x.ndim for axis in normalized) != list(range(x.ndim - len(normalized), x.ndim)):
        raise NotEvaluated("a layer norm over other than the last axes is computed only by Core ML")
    return (x - x.mean(normalized, keepdims=True)) / np.sqrt(x.var(normalized, keepdims=True) + epsilon) * gamma + beta


def _slice(x: Array, begin: Array, end: Array, stride: Array | None = None, **masks: Array) -> Array:
    from_start, to_end, squeezed = (
        masks.get(name, np.zeros(x.ndim, bool)) for name in ("begin_mask", "end_mask", "squeeze_mask")
    )
    steps = np.ones(x.ndim, int) if stride is None else stride
    index = [
        int(first) if single else slice(None if open_first else first, None if open_last else last, step)
        for first, last, step, open_first, open_last, single in zip(
            begin, end, steps, from_start, to_end, squeezed, strict=True
        )
    ]
    return x[tuple(index)]


def _matmul(x: Array, y: Array, transpose_x: bool = False, transpose_y: bool = False) -> Array:
    return (x.swapaxes(-1, -2) if transpose_x else x) @ (y.swapaxes(-1, -2) if transpose_y else y)


def _split(x: Array, axis: int, num_splits: int | None = None, split_sizes: Array | None = None) -> list[Array]:
    ends = num_splits if split_sizes is None else np.cumsum(split_sizes)[:-1]
    assert ends is not None
    return np.split(x, ends, axis)


def _concat(values: list[Array], axis: int, interleave: bool = False) -> Array:
    if interleave:
        raise NotEvaluated("interleaving values is computed only by Core ML")
    return np.concatenate(values, axis)


def _pad(x: Array, pad: Array, mode: str, constant_val: float = 0.0) -> Array:
    if mode != "constant":
        raise NotEvaluated(f"padding of mode {mode} is computed only by Core ML")
    return _padded(x, pad, constant_val)


def _broadcast(value: Array, axis: int | None, ndim: int) -> Array:
    """Reshape values per channel, [C], to broadcast along ``axis`` of ``ndim`` axes; return scalars as they are."""
    if axis is None or not value.ndim:
        return value
    return value.reshape([-1 if index == axis % ndim else 1 for index in range(ndim)])


def _quantize(
    input: Array, scale: Array, output_dtype: str, zero_point: Array | int = 0, axis: int | None = None
) -> Array:
    low, high = (0, 255) if output_dtype == "uint8" else (-128, 127)
    scale, zero = (_broadcast(np.asarray(value, np.float32), axis, input.ndim) for value in (scale, zero_point))

    def rounded(part: Array) -> Array:
        return np.clip(np.rint(part / scale) + zero, low, high).astype(output_dtype)

    return rounded(input) if scale.ndim else _in_parts(rounded, input)


def _dequantize(input: Array, scale: Array, zero_point: Array | int = 0, axis: int | None = None) -> Array:
    scale, zero = (_broadcast(np.asarray(value, np.float32), axis, input.ndim) for value in (scale, zero_point))

    def restored(part: Array) -> Array:
        return (part.astype(np.float32) - zero) * scale

    return restored(input) if scale.ndim else _in_parts(restored, input)


OPERATIONS: dict[str, Callable[..., Array | list[Array]]] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "real_div": lambda x, y: x / y,
    "greater": lambda x, y: x > y,
    "logical_not": lambda x: ~x,
    "logical_or": lambda x, y: x | y,
    "cast": lambda x, **_: x,
    "select": lambda cond, a, b: np.where(cond, a, b),
    "relu": lambda x: np.maximum(x, 0),
    "clip": lambda x, alpha, beta: np.clip(x, alpha, beta),
    "sigmoid": lambda x: expit(x),
    "tanh": lambda x: np.tanh(x),
    "silu": lambda x: x * expit(x),
    "gelu": _gelu,
    "softmax": _softmax,
    "conv": _conv,
    "avg_pool": _avg_pool,
    "max_pool": _max_pool,
    "linear": lambda x, weight, bias=0.0: x @ weight.T + bias,
    "matmul": _matmul,
    "layer_norm": _layer_norm,
    "reduce_mean": lambda x, axes, keep_dims: x.mean(axis=tuple(axes), keepdims=bool(keep_dims)),
    "reduce_max": lambda x, axes, keep_dims: x.max(axis=tuple(axes), keepdims=bool(keep_dims)),
    "reduce_sum": lambda x, axes, keep_dims: x.sum(axis=tuple(axes), keepdims=bool(keep_dims)),
    "slice_by_index": _slice,
    "split": _split,
    "concat": _concat,
    "expand_dims": lambda x, axes: np.expand_dims(x, tuple(axes)),
    "squeeze": lambda x, axes: np.squeeze(x, tuple(axes)),
    "reshape": lambda x, shape: x.reshape(shape),
    "tile": lambda x, reps: np.tile(x, reps),
    "transpose": lambda x, perm: x.transpose(perm),
    "pad": _pad,
    "quantize": _quantize,
    "dequantize": _dequantize,
}
"""Function of each type of operation; it takes the operation's inputs by name."""
