"""The layout ``ffpp``: FaceForensics++ (Roessler et al., ICCV 2019) and its official split."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePath

from data.layouts.source import FAKE, REAL, SPLITS, Source, corpus_json, media
from stage import StageError

COMPRESSIONS = {"c0": ("c0", "raw"), "c23": ("c23",), "c40": ("c40",)}
"""For each compression, the names of the folders that hold it."""


def _identities(name: str, actors: bool) -> tuple[str, ...]:
    """Return the identities in an FF++ file name: ``000``, ``000_003``, ``01__walking``, ``01_02__walking__ABC``.

    Raises StageError for any other name: with wrong identities, one person could be in two splits.
    """
    stem = PurePath(name).stem
    if not re.fullmatch(r"\d+(_\d+)?(__.*)?", stem, re.DOTALL):
        one_line = " ".join(name.splitlines())
        raise StageError(
            f"{one_line} is not named like 000 or 000_003, its identities are not known: rename or remove it"
        )
    numbers, *scene = stem.split("__", 1)  # only videos of actors name a scene
    return tuple(dict.fromkeys(f"actor{number}" if actors or scene else number for number in numbers.split("_")))


def ffpp_layout(root: Path) -> list[Source]:
    """Return the videos in ``{original,manipulated}_sequences/METHOD/COMPRESSION/videos``, of all methods.

    All compressions are listed. A manipulated video is named ``TARGET_SOURCE`` and carries both identities.
    """
    sources = []
    for folder, label in (("original_sequences", REAL), ("manipulated_sequences", FAKE)):
        for path, name in media(root, folder):
            parts = name.split("/")
            # METHOD/masks/videos holds the masks of the forgeries, as videos of the same names.
            if len(parts) < 5 or parts[3] != "videos" or parts[2] == "masks":
                continue
            identities = _identities(name, parts[1].lower() in ("actors", "deepfakedetection"))
            sources.append(Source(path, name, label, parts[1], identities))
    return sources


def _compression_folder(source: Source) -> str:
    """Return the folder in a source's name that says its compression."""
    return source.name.split("/")[2]


def _compression_of(folder: str) -> str:
    """Return the compression that a folder holds: one of COMPRESSIONS, else the folder's own name."""
    return next((compression for compression, folders in COMPRESSIONS.items() if folder in folders), folder)


def compression_notes(sources: Sequence[Source]) -> list[str]:
    """Return a note on the labels per compression if there are several: each copy counts as a video."""
    number_of = Counter((_compression_of(_compression_folder(source)), source.label) for source in sources)
    names = sorted({name for name, _ in number_of})
    if len(names) < 2:
        return []
    counts = ", ".join(f"{name}: {number_of[name, REAL]} real and {number_of[name, FAKE]} fake" for name in names)
    return [
        f"FaceForensics++ is in several compressions ({counts}): each copy of a video counts as a video, and a "
        "detector may learn compressions where labels differ in them; --compression takes one."
    ]


def of_compression(sources: Sequence[Source], compression: str) -> list[Source]:
    """Return the videos of one of COMPRESSIONS. Raises StageError if there is none."""
    chosen = [source for source in sources if _compression_folder(source) in COMPRESSIONS[compression]]
    if not chosen:
        present = ", ".join(sorted({_compression_of(_compression_folder(source)) for source in sources}))
        raise StageError(f"no FaceForensics++ video is of --compression {compression}: give one of {present}")
    return chosen


def _numbers(path: Path) -> list[str]:
    """Return the video numbers in a list of pairs. Raises StageError if the file is missing or of another form."""
    if not path.is_file():
        raise StageError(f"{path} is missing: --official-splits takes the folder of FaceForensics++'s three lists")
    pairs = corpus_json(path)
    numbers: list[str] = []
    for pair in pairs if isinstance(pairs, list) else [pairs]:
        match pair:
            case [str(), str()]:
                numbers += pair
            case _:
                raise StageError(f'{path}: {pair!r:.60} is not a pair like ["071", "054"]: download the list again')
    return numbers


def _official_splits(folder: Path) -> dict[str, str]:
    """Return the split of each video number. Raises StageError for a number in two splits."""
    split_of: dict[str, str] = {}
    for split in SPLITS:
        for number in _numbers(folder / f"{split}.json"):
            if (first_split := split_of.setdefault(number, split)) != split:
                raise StageError(
                    f"{folder}: {number} is in {first_split}.json and in {split}.json: download the lists again"
                )
    return split_of


def with_official_split(sources: Sequence[Source], folder: Path) -> list[Source]:
    """Return the sources with their split in ``train.json``, ``val.json`` and ``test.json`` (720, 140, 140 videos).

    A video of identities in no list (actors) gets none. Raises StageError for malformed lists, lists of none of the
    videos, and a manipulated video whose two identities are not in the same split.
    """
    split_of = _official_splits(folder)
    prescribed = [replace(source, split=_split(source, split_of)) for source in sources]
    if not any(source.split for source in prescribed):
        raise StageError(f"the lists in {folder} name none of the videos: give those of FaceForensics++")
    return prescribed


def _split(source: Source, split_of: dict[str, str]) -> str | None:
    """Return the official split of a source's identities. Raises StageError if they are in different ones."""
    splits = [split_of.get(identity) for identity in source.identities]
    if len(set(splits)) > 1:
        listing = " and ".join(f"{n} in {split or 'none'}" for n, split in zip(source.identities, splits, strict=True))
        raise StageError(
            f"{source.name} has {listing} of the official splits: leave it out or prepare without --official-splits"
        )
    return splits[0]
