"""Which cores rows are timed on."""

import os

import pytest

from benchmarks.processor import best_first, bound_to, cores_for, measure_products
from stage import StageError

linux_only = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system binds no processes")


@linux_only
def test_a_process_is_bound_for_as_long_as_it_is_timed():
    before = os.sched_getaffinity(0)
    cores = cores_for(1)
    assert len(cores) == 1 and cores[0] in before
    with bound_to(cores):
        assert os.sched_getaffinity(0) == set(cores)
    assert os.sched_getaffinity(0) == before
    assert set(cores_for(10_000)) == before
    with bound_to(None):
        assert os.sched_getaffinity(0) == before


def test_products_of_bytes_are_no_slower_than_half_of_those_of_floats():
    found = measure_products(1)
    assert 0.1 < found.fp32 < 10_000
    assert found.int8 > found.fp32 / 2


def test_why_products_cannot_be_measured_is_said(monkeypatch):
    def killed(*_):
        raise StageError("killed by signal 9, perhaps for want of memory")

    monkeypatch.setattr("benchmarks.processor.answer_of", killed)
    with pytest.raises(StageError, match=r"^the speed of this machine's matrix products cannot be measured: killed by"):
        measure_products(1)


def processor(root, number, core, megahertz):
    for name, value in {"topology/physical_package_id": 0, "topology/core_id": core}.items():
        file = root / f"cpu{number}" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{value}\n")
    (root / f"cpu{number}" / "cpufreq").mkdir()
    (root / f"cpu{number}" / "cpufreq" / "cpuinfo_max_freq").write_text(f"{megahertz}000\n")


def test_fast_cores_come_first_and_each_is_taken_once_before_its_second_processor(tmp_path):
    for number, core, megahertz in [(0, 0, 5000), (1, 0, 5000), (2, 1, 5000), (3, 1, 5000), (4, 2, 3800), (5, 3, 3800)]:
        processor(tmp_path, number, core, megahertz)
    assert best_first(range(6), tmp_path) == [3, 1, 2, 0, 5, 4]
    assert best_first([0, 1, 4], tmp_path) == [1, 0, 4]


def test_where_the_system_tells_nothing_the_last_come_first(tmp_path):
    assert best_first([0, 1, 2, 3], tmp_path) == [3, 2, 1, 0]
