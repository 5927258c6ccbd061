"""Strategies of hypothesis that spoil files as no writer of ours would: values, columns, bytes, names."""

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

from stage import StageError

TRICKS = (
    "../../x",
    "/etc/passwd",
    "..",
    ".",
    "",
    "a/b",
    "a\\b",
    "a\0b",
    "~",
    "file:///x",
    "hf_hub:a/b",
    "\ud800",
    "ü漢",
)
"""Names that lead elsewhere, or nowhere."""
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(2**62, 2**70), st.floats(), st.sampled_from(TRICKS), st.text()
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)


@contextmanager
def one_line() -> Iterator[None]:
    """Let an error of ours pass if it says its reason in one line; any other fails."""
    try:
        yield
    except StageError as error:
        assert str(error).strip()
        assert "\n" not in str(error)


def _places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the way to each value within a value of JSON."""
    within = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, inner in within for place in _places(inner, (*at, key)))]


@st.composite
def spoiled_json(draw: st.DrawFn, text: str) -> str:
    """Draw a JSON text that differs in a value or some: others, none at all, more of them, moved ones."""
    whole = [json.loads(text)]
    for _ in range(draw(st.integers(1, 3))):
        places = [place for place in _places(whole) if place]
        *way, last = draw(st.sampled_from(places))
        holder: Any = whole
        for key in way:
            holder = holder[key]
        match draw(st.sampled_from(("other", "other", "gone", "more", "moved"))):
            case "gone" if way:
                del holder[last]
            case "more" if isinstance(holder[last], dict):
                holder[last][draw(st.text())] = draw(values)
            case "more" if isinstance(holder[last], list):
                holder[last] = holder[last] * 2
            case "moved":
                found: Any = whole
                for key in draw(st.sampled_from(places)):
                    found = found[key]
                holder[last] = copy.deepcopy(found)
            case _:
                holder[last] = draw(values)
        if not whole:
            return ""
    return json.dumps(whole[0])


@st.composite
def spoiled_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    """Draw a file's bytes cut short, or with a piece that is other, gone or there twice."""
    spoilt = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        if not spoilt:
            break
        end = st.integers(0, min(64, len(spoilt) - 1)) | st.integers(max(0, len(spoilt) - 64), len(spoilt) - 1)
        at = draw(end | st.integers(0, len(spoilt) - 1))
        piece = slice(at, at + draw(st.sampled_from((1, 4, 64, len(spoilt)))))
        twice = bytes(spoilt[piece]) * 2
        spoilt[piece] = draw(st.sampled_from((b"", twice)) | st.binary(min_size=1, max_size=8))
    return bytes(spoilt)


@st.composite
def spoiled_table(draw: st.DrawFn, table: pa.Table) -> pa.Table:
    """Draw a table with a column that is gone, of another type or length, or with cells that no writer wrote."""
    names = table.column_names
    for name in draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True)):
        place, column = table.column_names.index(name), table[name]
        match draw(st.sampled_from(("gone", "empty", "type", "cell", "rows"))):
            case "gone":
                table = table.drop_columns([name])
            case "empty":
                table = table.set_column(place, name, pa.nulls(len(table), column.type))
            case "type":
                cells = draw(st.sampled_from(([None], [7], ["x"], [b"x"], [[]], [[[]]], [0.5], [{"a": 1}])))
                table = table.set_column(place, name, pa.array(cells * len(table)))
            case "rows":
                table = pa.concat_tables([table, table.slice(0, 1)]) if draw(st.booleans()) else table.slice(0, 0)
            case "cell":
                table = table.set_column(place, name, _spoiled_cells(draw, column))
    return table


def _spoiled_cells(draw: st.DrawFn, column: pa.ChunkedArray) -> pa.Array:
    """Return a column with one cell that is null, of another length, or a value of its type that means nothing."""
    cells, number = column.to_pylist(), draw(st.integers(0, max(0, len(column) - 1)))
    kind, odd = column.type, None
    if pa.types.is_list(kind):
        odd = draw(st.sampled_from(([], [None], None, (cells[number] or []) * 2)))
    elif pa.types.is_string(kind):
        odd = draw(st.sampled_from([trick for trick in TRICKS if trick.isprintable()]) | st.none())
    elif pa.types.is_integer(kind):
        odd = draw(st.sampled_from((-1, 0, 1, 2, 127)) | st.none())
    elif pa.types.is_floating(kind):
        odd = draw(st.floats(width=32) | st.none())
    if cells:
        cells[number] = odd
    return pa.array(cells, kind)
