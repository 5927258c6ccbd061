"""What was measured for a report that is not written yet: an interrupted ``bench`` goes on with it."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from files import Lock, unfinished_of, written_whole

Found = TypeVar("Found", bound=BaseModel)


class KeptMeasurements:
    """The folder beside ``out`` in which measurements lie until the report is there.

    ``where``: the machine and versions that measure; what others have measured is not gone on with.

    Raises StageError while another command makes the same report, until the end of the ``with`` block.
    """

    def __init__(self, out: Path, where: str) -> None:
        self._lock, self._where = Lock(out), where
        self.folder = unfinished_of(out)
        self.folder.mkdir(exist_ok=True)

    def once(self, asked: str, measure: Callable[[], Found], kind: type[Found]) -> Found:
        """Return what was measured before for the same ``asked``, or measure it and keep that.

        ``asked`` names all that decides the figures. What raises is not kept.
        """
        file = self.folder / f"{hashlib.sha256(f'{self._where} {asked}'.encode()).hexdigest()}.json"
        try:
            return kind.model_validate_json(file.read_bytes())
        except (FileNotFoundError, ValidationError):  # after a power cut what was kept can be empty
            found = measure()
        with written_whole(file) as aside:
            aside.write_text(found.model_dump_json(), encoding="utf-8")
        return found

    def __enter__(self) -> "KeptMeasurements":
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is None or not any(self.folder.glob("*.json")):
            shutil.rmtree(self.folder)
            self._lock.remove()
        self._lock.close()
