"""The energy that rows use: of whole processors, and what is said where it is not counted."""

import pytest

from benchmarks.energy import Joules


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
