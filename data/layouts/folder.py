"""The layout ``folder``: ``real/`` and ``fake/``."""

from pathlib import Path, PurePath

from data.layouts.source import FAKE, PHOTO_SUFFIXES, REAL, VIDEO_SUFFIXES, Source, media


def folder_layout(root: Path) -> list[Source]:
    """Return the files of ``root/real/**`` and ``root/fake/**``; a stem is an identity: fake/x.mp4 is of real/x.mp4."""
    return [
        Source(path, name, label, kind, (PurePath(name).stem,))
        for kind, label in (("real", REAL), ("fake", FAKE))
        for path, name in media(root, kind, VIDEO_SUFFIXES | PHOTO_SUFFIXES)
    ]
