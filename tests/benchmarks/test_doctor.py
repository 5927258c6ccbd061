"""The doctor: what it says of this machine."""

from benchmarks.doctor import diagnose
from benchmarks.machine import describe_machine
from export.runtimes import Runtime
from stage import usable_cores


def test_doctor_knows_this_machine():
    diagnosis = diagnose()
    assert diagnosis["runtimes"]["onnxruntime"] == "runs here"
    assert describe_machine().cores == usable_cores()
    assert describe_machine().versions["torch"].startswith("2.")


def test_doctor_says_of_a_runtime_that_is_installed_and_broken_that_it_cannot_be_loaded(monkeypatch):
    def without_a_library(runtime: Runtime) -> None:
        if runtime == "onnxruntime":
            raise ImportError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr("benchmarks.doctor.import_runtime", without_a_library)
    runtimes = diagnose()["runtimes"]
    assert runtimes["onnxruntime"] == "installed, but cannot be loaded: libgomp.so.1: cannot open shared object file"
    assert runtimes["executorch"] == "runs here"
