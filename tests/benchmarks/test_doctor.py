"""The doctor: what it says of this machine."""

import os
import sys

from benchmarks.doctor import diagnose
from benchmarks.machine import describe_machine


def test_doctor_knows_this_machine():
    diagnosis = diagnose()
    assert diagnosis["runtimes"]["onnxruntime"] == "runs here"
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    assert describe_machine().cores == cores
    assert describe_machine().versions["torch"].startswith("2.")
