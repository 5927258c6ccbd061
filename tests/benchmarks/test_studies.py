"""Studies call the stages with options that these take; the studies themselves take hours."""

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pocketproof
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


MODULES = {module for module, _ in pocketproof.STAGES.values()}
ROOM = Path(losses.__file__).parents[1]


def calls_of(file: Path) -> Iterator[tuple[Any, ast.Call]]:
    """Yield the stages that a module calls, with each call."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    stages = {
        alias.asname or alias.name: getattr(importlib.import_module(node.module), alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in MODULES
        for alias in node.names
        if node.module.endswith(f".{alias.name}")
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in stages:
            yield stages[node.func.id], node


@pytest.mark.parametrize(
    "file", [ROOM / "demo.py", *sorted((ROOM / "studies").glob("*.py"))], ids=lambda file: file.stem
)
def test_stages_are_called_with_options_that_they_have(file: Path) -> None:
    """Neither types nor the tests of the demo see it: stages take the fields of option classes as options."""
    for stage, call in calls_of(file):
        named = {keyword.arg: None for keyword in call.keywords if keyword.arg}
        positional = [argument for argument in call.args if not isinstance(argument, ast.Starred)]
        inspect.signature(stage).bind_partial(*positional, **named)


def test_the_demo_s_calls_are_seen() -> None:
    assert len({stage for stage, _ in calls_of(ROOM / "demo.py")}) >= 7
