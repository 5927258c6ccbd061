"""Layouts of corpora on disk: from a folder or a table to a list of sources. One file per layout."""

from data.layouts.corpus import Selection, read_sources
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
    "REAL",
    "SPLITS",
    "Selection",
    "Source",
    "is_media",
    "is_photo",
    "read_sources",
    "unknown_or_media",
]
