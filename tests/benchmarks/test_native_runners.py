"""Native runners: their logs read to the figure, and binaries that are none."""

import numpy as np
import pytest

from benchmarks.native_runners import read_executorch, read_onnxruntime
from tests.benchmarks.runner_logs import BEFORE_ITERATIONS, EXECUTORCH, ONNXRUNTIME, WITHOUT_STATISTICS


def test_executor_runner_s_iterations_after_the_warm_ups_count():
    told = read_executorch(EXECUTORCH)
    timed = [4, 3, 5, 2, 6]
    assert (told.runs, told.p50_ms, told.mean_ms) == (5, 4, 4)
    assert (told.p90_ms, told.p99_ms) == tuple(np.percentile(timed, [90, 99]))
    assert (told.load_ms, told.first_run_ms, told.peak_memory_mb) == (29.49, 41.5, None)


def test_executor_runner_that_logs_no_iterations_tells_a_mean():
    told = read_executorch(BEFORE_ITERATIONS)
    assert (told.runs, told.p90_ms, told.p99_ms, told.load_ms, told.first_run_ms) == (10, None, None, None, None)
    assert told.p50_ms == told.mean_ms == pytest.approx(2.904883)


def test_perf_test_with_statistics_and_without():
    told = read_onnxruntime(ONNXRUNTIME)
    assert (told.runs, told.mean_ms, told.load_ms, told.first_run_ms) == (50, 9.8962, pytest.approx(217.932), 19)
    assert (told.p50_ms, told.p90_ms, told.p99_ms) == pytest.approx((9.95086, 10.1019, 9.9))
    assert told.peak_memory_mb == 26
    told = read_onnxruntime(WITHOUT_STATISTICS)
    assert (told.runs, told.p50_ms, told.mean_ms, told.p90_ms) == (100, 1.85739, 1.85739, None)
