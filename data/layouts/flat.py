"""A folder without a layout, all of one label (``--label``)."""

import re
from pathlib import Path, PurePath

from data.layouts.source import FAKE, PHOTO_SUFFIXES, REAL, VIDEO_SUFFIXES, Source, media
from stage import StageError, WrongArgument


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:  # the last two come from huge numbers and deep nesting
        raise WrongArgument(f"--identity-pattern '{pattern}' is not a regular expression: {error}") from error


def _identity(name: str, pattern: re.Pattern[str] | None) -> str:
    """Return the identity in a name: its stem without a pattern, "" where ``pattern`` finds none."""
    if pattern is None:
        return PurePath(name).stem
    match = pattern.search(name)
    return (match.group(min(1, pattern.groups)) or "") if match else ""


def flat_layout(root: Path, label: str, identity_pattern: str | None) -> list[Source]:
    """Return the files of ``root/**``, all with ``label`` (real or fake); the method is named like the label.

    The identity is the first group of ``identity_pattern`` (or all that it matches) in the path below ``root``, or
    the stem without a pattern. Raises StageError for a pattern that does not compile or misses a file.
    """
    pattern = None if identity_pattern is None else _compiled(identity_pattern)
    files = [(path, name, _identity(name, pattern)) for path, name in media(root, "", VIDEO_SUFFIXES | PHOTO_SUFFIXES)]
    if missed := [name for _, name, identity in files if not identity]:
        raise StageError(
            f"--identity-pattern {identity_pattern!r} finds no identity in {missed[0]} "
            f"({len(missed)} of {len(files)} files of {root}): mend the pattern or leave these files out"
        )
    number = FAKE if label == "fake" else REAL
    return [Source(path, name, number, label, (identity,)) for path, name, identity in files]
