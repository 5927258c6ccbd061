"""The doctor: what it says of this machine."""

import os
import sys
from typing import Any

from benchmarks import doctor
from benchmarks.doctor import diagnose
from benchmarks.machine import describe_machine


def test_doctor_knows_this_machine():
    diagnosis = diagnose()
    assert diagnosis["runtimes"]["onnxruntime"] == "runs here"
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    assert describe_machine().cores == cores
    assert describe_machine().versions["torch"].startswith("2.")


def test_doctor_says_of_a_runtime_that_is_installed_and_broken_that_it_cannot_be_loaded(monkeypatch):
    load = doctor.importlib.import_module

    def without_a_library(name: str, *rest: Any) -> Any:
        if name == "onnxruntime":
            raise ImportError("libgomp.so.1: cannot open shared object file")
        return load(name, *rest)

    monkeypatch.setattr(doctor.importlib, "import_module", without_a_library)
    runtimes = diagnose()["runtimes"]
    assert runtimes["onnxruntime"] == "installed, but cannot be loaded: libgomp.so.1: cannot open shared object file"
    assert runtimes["executorch"] == "runs here"
