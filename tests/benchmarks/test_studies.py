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


def calls_of(file: Path) -> Iterator[tuple[Any, list[Any], set[str]]]:
    """Yield the stages that a module calls, with the positional arguments and the names of the options of each call."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    stages = {
        alias.asname or alias.name: getattr(importlib.import_module(node.module), alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in MODULES
        for alias in node.names
        if node.module.endswith(f".{alias.name}")
    }
    for function in tree.body:
        options = dict(options_in(function))
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in stages:
                named = {keyword.arg for keyword in node.keywords if keyword.arg}
                spread = [ast.unparse(keyword.value) for keyword in node.keywords if not keyword.arg]
                positional = [argument for argument in node.args if not isinstance(argument, ast.Starred)]
                yield stages[node.func.id], positional, named.union(*(options[name] for name in spread))


def options_in(function: ast.AST) -> Iterator[tuple[str, set[str]]]:
    """Yield the names of the dictionaries that a function makes, ``name = {...}`` and ``name |= {...}``, with keys."""
    keys: dict[str, set[str]] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.AnnAssign | ast.AugAssign) and isinstance(node.value, ast.Dict):
            names = {key.value for key in node.value.keys if isinstance(key, ast.Constant)}
            keys.setdefault(ast.unparse(node.target), set()).update(map(str, names))
    yield from keys.items()


CALLERS = [
    file
    for file in (ROOM / "demo.py", *sorted((ROOM / "studies").glob("*.py")))
    if next(calls_of(file), None) is not None
]


@pytest.mark.parametrize("file", CALLERS, ids=lambda file: file.stem)
def test_stages_are_called_with_options_that_they_have(file: Path) -> None:
    """Neither types nor the tests of the demo see it: stages take the fields of option classes as options."""
    for stage, positional, named in calls_of(file):
        inspect.signature(stage).bind_partial(*positional, **dict.fromkeys(named))


def test_the_demo_s_and_the_studies_calls_are_seen() -> None:
    assert len({stage for stage, *_ in calls_of(ROOM / "demo.py")}) >= 7
    assert {"clips", "headline"} < {file.stem for file in CALLERS}
    benches = [named for stage, _, named in calls_of(ROOM / "studies" / "headline.py") if stage.__name__ == "bench"]
    assert {"video", "depth_weights", "sustain", "profile"} in benches
