"""Counters of energy (RAPL) in a folder, as Linux shows them in /sys/class/powercap."""


def zone(root, name, microjoules):
    """Write a counter of energy as Linux shows it, which wraps around at 1 J."""
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text("psys\n" if name == "intel-rapl:2" else "package-0\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text("1000000\n")
