"""What all stages share: progress, messages and what a machine offers."""

from pathlib import Path

import pytest
import torch

from stage import heed_quota, progress, say, speaks, usable_cores

ROOT = Path(__file__).parents[1]


def test_progress_says_a_plain_line_every_fifteen_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 4))
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    assert list(progress([10] * 12, "count")) == [10] * 12
    assert list(progress(iter("ab" * 5), "letters")) == list("ab" * 5)
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("count")] == [
        "count: 4 of 12",
        "count: 8 of 12",
        "count: 12 of 12",
    ]
    assert lines[-1].startswith("letters: ")
    assert lines[-1].endswith(" of ?")


def test_progress_of_short_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(range(5), "count")) == list(range(5))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("quota", "cores"),
    [(None, 6), ("max 100000\n", 6), ("200000 100000\n", 2), ("50000 100000\n", 1), ("1600000 100000\n", 6), ("", 6)],
)
def test_cores_are_those_that_this_process_may_use(
    quota: str | None, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 5, 6, 7}, raising=False)
    monkeypatch.setattr("stage.CPU_QUOTA", tmp_path / "cpu.max")
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota)
    assert usable_cores() == cores


def test_torch_heeds_a_container_s_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr("stage.CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)), raising=False)
    try:
        torch.set_num_threads(8)
        heed_quota()
        assert torch.get_num_threads() == 8
        (tmp_path / "cpu.max").write_text("200000 100000")
        heed_quota()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_what_is_said_does_nothing_to_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say("note: \x1b[31mred\nand a second line\u202e of a corpus")
    assert capsys.readouterr().err == "note:  [31mred and a second line  of a corpus\n"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, True),
        ({"RANK": "1"}, True),
        ({"RANK": "0", "WORLD_SIZE": "2"}, True),
        ({"RANK": "1", "WORLD_SIZE": "2"}, False),
        ({"RANK": "1", "WORLD_SIZE": "1"}, True),
    ],
)
def test_a_process_is_silent_only_in_company(
    environment: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert speaks() is expected
