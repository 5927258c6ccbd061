"""Time by step: what runs inside another step counts to the inner one alone."""

import pytest

from export.stopwatch import Stopwatch


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is told."""
    now = [0.0]
    monkeypatch.setattr("export.stopwatch.time.perf_counter", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def test_steps_in_steps_count_once(clock):
    watch = Stopwatch()

    def source():
        for _ in range(3):
            clock(2.0)
            yield None
        clock(0.25)

    def work(items):
        for item in watch.each("decode", items):
            clock(1.0)
            yield item

    for _ in watch.each("faces", work(source())):
        clock(10.0)
        watch.timed("score", clock)(0.5)
        with watch.step("crop"):
            clock(4.0)
            with watch.step("score"):
                clock(0.5)
    assert watch.seconds == {"decode": 6.25, "faces": 3.0, "score": 3.0, "crop": 12.0}


def test_a_step_that_fails_counts(clock):
    watch = Stopwatch()
    with pytest.raises(ValueError, match="x"), watch.step("outer"):
        clock(1.0)
        with watch.step("inner"):
            clock(2.0)
            raise ValueError("x")
    assert watch.seconds == {"inner": 2.0, "outer": 1.0}
