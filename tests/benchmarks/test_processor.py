"""Which cores rows are timed on, and the energy that they use."""

import os

import pytest

from benchmarks.energy import Joules
from benchmarks.processor import best_first, bound_to, cores_for, measure_products

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
    assert set(found) == {"fp32", "int8"}
    assert 0.1 < found["fp32"] < 10_000
    assert found["int8"] > found["fp32"] / 2


def zone(root, name, microjoules, largest=1_000_000):
    folder = root / name
    folder.mkdir(exist_ok=True)
    (folder / "name").write_text("psys\n" if name == "intel-rapl:2" else "package-0\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{largest}\n")


def test_energy_is_that_of_whole_processors_and_goes_on_when_a_counter_begins_anew(tmp_path):
    zone(tmp_path, "intel-rapl:0", 900_000)
    zone(tmp_path, "intel-rapl:0:0", 5)
    zone(tmp_path, "intel-rapl:1", 100)
    zone(tmp_path, "intel-rapl:2", 7)
    joules = Joules(tmp_path)
    assert joules.origin.startswith("intel-rapl:0, intel-rapl:1 in ")
    zone(tmp_path, "intel-rapl:0", 400_000)  # 100,000 up to the end of its range, and 400,000 from there
    zone(tmp_path, "intel-rapl:1", 600)
    zone(tmp_path, "intel-rapl:0:0", 999)
    zone(tmp_path, "intel-rapl:2", 777_777)
    assert joules.spent() == pytest.approx((500_000 + 500) / 1e6)


def test_energy_that_is_not_counted_is_said(tmp_path):
    joules = Joules(tmp_path)
    assert joules.spent() is None
    assert joules.origin == f"not known: this system has no counters in {tmp_path}"
    zone(tmp_path, "intel-rapl:0", 1)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    unread = Joules(tmp_path)
    assert unread.spent() is None
    assert unread.origin == f"not known: {tmp_path / 'intel-rapl:0' / 'energy_uj'} may not be read"


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
