"""What a user must know of a corpus: its own note, persons known by file names alone, files that were overlooked."""

import os
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

from data.layouts.source import Source, unknown_or_media
from files import name_of
from parsing import parse_json
from stage import StageError, some_of

MASKS = "/masks/"
"""Part of the names of FaceForensics++'s mask videos, which are left out without a note."""
_NAMING = {
    "folder": "A .csv file (path,label,identity) in place of the folder",
    "csv": "Its column identity, filled in otherwise,",
    "flat": "--identity-pattern",
}
"""What tells the persons of a corpus whose files' names stand for them otherwise, by layout."""


def titled(layout: str) -> str:
    """Return how a layout is called in texts: ``the layout folder``."""
    return "a folder without a layout" if layout == "flat" else f"the layout {layout}"


def corpus_note(root: Path) -> str | None:
    """Return a corpus's note for reports, from its ``corpus.json`` (``{"note": "..."}``); None without such a file.

    Raises StageError if the file is of another form.
    """
    path = root / "corpus.json"
    if not path.is_file():
        return None
    try:
        note: str = parse_json(path.read_text(encoding="utf-8"))["note"]
        note.encode()  # raises for lone surrogates
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StageError(f'{path} is not of the form {{"note": "..."}}: mend or remove it') from error
    return note


def named_by_files(layout: str, sources: Sequence[Source], selected: AbstractSet[Source]) -> list[str]:
    """Return notes on how many files have only their file name as identity, and what that may cost."""
    used = [source for source in sources if source in selected]
    without_split = [source for source in used if source.split is None]
    unnamed = [source for source in without_split if source.is_named_by_file]
    if not unnamed:
        return []
    notes = [
        f"{len(unnamed)} of {len(used)} files of {titled(layout)} name no person but their own file name: a person "
        f"who is in several of them may be in several splits. {_NAMING[layout]} names persons."
    ]
    reals = {name for source in sources if not source.label for name in source.identities}
    orphans = sum(1 for source in unnamed if source.label and source.identities[0] not in reals)
    if reals and orphans:
        notes.append(
            f"{orphans} fakes of {titled(layout)} have the name of no real file: they may be in another split than "
            "their original."
        )
    return notes


def overlooked_notes(root: Path, sources: Sequence[Source]) -> list[str]:
    """Return a note on the videos and photos that a layout overlooks because of their folder or suffix."""
    taken = {os.path.realpath(source.path) for source in sources}  # a layout may link to files beside it
    names = [name for path, name in unknown_or_media(root) if os.path.realpath(path) not in taken and MASKS not in name]
    if not names:
        return []
    return [
        f"{len(names)} files of {name_of(root)} were not taken: their folder or suffix is none that its layout "
        f"reads: {some_of(names)}."
    ]
