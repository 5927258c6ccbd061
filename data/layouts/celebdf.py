"""The layout ``celebdf``: Celeb-DF v2 (Li et al., CVPR 2020)."""

import re
from pathlib import Path, PurePath

from data.layouts.source import FAKE, REAL, Source, media
from stage import StageError

NAMES = {
    "Celeb-real": (REAL, r"(id\d+)_\d+", "id0_0000"),
    "YouTube-real": (REAL, r"(\d+)", "00000"),
    "Celeb-synthesis": (FAKE, r"(id\d+)_(id\d+)_\d+", "id0_id1_0000"),
}
"""For each folder, which is also the method: its label, a pattern of the identities in a stem, and an example."""


def _identities(name: str, method: str) -> tuple[str, ...]:
    """Return the identities in a file name. Raises StageError for a name of another form."""
    _, pattern, example = NAMES[method]
    match = re.fullmatch(pattern, PurePath(name).stem)
    if match is None:
        raise StageError(
            f"{name} is not named like {method}/{example}.mp4, its identity is not known: rename or remove it"
        )
    # Numbers in YouTube-real name videos, each of another person; they must not collide with FF++'s numbers.
    return (f"youtube{match[1]}",) if method == "YouTube-real" else tuple(dict.fromkeys(match.groups()))


def celebdf_layout(root: Path) -> list[Source]:
    """Return the videos in the three folders of Celeb-DF.

    They are named like ``Celeb-real/id0_0000.mp4``, ``Celeb-synthesis/id0_id1_0000.mp4`` (both identities) and
    ``YouTube-real/00000.mp4``. ``List_of_testing_videos.txt`` is not used: its videos share identities with the others.
    Raises StageError for a video whose name does not tell its identities.
    """
    return [
        Source(path, name, label, method, _identities(name, method))
        for method, (label, _, _) in NAMES.items()
        for path, name in media(root, method)
    ]
