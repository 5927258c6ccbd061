"""Energy used by the processors, where the system counts it."""

from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
"""Linux's counters of Intel's and AMD's processors (RAPL): microjoules that wrap around at ``max_energy_range_uj``."""


class Joules:
    """Energy of the whole processors since this object was made, including everything else that runs on them.

    ``origin`` names the counters, or says why the energy is not known.
    """

    def __init__(self, root: Path = POWERCAP) -> None:
        # Zones of processors (intel-rapl:0) alone: those of their parts (intel-rapl:0:0) are counted in them, and they
        # are counted in that of the whole platform (psys).
        zones = [zone for zone in sorted(root.glob("*-rapl:*")) if zone.name.count(":") == 1 and _is_processor(zone)]
        self._start = {zone: value for zone in zones if (value := _microjoules(zone)) is not None}
        if self._start:
            self.origin = f"{', '.join(zone.name for zone in self._start)} in {root}, all that the processor did"
        elif zones:
            self.origin = f"not known: {zones[0] / 'energy_uj'} may not be read"
        else:
            self.origin = f"not known: this system has no counters in {root}"

    def spent(self) -> float | None:
        """Return joules, None where the system does not tell. A counter that wrapped around once is corrected."""
        if not self._start:
            return None
        total = 0
        for zone, before in self._start.items():
            after, wrap = _microjoules(zone), _microjoules(zone, "max_energy_range_uj")
            if after is None or (after < before and wrap is None):
                return None
            total += after - before if after >= before else after - before + (wrap or 0)
        return total / 1e6


def _is_processor(zone: Path) -> bool:
    try:
        return (zone / "name").read_text(encoding="utf-8").startswith("package")
    except OSError:
        return False


def _microjoules(zone: Path, counter: str = "energy_uj") -> int | None:
    try:
        return int((zone / counter).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
