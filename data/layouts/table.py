"""The layout ``csv``: a table at the top of a corpus that says what each file is."""

import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path, PurePath

from data.layouts.source import FAKE, REAL, SPLITS, Source
from stage import StageError, reason_of, say

NEEDED = ("path", "label")
COLUMNS = (*NEEDED, "identity", "method", "split")
LABELS = {"real": REAL, "0": REAL, "fake": FAKE, "1": FAKE}


def _text(table: Path) -> str:
    """Return the content of a table. Raises StageError if it is not UTF-8."""
    content = table.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise StageError(f"{table}, line {line}: not UTF-8: save it as CSV in UTF-8") from error


def _checked_header(cells: list[str]) -> list[str]:
    """Return the names of the columns. Raises ValueError if one is missing or there twice."""
    header = [cell.strip().lower() for cell in cells]
    for column in COLUMNS:
        if (count := header.count(column)) > 1 or (not count and column in NEEDED):
            raise ValueError(
                f"{count} columns named {column!r}: begin with the line {','.join(NEEDED)} or {','.join(COLUMNS)}, "
                "with commas between"
            )
    return header


def _rows(table: Path) -> Iterator[tuple[int, list[str], list[str]]]:
    """Yield line number, header and cells of each row. Raises StageError for a malformed table."""
    reader = csv.reader(io.StringIO(_text(table), newline=""), strict=True)
    try:
        header = _checked_header(next(reader, []))
        if others := [column or "one without a name" for column in header if column not in COLUMNS]:
            say(f"{table.name}: columns that are not used: {', '.join(others)} (used are {', '.join(COLUMNS)})")
        for cells in filter(None, reader):
            if len(cells) != len(header):
                raise ValueError(f"{len(cells)} cells under {len(header)} columns: put a cell with a comma in quotes")
            yield reader.line_num, header, cells
    except (csv.Error, ValueError) as error:
        raise StageError(f"{table}, line {max(1, reader.line_num)}: {error}") from error


def _checked_name(text: str, folder: Path) -> str:
    """Return a path below ``folder`` in normalized form, also of an absolute one; ValueError if it leads out of it."""
    path, top = PurePath(text), os.path.realpath(folder)
    if path.is_absolute():  # it may name the folder otherwise than the command does, through a link or ".."
        path = next((path.relative_to(above) for above in path.parents if os.path.realpath(above) == top), path)
    if ".." in path.parts or "\0" in text:
        raise ValueError(f"path {text!r} has '..' or a zero byte in it: give the way from the csv down to the file")
    outside = path.is_absolute() or not path.parts
    if outside or not Path(os.path.realpath(folder / path)).is_relative_to(top):
        raise ValueError(f"path {text!r} leads to no file below the csv: put the csv at the top of the corpus")
    return str(path)


def _source(row: dict[str, str], folder: Path) -> Source:
    """Return the source that a row describes. Raises ValueError for an illegal cell."""
    cells = {column: cell.strip() for column, cell in row.items()}
    name = _checked_name(row["path"], folder)
    try:
        if not (folder / name).exists():  # a name that exists may begin or end with a space
            name = _checked_name(cells["path"], folder)
    except OSError as error:  # of a name that no file can have
        raise ValueError(f"path {name[:40]!r}...: {reason_of(error)}") from error
    label = LABELS.get(cells["label"].lower())
    if label is None:
        raise ValueError(f"label {cells['label']!r} is not known: give real, fake, 0 (real) or 1 (fake)")
    split = cells.get("split") or None
    if split not in (None, *SPLITS):
        raise ValueError(f"split {split!r} is not known: give {', '.join(SPLITS)} or nothing")
    persons = (person.strip() for person in cells.get("identity", "").split(";"))
    identities = tuple(dict.fromkeys(filter(None, persons))) or (PurePath(name).stem,)
    method = cells.get("method") or ("fake" if label else "real")
    return Source(folder / name, name, label, method, identities, split)


def csv_layout(table: Path) -> list[Source]:
    """Return the sources in a table: columns ``path`` and ``label`` (real, fake, 0, 1).

    A path is below the csv's folder, relative to it or absolute. Optional are ``identity`` (several with ``;``;
    default: the stem), ``method`` and ``split`` (train, val, test). Names of columns may be in capitals; other columns
    are reported and not used. A missing file is listed, too. Raises StageError for a malformed table.
    """
    sources: dict[str, Source] = {}
    for line, header, cells in _rows(table):
        try:
            source = _source(dict(zip(header, cells, strict=True)), table.parent)
            if source.name in sources:
                raise ValueError(f"{source.name!r} is there a second time: remove one of its rows")
        except ValueError as error:
            raise StageError(f"{table}, line {line}: {error}") from error
        sources[source.name] = source
    if not sources:
        raise StageError(f"{table}, line 1: no row follows: give one row per file, as a.mp4,real")
    return list(sources.values())
