"""The energy that rows use: of whole processors, and what is said where it is not counted."""

import pytest

from benchmarks.energy import Joules
from tests.benchmarks.powercap import zone


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
    zone(tmp_path, "intel-rapl:0", 100_000)  # and once more, since the last reading
    assert joules.spent() == pytest.approx((500_000 + 700_000 + 500) / 1e6)
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    assert (
        joules.spent() is None
        and joules.origin == f"not known: {tmp_path / 'intel-rapl:1'} could not be read to the end"
    )
    zone(tmp_path, "intel-rapl:1", 600)
    assert joules.spent() is None


def test_energy_that_is_not_counted_is_said(tmp_path):
    joules = Joules(tmp_path)
    assert joules.spent() is None
    assert joules.origin == f"not known: this system has no counters in {tmp_path}"
    zone(tmp_path, "intel-rapl:0", 1)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    unread = Joules(tmp_path)
    assert unread.spent() is None
    assert unread.origin == f"not known: {tmp_path / 'intel-rapl:0' / 'energy_uj'} may not be read"
