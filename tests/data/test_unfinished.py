"""Interrupted runs: whatever is killed and whenever, the store is the one of a run that nothing disturbed."""

import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data.depth import DepthWeights
from data.prepare import prepare
from data.settings import StoreSettings
from data.unfinished import Unfinished
from data.video import Video, write_video
from stage import StageError
from tests.data.commands import SHARED, ended, files, killing, processes_of, started, wait_for_rows


@pytest.fixture(scope="module")
def corpus(demo_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten videos of 16 frames of 240 x 180 pixels."""
    root = tmp_path_factory.mktemp("ten") / "corpus"
    for n, path in enumerate(sorted(demo_corpus.rglob("*.mp4"))[:10]):
        with Video(path) as video:
            frames = [picture.rgb for picture, _ in zip(video.pictures(), range(16), strict=False)]
        target = root / ("real", "fake")[n % 2] / f"{n}.mp4"
        target.parent.mkdir(parents=True, exist_ok=True)
        write_video(target, [np.asarray(Image.fromarray(frame).resize((240, 180))) for frame in frames])
    return root


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files of the store of ``corpus``, made in one go by one process."""
    out = tmp_path_factory.mktemp("whole") / "store"
    prepare([corpus], out, workers=1, **SHARED)
    return files(out)


def test_a_run_that_is_killed_again_and_again_ends_as_if_never_killed(
    corpus: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out, rng = tmp_path / "store", np.random.default_rng(11)
    for rows in (0, 1, 3, 6):
        run = started(corpus, out)
        wait_for_rows(run, out, rows)
        time.sleep(rng.uniform(0.0, 0.1 if rows else 1.5))
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate(timeout=20)
        assert not out.exists()
    ended(started(corpus, out))
    assert files(out) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_worker_that_is_killed_does_not_end_the_command(
    corpus: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "store"
    run = started(corpus, out)
    while len(workers := processes_of(run, "spawn_main")) < 2:
        assert run.poll() is None
    workers[0].kill()
    said = ended(run)
    assert "prepare: a process was killed" in said
    assert files(out) == whole


def test_a_file_that_kills_its_process_is_unreadable_and_harms_no_other(
    corpus: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    spoiled, out = shutil.copytree(corpus, tmp_path / "corpus"), tmp_path / "store"
    shutil.copy(corpus / "real/0.mp4", spoiled / "fake/5 killer.mp4")
    ended(started(spoiled, out, stub=killing(tmp_path / "stub")))
    rows = pd.read_parquet(out / "videos.parquet").set_index("path")
    killer = rows.loc["fake/5 killer.mp4"]
    assert (killer["status"], killer["reason"]) == ("unreadable", "a process died of it, perhaps for want of memory")
    others = rows.drop("fake/5 killer.mp4")
    assert (len(others), set(others["status"])) == (10, {"ok"})
    clips = {name for name in files(out) if name.startswith("clips/")}
    assert clips == {name for name in whole if name.startswith("clips/")}


def test_processes_that_die_before_any_file_end_the_command_with_one_line(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stub"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import os, sys\nif any('spawn_main' in word for word in sys.orig_argv):\n    os.abort()\n"
    )
    run = started(corpus, tmp_path / "store", stub=folder)
    assert ended(run, code=1).splitlines()[-1] == (
        "error: prepare: a process was killed, perhaps for want of memory: run again with fewer --workers, "
        "what is done is kept"
    )


def test_two_commands_do_not_make_one_store(corpus: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "store"
    first = started(corpus, out)
    wait_for_rows(first, out, 1)
    with pytest.raises(StageError, match=r"store is being made by another process: wait for it or give another --out"):
        prepare([corpus], out, workers=1, **SHARED)
    ended(first)
    assert files(out) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_of_commands_that_start_together_one_makes_the_store(
    corpus: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "store"
    runs = [started(corpus, out, "--workers=1") for _ in range(3)]
    said = [run.communicate(timeout=60)[0].splitlines()[-1] for run in runs]
    assert sorted(run.returncode for run in runs) == [0, 1, 1]
    refused = f"error: {out} is being made by another process: wait for it or give another --out"
    assert sorted(line == refused for line in said) == [False, True, True]
    assert files(out) == whole


def settings() -> StoreSettings:
    return StoreSettings.model_validate(
        {"frames": 4, "crop": {"size": 32}, "ratios": (1, 0, 0), "seed": 0, "sources_sha256": ""}
    )


def test_a_depth_network_is_known_by_its_hash_and_not_by_its_folder(tmp_path: Path) -> None:
    asked = {"source": "folder", "name": "depth", "sha256": "ab" * 32, "licence": "unknown"}
    begun = settings().model_copy(update={"depth": DepthWeights.model_validate(asked)})
    with Unfinished(tmp_path / "store", begun) as store:
        (store.folder / "rows" / "a.json").write_text("{}")
    renamed = DepthWeights.model_validate(asked | {"name": "renamed"})
    with Unfinished(tmp_path / "store", begun.model_copy(update={"depth": renamed})) as store:
        assert (store.folder / "rows" / "a.json").exists()
    other = DepthWeights.model_validate(asked | {"sha256": "cd" * 32})
    with pytest.raises(StageError, match=r"unfinished work of another call \(the depth network's weights were"):
        Unfinished(tmp_path / "store", begun.model_copy(update={"depth": other}))


def test_an_error_lets_go_of_the_store(tmp_path: Path) -> None:
    out = tmp_path / "store"
    with pytest.raises(StageError, match="stop") as caught, Unfinished(out, settings()):
        raise StageError("stop")
    with Unfinished(out, settings()) as again:
        assert again.folder.is_dir()
    assert caught.value.args == ("stop",)


def test_what_a_killed_process_half_wrote_is_not_in_the_store(tmp_path: Path) -> None:
    with Unfinished(tmp_path / "store", settings()) as store:
        (store.folder / "clips/.a.parquet.1.partial").write_bytes(b"half")
        store.finish([], [])
    assert sorted(files(tmp_path / "store")) == ["store.json", "videos.parquet"]


def test_a_run_that_is_stopped_as_it_puts_the_store_in_its_place_prepares_nothing_again(
    corpus: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(path: Path, target: Path) -> Path:
        if path.name == ".store.unfinished":
            raise KeyboardInterrupt
        return replace(path, target)

    replace, out = Path.replace, tmp_path / "store"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "replace", stopped)
        prepare([corpus], out, workers=1, **SHARED)
    made = {file.name: file.stat().st_ino for file in (tmp_path / ".store.unfinished" / "clips").iterdir()}
    prepare([corpus], out, workers=1, **SHARED)
    assert {file.name: file.stat().st_ino for file in (out / "clips").iterdir()} == made
    assert files(out) == whole


def test_a_store_is_not_finished_by_another_version(tmp_path, monkeypatch):
    out = tmp_path / "store"
    with Unfinished(out, settings()) as store:
        (store.folder / "rows" / "a.json").write_text("{}")
    monkeypatch.setattr("data.unfinished.versions_of", lambda tools: dict.fromkeys(tools, "0"))
    with pytest.raises(StageError, match=r"unfinished work of another call \(pocketproof was \"0\.1\.0\", av was"):
        Unfinished(out, settings())
