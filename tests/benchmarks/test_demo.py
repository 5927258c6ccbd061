"""The demo: which stages it calls on what, how it goes on, and what a second call shows.

The stages themselves are tested in their own rooms; here each writes the file or folder that it is asked for.
"""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks import demo as module
from benchmarks.demo import demo
from benchmarks.pages.render import table_text
from benchmarks.schema import read_report
from stage import StageError

REPORT = Path(__file__).parents[2] / "docs" / "report.json"


@pytest.fixture
def calls(monkeypatch, demo_store, bundle_path) -> list[str]:
    """Replace the stages; return the names of what they made, in order, which fills up as they are called."""
    made: list[str] = []

    def note(out: Path) -> Path:
        made.append(out.name)
        out.parent.mkdir(parents=True, exist_ok=True)
        return out

    def bench(models, store, reference, out, **options):
        assert all(path.exists() for path in (*models, store, reference, options["control"]))
        note(out).mkdir()
        shutil.copy(REPORT, out / "report.json")

    stages = {
        "render_corpora": lambda out, *rest: note(out / "corpus").mkdir(),
        "prepare": lambda sources, out, **options: shutil.copytree(demo_store, note(out)),
        "teach": lambda kind, store, out, **options: note(out).mkdir(),
        "distill": lambda store, out, teacher, *rest, **options: note(out).mkdir(),
        "quantize": lambda run, store, out, **options: note(out).mkdir(),
        "export": lambda runs, store, out: shutil.copytree(bundle_path, note(out)),
        "reference": lambda run, store, out, **options: note(out).write_text("{}"),
        "bench": bench,
    }
    for name, stage in stages.items():
        monkeypatch.setattr(module, name, stage)
    return made


def test_every_stage_is_called_once_and_a_second_call_shows_the_figures_again(calls, tmp_path, capsys):
    demo(tmp_path / "demo")
    assert calls == [
        "corpus", "store", "control-store", "teacher", "dinov2-base-random", "student", "student-int8", "bundle",
        "reference.json", "report",
    ]  # fmt: skip
    printed = capsys.readouterr()
    results = ("report/report.html", "report/report.md", "report/report.json", "bundle")
    assert printed.out.split() == [str(tmp_path / "demo" / name) for name in results]
    assert "demo finished in " in printed.err
    calls.clear()
    demo(tmp_path / "demo")
    shown = capsys.readouterr()
    assert not calls and shown.err.count("kept ") == 10
    assert shown.out.startswith(table_text(read_report(REPORT)))


def test_it_goes_on_after_what_an_interrupted_call_made(calls, tmp_path, monkeypatch):
    def killed(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "distill", killed)
        with pytest.raises(KeyboardInterrupt):
            demo(tmp_path / "demo")
    calls.clear()
    demo(tmp_path / "demo")
    assert calls == ["student", "student-int8", "bundle", "reference.json", "report"]


def test_another_seed_is_refused(calls, tmp_path):
    demo(tmp_path / "demo")
    with pytest.raises(StageError, match=r"was begun with --seed 0: give that, or another --out"):
        demo(tmp_path / "demo", seed=1)


def test_a_bundle_that_lacks_a_file_ends_a_second_call_too(calls, tmp_path):
    demo(tmp_path / "demo")
    manifest = tmp_path / "demo" / "bundle" / "manifest.json"
    told = json.loads(manifest.read_text())
    told["absent"] = [{"file": "a.pte", "runtime": "executorch", "scheme": "int8", "reason": "it failed the gate"}]
    manifest.write_text(json.dumps(told))
    with pytest.raises(StageError, match=r"bundle lacks a\.pte: its manifest says why"):
        demo(tmp_path / "demo")


def test_a_place_that_cannot_be_is_said_before_anything_is_rendered(calls, bundle_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StageError, match=r"s3:/bucket/demo/store is a URL"):
        demo(Path("s3://bucket/demo"))
    with pytest.raises(StageError, match=r"is in the bundle .*, which stays as it was exported"):
        demo(bundle_path / "demo")
    assert not calls and not list(tmp_path.iterdir()) and not (bundle_path / "demo").exists()
