"""What a report calls a machine."""

import pytest

from benchmarks.machine import _processor as processor

X86 = (
    "processor\t: 0\nmodel name\t: A Processor @ 2 GHz\nflags\t\t: avx512_vnni\n\nprocessor\t: 1\nmodel name\t: Other\n"
)
ARM = "processor\t: 0\nBogoMIPS\t: 48.00\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n"
RASPBERRY = ARM + "\nHardware\t: BCM2835\nModel\t: Raspberry Pi 4\n"


@pytest.mark.parametrize(("text", "name"), [(X86, "A Processor @ 2 GHz"), (RASPBERRY, "BCM2835")])
def test_a_processor_that_says_its_name_has_it(text, name, tmp_path):
    (tmp_path / "cpuinfo").write_text(text)
    assert processor(tmp_path / "cpuinfo", tmp_path / "none") == name


def test_an_arm_processor_is_known_by_its_board_or_else_by_its_codes(tmp_path, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    (tmp_path / "cpuinfo").write_text(ARM)
    assert processor(tmp_path / "cpuinfo", tmp_path / "none") == "aarch64 0x41 0xd0b"
    (tmp_path / "model").write_bytes(b"Jetson Orin Nano\0")
    assert processor(tmp_path / "cpuinfo", tmp_path / "model") == "Jetson Orin Nano"
