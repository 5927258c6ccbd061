"""Layouts of corpora on disk: from a folder or a table to a list of sources. One file per layout."""

from data.layouts.corpus import LAYOUTS, Selection, read_sources
from data.layouts.notes import corpus_note
from data.layouts.source import (
    FAKE,
    REAL,
    SPLITS,
    Source,
    is_media,
    is_photo,
    unknown_or_media,
)

__all__ = [
    "FAKE",
    "LAYOUTS",
    "REAL",
    "SPLITS",
    "Selection",
    "Source",
    "corpus_note",
    "is_media",
    "is_photo",
    "read_sources",
    "unknown_or_media",
]
