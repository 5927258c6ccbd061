"""Readers for users' files, which are not trusted: JSON, weights, model cards.

This module stands beside ``stage.py``: every room uses it and it uses none of them.
"""

import argparse
import json
import os
import re
from pathlib import Path, PurePath
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from stage import StageError, WrongArgument, reason_of

Schema = TypeVar("Schema", bound=BaseModel)


def refuse_url(path: Path) -> None:
    """Raise WrongArgument for a URL where a path of this machine is needed: it would make a folder ``s3:``."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        raise WrongArgument(f"{path} is a URL, and a path of this machine is needed: fetch it, or write here first")


def shown(path: PurePath | str) -> str:
    """Return a path or URL as valid UTF-8: each invalid byte is written as backslash, x and two hex digits.

    The name and password in a URL are left out.
    """
    text = os.fsencode(str(path)).decode("utf-8", "backslashreplace")
    return re.sub(r"^([A-Za-z][A-Za-z0-9+.-]+://)[^/@]*@", r"\1", text)


def require_utf8(path: Path) -> None:
    """Raise StageError for a name that is not valid UTF-8: libraries that read and write weights take no other."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise StageError(f"{shown(path)} is not valid UTF-8: rename it, or give another path") from error


def load_tensors(path: Path) -> Any:
    """Read what a .safetensors or torch file holds, without unpickling anything but tensors and plain containers.

    An ``argparse.Namespace`` counts as such: timm's training script saves its arguments beside the weights. Raises
    ValueError with the reason if the file is damaged or would have to be unpickled without restriction.
    """
    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # a damaged pickle makes its reader raise nearly anything
        # Torch itself would tell the user how to unpickle it without restriction.
        unsafe = "weights_only" in str(error)
        raise ValueError("it holds other things than tensors" if unsafe else reason_of(error)) from error


def card_licence(folder: Path) -> str:
    """Return the licence in the front matter of a model card (README.md). Raises StageError if it is damaged."""
    from huggingface_hub.repocard import metadata_load

    card = folder / "README.md"
    if not card.is_file():
        return "unknown (no model card beside the weights)"
    try:
        licence = (metadata_load(card) or {}).get("license")
        if not isinstance(licence, str | None):
            names = licence if isinstance(licence, list) else []
            licence = ", ".join(name for name in names if isinstance(name, str))
    except Exception as error:  # the card is anybody's YAML
        raise StageError(f"{card} cannot be read as a model card: {reason_of(error)}; mend or remove it") from error
    return licence or "unknown (the model card names none)"


LARGEST = 1e100
"""Largest magnitude of a number in a JSON file: far above every figure, far below where sums of two overflow."""


class OutOfRange(ValueError):
    """A file holds NaN, an infinity, or a number above LARGEST."""


def _in_range(text: str) -> float:
    """Return the number in a JSON text. Raises OutOfRange for one that no figure can be."""
    value = float(text)
    if not abs(value) <= LARGEST:
        raise OutOfRange(f"{text[:20]} is out of range")
    return value


def _integer_in_range(digits: str) -> int:
    """Return the integer in a JSON text. Raises OutOfRange for one that no figure can be."""
    _in_range(digits)
    return int(digits)


def parse_json(text: str | bytes) -> Any:
    """Parse the JSON of a user's file.

    Raises ValueError if it is damaged, or nested deeper than Python can follow, and OutOfRange for NaN and infinities,
    which JSON does not allow but Python accepts, and for numbers above LARGEST.
    """
    try:
        return json.loads(text, parse_constant=_in_range, parse_float=_in_range, parse_int=_integer_in_range)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json(path: Path, schema: type[Schema], version: int, missing: str, mend: str = "") -> Schema:
    """Read a JSON file that Pocketproof wrote, as its schema.

    Raises StageError: for a name that is not UTF-8, with the text ``missing`` if there is no file, with the reason if
    it cannot be read, or with what is wrong in it, followed by ``mend``. The version is checked first, as other
    versions may have any form.
    """
    require_utf8(path)
    mend = mend and f": {mend}"
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        refuse_url(path.parent)
        raise StageError(missing if path.parent.exists() else f"{path.parent} does not exist") from error
    except OSError as error:
        raise StageError(f"{path} cannot be read: {reason_of(error)}") from error
    try:
        if (file_version := parse_json(text)["schema_version"]) != version:
            raise StageError(f"{path} is of schema version {file_version}, this program reads {version}{mend}")
    except OutOfRange as error:
        raise StageError(f"{path} is not valid: {error}{mend}") from error
    except (ValueError, KeyError, TypeError):
        pass  # its schema gives a better message
    try:
        return schema.model_validate_json(text, strict=True)  # else "inf" in quotes would be a number
    except ValidationError as error:
        raise StageError(f"{path} is not valid: {reason_of(error)}{mend}") from error
