"""The bundle of every runtime, and which of its artifacts run here."""

import pytest

from export.bundle import Bundle

SOURCES = {"fp32": "student_run", "int8": "int8_run"}
RUNNABLE = tuple(f"test_byobnet-{scheme}.{suffix}" for suffix in ("pte", "onnx", "mlpackage") for scheme in SOURCES)


@pytest.fixture(scope="module")
def bundle(bundle_path) -> Bundle:
    return Bundle(bundle_path)
