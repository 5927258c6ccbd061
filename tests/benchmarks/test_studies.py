"""Studies call the stages with options that these take; the studies themselves take hours."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.studies import losses
from compress.distill import _check_options, _losses


@pytest.mark.parametrize("choice", losses.CHOICES)
def test_every_choice_of_losses_can_be_trained(choice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[bool, bool]] = []

    def distill(*_: Path, teacher: Path | None, loss: str, live_teacher: bool, **__: Any) -> None:
        _check_options("batches", _losses(loss, teacher), teacher, live_teacher, None)
        asked.append((teacher is None, live_teacher))

    monkeypatch.setattr(losses, "distill", distill)
    losses.train_student(losses.CHOICES[choice], 0, tmp_path / "teacher", tmp_path, tmp_path / "run", views=1)
    alone = choice == losses.ALONE
    assert asked == [(alone, not alone)]
