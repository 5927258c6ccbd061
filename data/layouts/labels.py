"""What a folder says of its files' labels, against ``--label``, which gives all of them one."""

import csv
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

from data.layouts.celebdf import NAMES
from data.layouts.source import FAKE, REAL, Source, corpus_json, folders_below
from data.layouts.table import LABELS
from stage import StageError, some_of

FOLDERS = {
    **{"real": REAL, "original_sequences": REAL, "fake": FAKE, "manipulated_sequences": FAKE},
    **{name.lower(): label for name, (label, _, _) in NAMES.items()},
}
"""Label of the files in folders of these names, in capitals or not: those of the layouts."""
FAKES, REALS = re.compile("(deep)?fake|manipulat|generat|synth|forge|swap"), re.compile("(real|original|genuine)s?$")
"""Words in the names of folders that may tell the label of the files in them; the first also at a word's beginning."""


def refuse_other_labels(root: Path, sources: Sequence[Source], label: str) -> None:
    """Raise StageError if a folder's names or tables give some of ``sources`` another label than ``label``."""
    for source in sources:
        for name in (_name_of(root), *PurePath(source.name).parts[:-1]):
            if FOLDERS.get(name.lower(), source.label) != source.label:
                raise _refused(f"{source.name} lies in a folder {name}", label, "give folders of one label alone")
    # Absolute, without "..", and links as they are.
    labels = {os.path.abspath(source.path): source.label for source in sources}  # noqa: PTH100
    for folder in sorted(folders_below(root)):
        for table in sorted(path for path in folder.iterdir() if path.suffix.lower() in (".json", ".csv")):
            for name, other in _labels_in(table):
                if labels.get(_path_in(folder, name), other) != other:
                    raise _refused(
                        f"{table} says that {PurePath(name.strip())} is not {label}",
                        label,
                        "move the table out of the folder",
                    )


def _path_in(folder: Path, name: str) -> str:
    """Return the absolute path of a file that a table in a folder names."""
    path = os.path.abspath(folder / name)  # noqa: PTH100
    return path if os.path.lexists(path) else os.path.abspath(folder / name.strip())  # noqa: PTH100


def _name_of(folder: Path) -> str:
    return folder.name if folder.name not in ("", "..") else folder.resolve().name


def _refused(found: str, label: str, remedy: str) -> StageError:
    return StageError(
        f"{found}, and --label {label} is for files that are all {label}: leave --label out (--methods takes a part of "
        f"a corpus), or {remedy}"
    )


def _labels_in(table: Path) -> Iterator[tuple[str, int]]:
    """Yield paths from its folder and labels of what DFDC's ``metadata.json`` or a csv names, as far as it is one."""
    try:
        for path, text in _entries(table):
            if (label := LABELS.get(str(text).strip().lower())) is not None:
                yield path, label
    except (StageError, ValueError, csv.Error):
        return


def _entries(table: Path) -> Iterator[tuple[str, object]]:
    if not table.is_file():
        return
    if table.name == "metadata.json":
        entries = corpus_json(table)
        for path, entry in entries.items() if isinstance(entries, dict) else ():
            yield path, entry.get("label") if isinstance(entry, dict) else None
    elif table.suffix.lower() == ".csv":
        with table.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            rows = csv.DictReader(file)
            rows.fieldnames = [name.strip().lower() for name in rows.fieldnames or ()]
            if {"path", "label"} <= {*rows.fieldnames}:
                yield from ((row["path"] or "", row["label"]) for row in rows)


def label_notes(root: Path, sources: Sequence[Source], label: str) -> list[str]:
    """Return a note on the files in folders whose names have a word for the other label than ``label``."""
    pattern = REALS if label == "fake" else FAKES
    names = [
        source.name
        for source in sources
        if any(
            pattern.match(word.lower())
            for folder in (_name_of(root), *PurePath(source.name).parts[:-1])
            for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", folder)
        )
    ]
    if not names:
        return []
    return [f"{len(names)} files are {label} by --label, though a folder's name may say otherwise: {some_of(names)}."]
