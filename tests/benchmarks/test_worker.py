"""What a worker times and what it leaves out, on how many threads, and the libraries that it has loaded."""

from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.task import Task
from benchmarks.worker import WARM_UPS, _library_bytes, load_scorer, timing


def task_of(path: Path, **changes: object) -> Task:
    known = {"path": path, "runtime": "torch", "scheme": "fp32", "threads": 1, "repeats": 5, "size": 64, "scored": {}}
    return Task.model_validate(known | {"crops": path / "crops.bin"} | changes)


def test_neither_imports_nor_loading_nor_warming_up_are_in_the_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, runs = [0.0], [0]

    def passes(seconds: float) -> None:
        now[0] += seconds

    def score(_: object) -> None:
        runs[0] += 1
        passes(1.0 if runs[0] <= WARM_UPS else 1 / 64)

    def load(_: Task) -> object:
        passes(2.0)
        return score

    monkeypatch.setattr("benchmarks.worker.LEAST_SECONDS", 0.0)
    monkeypatch.setattr("benchmarks.worker._import_runtime", lambda _: passes(50.0))
    monkeypatch.setattr("benchmarks.worker.load_scorer", load)
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    found, _ = timing(task_of(tmp_path), lambda _: (np.zeros(1),))
    assert (found.load_ms, found.first_run_ms) == (2000, 1000)
    assert found.times_ms == [1000 / 64] * 5


def test_a_row_is_scored_in_its_scheme_and_on_its_threads(student_run: Path, real_crops: "np.ndarray") -> None:
    before = torch.get_num_threads()
    try:
        found = {}
        for threads, scheme in ((2, "fp32"), (1, "autocast")):
            found[scheme] = load_scorer(task_of(student_run, scheme=scheme, threads=threads))(real_crops)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert 0 < np.abs(found["autocast"] - found["fp32"]).max() < 0.1


def test_a_runtime_s_libraries_are_those_of_its_package_whatever_the_environment_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages, lines = tmp_path / "executorch" / "site-packages", []
    for name, size in (("executorch", 10), ("torch", 1000)):
        library = packages / name / "lib" / "a.so.1"
        library.parent.mkdir(parents=True)
        library.write_bytes(bytes(size))
        lines += [f"7f00-7f10 r-xp 00000000 08:01 7      {library}\n"] * 2

    def spec(name: str) -> ModuleSpec:
        found = ModuleSpec(name, None, is_package=True)
        found.submodule_search_locations = [str(packages / name)]
        return found

    monkeypatch.setattr("benchmarks.worker.find_spec", spec)
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "".join(lines) + "7f10-7f20 rw-p 00000000 00:00 0\n")
    assert [_library_bytes(runtime) for runtime in ("executorch", "torch", "coreml")] == [10, 1000, 0]
