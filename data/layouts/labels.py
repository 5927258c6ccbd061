"""What a folder says of its files' labels, against ``--label``, which gives all of them one."""

import csv
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
WORDS = {"real": REAL, "original": REAL, "fake": FAKE, "manipulated": FAKE, "deepfake": FAKE, "synthesis": FAKE}
"""Words in the names of folders that may tell the label of the files in them."""


def refuse_other_labels(root: Path, sources: Sequence[Source], label: str) -> None:
    """Raise StageError if a folder's names or tables give some of ``sources`` another label than ``label``."""
    number = FAKE if label == "fake" else REAL
    for source in sources:
        for name in PurePath(source.name).parts[:-1]:
            if FOLDERS.get(name.lower(), number) != number:
                raise _refused(f"{source.name} lies in a folder {name}", label)
    for folder in sorted(folders_below(root)):
        for table in (folder / "metadata.json", *sorted(folder.glob("*.csv"))):
            if table.is_file() and any(other != number for other in _labels_in(table)):
                raise _refused(f"{table} says that some files are not {label}", label)


def _refused(found: str, label: str) -> StageError:
    return StageError(
        f"{found}, and --label {label} is for folders whose files are all {label}: leave it out (--methods takes a "
        "part of a corpus), or give folders of one label"
    )


def _labels_in(table: Path) -> Iterator[int]:
    """Yield the labels that DFDC's ``metadata.json`` or a csv gives; none if the file is something else."""
    try:
        if table.suffix == ".json":
            entries = corpus_json(table)
            found = [entry.get("label") for entry in entries.values() if isinstance(entry, dict)]
        else:
            with table.open(encoding="utf-8-sig", newline="") as file:
                rows = csv.DictReader(file)
                rows.fieldnames = [name.strip().lower() for name in rows.fieldnames or ()]
                found = [row["label"] for row in rows] if {"path", "label"} <= {*rows.fieldnames} else []
    except (StageError, ValueError, csv.Error, AttributeError):
        return
    yield from (LABELS[text] for entry in found if (text := str(entry).strip().lower()) in LABELS)


def label_notes(sources: Sequence[Source], label: str) -> list[str]:
    """Return a note on the files in folders whose names have a word for the other label than ``label``."""
    number = FAKE if label == "fake" else REAL
    names = [
        source.name
        for source in sources
        if any(
            WORDS.get(word, number) != number
            for folder in PurePath(source.name).parts[:-1]
            for word in re.findall("[a-z]+", folder.lower())
        )
    ]
    if not names:
        return []
    return [f"{len(names)} files are {label} by --label, though a folder's name may say otherwise: {some_of(names)}."]
