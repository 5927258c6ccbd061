"""Layouts of corpora on disk: from a folder or a table to a list of sources. One file per layout."""

from data.layouts.corpus import LAYOUTS, Selection, corpus_note, read_sources
from data.layouts.source import (
    FAKE,
    NOT_READ,
    PHOTO_SUFFIXES,
    REAL,
    SPLITS,
    VIDEO_SUFFIXES,
    Source,
    is_photo,
    media,
    shown,
)

__all__ = [
    "FAKE",
    "LAYOUTS",
    "NOT_READ",
    "PHOTO_SUFFIXES",
    "REAL",
    "SPLITS",
    "VIDEO_SUFFIXES",
    "Selection",
    "Source",
    "corpus_note",
    "is_photo",
    "media",
    "read_sources",
    "shown",
]
