"""Sources, which hold what is known of an input file before it is opened, and how layouts find files."""

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from files import is_left_by_system
from parsing import parse_json, shown
from stage import StageError, reason_of

REAL, FAKE = 0, 1
SPLITS = ("train", "val", "test")
VIDEO_SUFFIXES = frozenset(
    ".mp4 .avi .mov .mkv .webm .m4v .mpg .mpeg .mpe .ts .m2t .3gp .3g2 .qt .f4v .wmv .asf".split()  # noqa: SIM905
)
PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff"})
OF_OTHER_KINDS = frozenset({""}).union(
    ".json .jsonl .csv .tsv .txt .md .rst .pdf .html .xml .yml .yaml .toml .ini .cfg .log .db .py .ipynb "  # noqa: SIM905
    ".lock .sh .bat .cff .bak .orig .docx .xlsx .pts .npy .npz .pkl .pickle .mat .h5 .hdf5 .parquet .pt .pth "
    ".bin .dat .md5 .sha256 .srt .vtt .ass "
    ".wav .mp3 .m4a .aac .flac .ogg".split()
)
"""Suffixes of files that lie beside videos and photos and are none; files without a suffix are none either."""


@dataclass(frozen=True)
class Source:
    """One input video or photo before anything is known of its content."""

    path: Path
    name: str
    """The path below the corpus's folder as valid UTF-8, in which form it is stored and shown."""
    label: int
    """1 = fake, 0 = real."""
    method: str
    """How it was forged, or for an original where it comes from."""
    identities: tuple[str, ...]
    """Every person whose face went into it: two for a face swap."""
    split: str | None = None
    """The split that the corpus prescribes; None if it prescribes none."""

    @property
    def video_id(self) -> str:
        """A file-system safe name that is unique in its corpus: readable stem and a hash of the whole name."""
        method, stem = (
            re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[:40] for text in (self.method, PurePath(self.name).stem)
        )
        return f"{method}-{stem}-{hashlib.sha256(self.name.encode()).hexdigest()[:10]}"

    @property
    def is_named_by_file(self) -> bool:
        """Whether the person in it is known by the file's name alone."""
        return self.identities == (one_form(PurePath(self.name).stem),)

    @property
    def is_photo(self) -> bool:
        """Whether the file is named like a photo."""
        return is_photo(self.path)


def is_photo(path: Path) -> bool:
    """Tell whether a file is named like a photo."""
    return path.suffix.lower() in PHOTO_SUFFIXES


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def media(root: Path, below: str = "", suffixes: frozenset[str] = VIDEO_SUFFIXES) -> Iterator[tuple[Path, str]]:
    """Yield path and name (below ``root``) of everything in ``root/below`` with one of the suffixes, sorted by path.

    A folder named like a video counts too, and linked folders are searched. Raises OSError for a folder that cannot be
    read; a missing one counts as empty.
    """
    found = (folder / name for folder, folders, files in _search(root / below) for name in (*folders, *files))
    for path in sorted(path for path in found if path.suffix.lower() in suffixes):
        yield path, shown(path.relative_to(root))


def is_media(path: Path) -> bool:
    """Tell whether a file is named like a video or photo that is read."""
    return path.suffix.lower() in VIDEO_SUFFIXES | PHOTO_SUFFIXES


def unknown_or_media(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield path and name of all that ``media`` finds in a folder, and of all files that may be of a format not read.

    Those have a suffix that is none of OF_OTHER_KINDS; hidden files are left out. Raises OSError as ``media`` does.
    """
    found = []
    for folder, folders, files in _search(root):
        found += [path for name in folders if is_media(path := folder / name)]
        found += [path for name in files if is_media(path := folder / name) or _may_be_media(path)]
    for path in sorted(found):
        yield path, shown(path.relative_to(root))


def _may_be_media(path: Path) -> bool:
    return not path.name.startswith(".") and not path.name.endswith("~") and path.suffix.lower() not in OF_OTHER_KINDS


def folders_below(root: Path) -> Iterator[Path]:
    """Yield a folder and all folders below it, as ``media`` searches them. Raises OSError as ``media`` does."""
    for folder, _, _ in _search(root):
        yield folder


def _search(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yield a folder, its folders and its files, then those of all folders below it and of folders that it links to.

    Links to a parent folder, and what systems leave in folders, are left out. Each folder is searched once, by its own
    name rather than by a link's.
    """
    searched = set[str]()
    pending = [root]
    while pending:
        for folder, folders, files in os.walk(pending.pop(0), onerror=_raise_unless_missing):
            real_path = os.path.realpath(folder)
            if real_path in searched:
                folders.clear()
                continue
            searched.add(real_path)
            yield Path(folder), folders, [name for name in files if not is_left_by_system(name)]
            links = (path for name in sorted(folders) if (path := Path(folder, name)).is_symlink())
            pending += [link for link in links if not Path(real_path).is_relative_to(os.path.realpath(link))]


def corpus_json(path: Path) -> Any:
    """Read a JSON file that a corpus came with. Raises StageError if it is malformed."""
    try:
        return parse_json(path.read_bytes())
    except ValueError as error:
        raise StageError(f"{path} is not JSON ({reason_of(error)}): mend it or download it again") from error


def one_form(identity: str) -> str:
    """Return a person's name in one Unicode form: a Mac may write é as two signs, and one person would be two."""
    return unicodedata.normalize("NFC", identity)
