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
        self._last = {zone: value for zone in zones if (value := _microjoules(zone)) is not None}
        self._spent = 0
        if self._last:
            self.origin = f"{', '.join(zone.name for zone in self._last)} in {root}, all that the processor did"
        elif zones:
            self.origin = f"not known: {zones[0] / 'energy_uj'} may not be read"
        else:
            self.origin = f"not known: this system has no counters in {root}"

    def spent(self) -> float | None:
        """Return joules, None where the system does not tell, or ceased to.

        Call it every few minutes: it corrects counters that wrapped around once since the last call.
        """
        for zone, before in self._last.items():
            after, wrap = _microjoules(zone), _microjoules(zone, "max_energy_range_uj")
            if after is None or (after < before and wrap is None):
                self._last, self.origin = {}, f"not known: {zone} could not be read to the end"
                break
            self._spent += after - before if after >= before else after - before + (wrap or 0)
            self._last[zone] = after
        return self._spent / 1e6 if self._last else None


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
