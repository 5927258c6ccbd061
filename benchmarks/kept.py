"""Measurements that are kept on disk until the report is written, so that an interrupted ``bench`` can resume."""

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from files import written_whole
from resuming import Lock, discard, go_on_with, unfinished_of

Result = TypeVar("Result", bound=BaseModel)


class KeptMeasurements:
    """The folder beside ``out`` that holds measurements until the report is written; locked until ``with`` ends.

    ``where``: text that names the measuring machine and versions; measurements kept under another ``where`` are not
    reused.

    Raises StageError if another command is making the same report.
    """

    def __init__(self, out: Path, where: str) -> None:
        self._lock, self._where = Lock(out), where
        self.folder = unfinished_of(out)
        go_on_with(self.folder, "measurements", "{}", lambda: any(self.folder.glob("*.json")), {})

    def once(self, asked: str, measure: Callable[[], Result], kind: type[Result]) -> Result:
        """Return the kept result for ``asked``, of type ``kind``; where there is none, measure it and keep it.

        ``asked`` must name everything that decides the figures. Nothing is kept if ``measure`` raises. Raises
        CannotWrite if the result cannot be written.
        """
        file = self.folder / f"{hashlib.sha256(f'{self._where} {asked}'.encode()).hexdigest()}.json"
        try:
            return kind.model_validate_json(file.read_bytes())
        except (FileNotFoundError, ValidationError):  # after a power cut a kept file can be empty
            result = measure()
        with written_whole(file) as aside:
            aside.write_text(result.model_dump_json(), encoding="utf-8")
        return result

    def scratch(self) -> tempfile.TemporaryDirectory[str]:
        """Return a folder for pictures of faces until ``with`` ends: a killed command leaves none of them elsewhere."""
        return tempfile.TemporaryDirectory(dir=self.folder)

    def __enter__(self) -> "KeptMeasurements":
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is None or not any(self.folder.glob("*.json")):
            discard(self.folder)
            self._lock.remove()
        self._lock.close()
