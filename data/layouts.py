"""How corpora lie on disk: a folder of videos to a list of what each video is.

A layout is a function ``folder -> list[Source]``; ``LAYOUTS`` names them all.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from stage import StageError

REAL, FAKE = 0, 1
VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"})


@dataclass(frozen=True)
class Source:
    """One input video before anything is known of its content."""

    path: Path
    name: str
    """The path below the corpus, always as valid UTF-8: what is stored and shown."""
    label: int
    """1 = fake, 0 = real."""
    method: str
    """How it was forged, or where an original comes from."""
    identities: tuple[str, ...]
    """Every person whose face went into it: two for a face swap."""

    @property
    def video_id(self) -> str:
        """A file-system safe name that is unique in its corpus: readable stem and a hash of the whole name."""
        method, stem = (
            re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[:40] for text in (self.method, Path(self.name).stem)
        )
        return f"{method}-{stem}-{hashlib.sha256(self.name.encode()).hexdigest()[:10]}"


def _videos(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield the video files below ``folder`` in the order of their names; anything named like a video counts."""
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in VIDEO_SUFFIXES:
            yield path, os.fsencode(path.name).decode("utf-8", "backslashreplace")


def _named(path: Path, root: Path) -> str:
    return os.fsencode(path.relative_to(root)).decode("utf-8", "backslashreplace")


def folder_layout(root: Path) -> list[Source]:
    """``root/real/**`` and ``root/fake/**``. A file's stem is its identity: ``fake/x.mp4`` is of ``real/x.mp4``."""
    return [
        Source(path, _named(path, root), label, kind, (Path(name).stem,))
        for kind, label in (("real", REAL), ("fake", FAKE))
        for path, name in _videos(root / kind)
    ]


def _ffpp_identities(stem: str, actors: bool) -> tuple[str, ...]:
    """Return the identities in an FF++ file name: ``000``, ``000_003``, ``01__walking``, ``01_02__walking__ABC``."""
    numbers = stem.split("__")[0].split("_")
    return tuple(dict.fromkeys(f"actor{number}" if actors else number for number in numbers))


def ffpp_layout(root: Path) -> list[Source]:
    """FaceForensics++ (Roessler et al., ICCV 2019): ``{original,manipulated}_sequences/METHOD/COMPRESSION/videos``.

    A manipulated video is named ``TARGET_SOURCE`` and carries both identities.
    """
    sources = []
    for kind, label in (("original_sequences", REAL), ("manipulated_sequences", FAKE)):
        for path, name in _videos(root / kind):
            parts = _named(path, root / kind).split("/")
            # METHOD/masks/videos holds the masks of the forgeries, as videos of the same names.
            if len(parts) < 4 or parts[2] != "videos" or parts[1] == "masks":
                continue
            method = parts[0]
            actors = method in ("actors", "DeepFakeDetection")
            sources.append(Source(path, _named(path, root), label, method, _ffpp_identities(Path(name).stem, actors)))
    return sources


LAYOUTS: dict[str, Callable[[Path], list[Source]]] = {"ffpp": ffpp_layout, "folder": folder_layout}


def _recognize(root: Path) -> str:
    if (root / "original_sequences").is_dir() or (root / "manipulated_sequences").is_dir():
        return "ffpp"
    if (root / "real").is_dir() or (root / "fake").is_dir():
        return "folder"
    raise StageError(
        f"{root} has no known layout: expected original_sequences/ and manipulated_sequences/ (ffpp) "
        "or real/ and fake/ (folder); name one with --layout"
    )


def read_layout(root: Path, layout: str) -> list[Source]:
    """List the videos of a corpus. ``layout`` is a name in LAYOUTS or ``auto``.

    Raises StageError if the folder is missing, holds no video, or its layout is not known.
    """
    if not root.is_dir():
        raise StageError(f"{root} is not a folder: give the folder of a corpus")
    layout = _recognize(root) if layout == "auto" else layout
    if layout not in LAYOUTS:
        raise StageError(f"layout {layout!r} is not known: give auto, {' or '.join(sorted(LAYOUTS))}")
    sources = LAYOUTS[layout](root)
    if not sources:
        raise StageError(
            f"{root} holds no video ({', '.join(sorted(VIDEO_SUFFIXES))}) where the layout '{layout}' looks for it"
        )
    return sources


def corpus_note(root: Path) -> str | None:
    """Return what a corpus says of itself in ``corpus.json`` (``{"note": "..."}``), which reports repeat."""
    path = root / "corpus.json"
    if not path.is_file():
        return None
    try:
        note = json.loads(path.read_text(encoding="utf-8"))["note"]
    except (ValueError, KeyError, TypeError) as error:
        raise StageError(f'{path} is not of the form {{"note": "..."}}: mend or remove it') from error
    return str(note)
